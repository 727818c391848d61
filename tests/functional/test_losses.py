from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_rarlhf.functional.advantages import gae
from lightning_rarlhf.functional.losses import PolicyLoss, clipped_surrogate, clipped_value_loss
from lightning_rarlhf.functional.masked import masked_whiten
from lightning_rarlhf.functional.risk import tail_rows

PPO = json.loads((Path(__file__).parents[1] / "fixtures" / "golden.json").read_text())["ppo"]
golden = pytest.mark.parametrize("case", PPO, ids=lambda c: f"B{c['B']}-T{c['T']}-tail{c['tail_size']}")


def kept_tail(case: dict) -> dict[str, Tensor]:
    """The kept rows of every input, with golden returns and the advantages whitened over them."""
    x = {name: torch.tensor(value) for name, value in case["inputs"].items()}
    mask = x.pop("response_mask").bool()
    rewards, returns = torch.tensor(case["expect"]["rewards"]), torch.tensor(case["expect"]["returns"])
    advantages, _ = gae(rewards, x["values"], mask, case["gamma"], case["lam"])
    rows = tail_rows(returns[:, 0], case["tail_size"], ties="keep")
    tail = {name: value[rows] for name, value in (x | {"mask": mask, "returns": returns}).items()}
    return tail | {"rows": rows, "advantages": masked_whiten(advantages[rows], mask[rows])}


def policy_loss(x: dict[str, Tensor], **changes: object) -> PolicyLoss:
    arguments = {
        "logprobs": x["new_logprobs"],
        "old_logprobs": x["logprobs"],
        "advantages": x["advantages"],
        "mask": x["mask"],
        "cliprange": 0.2,
    }
    return clipped_surrogate(**(arguments | changes))


def value_loss(x: dict[str, Tensor], **changes: object) -> Tensor:
    arguments = {
        "values": x["new_values"],
        "old_values": x["values"],
        "returns": x["returns"],
        "mask": x["mask"],
        "cliprange_value": 0.2,
    }
    return clipped_value_loss(**(arguments | changes))


@golden
def test_golden_whitened_advantages_over_the_kept_rows(case: dict) -> None:
    x = kept_tail(case)
    assert x["rows"].tolist() == [row for row, kept in enumerate(case["expect"]["kept"]) if kept]
    expected = torch.tensor(case["expect"]["whitened_advantages_kept"])
    assert torch.allclose(x["advantages"], expected[x["rows"]], atol=2e-6)


@golden
def test_golden_policy_loss(case: dict) -> None:
    found = policy_loss(kept_tail(case), cliprange=case["cliprange"])
    assert found.loss.item() == pytest.approx(case["expect"]["policy_loss"], abs=1e-6)
    assert found.approx_kl.item() == pytest.approx(case["expect"]["approx_kl"], abs=1e-7)
    assert found.clip_fraction.item() == pytest.approx(case["expect"]["clip_fraction"], abs=1e-7)


@golden
def test_golden_value_loss(case: dict) -> None:
    found = value_loss(kept_tail(case), cliprange_value=case["cliprange_value"])
    assert case["vf_coef"] * found.item() == pytest.approx(case["expect"]["value_loss_times_vf_coef"], abs=1e-6)


def test_surrogate_by_hand() -> None:
    ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.1, math.nan]])
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0, 2.0, 7.0]])
    mask = torch.tensor([[True] * 5 + [False]])
    found = clipped_surrogate(ratio.log(), torch.zeros(1, 6), advantages, mask, cliprange=0.2)
    # Clipped: a rise that was wanted and has gone far enough, a fall likewise. Never clipped: a step the wrong way.
    assert found.loss.item() == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8 + 2.2) / 5)
    assert found.clip_fraction.item() == pytest.approx(2 / 5)
    assert found.ratio_mean.item() == pytest.approx((1.5 + 1.5 + 0.5 + 0.5 + 1.1) / 5)
    squares = sum(math.log(r) ** 2 for r in (1.5, 1.5, 0.5, 0.5, 1.1))
    assert found.approx_kl.item() == pytest.approx(squares / 2 / 5)


def test_first_minibatch_has_ratio_one_and_the_policy_gradient() -> None:
    x = kept_tail(PPO[2])
    logprobs = x["logprobs"].clone().requires_grad_()
    found = policy_loss(x, logprobs=logprobs)
    found.loss.backward()
    assert found.ratio_mean.item() == 1
    assert found.clip_fraction.item() == 0
    assert found.approx_kl.item() == 0
    assert logprobs.grad is not None
    assert torch.allclose(logprobs.grad, -x["advantages"] * x["mask"] / x["mask"].sum(), atol=1e-7)


def test_clipped_tokens_give_no_gradient() -> None:
    logprobs = torch.tensor([[math.log(1.5), math.log(1.1)]], requires_grad=True)
    both = torch.ones(1, 2, dtype=torch.bool)
    clipped_surrogate(logprobs, torch.zeros(1, 2), torch.ones(1, 2), both, 0.2).loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0, 0] == 0
    assert logprobs.grad[0, 1].item() == pytest.approx(-1.1 / 2)


@pytest.mark.parametrize("logratio", [88.0, 88.8, 1000.0])  # e^88.73 is the first power beyond float32
def test_a_ratio_beyond_every_number_is_clipped_or_infinite_but_never_nan(logratio: float) -> None:
    logprobs = torch.tensor([[logratio, logratio, 0.0]], requires_grad=True)
    found = clipped_surrogate(logprobs, torch.zeros(1, 3), torch.tensor([[2.0, 0.0, 2.0]]), torch.ones(1, 3) > 0, 0.2)
    found.loss.backward()
    assert logprobs.grad is not None
    assert found.loss.item() == pytest.approx(-(2 * 1.2 + 0 + 2) / 3)
    assert logprobs.grad.flatten().tolist() == pytest.approx([0, 0, -2 / 3])
    assert found.clip_fraction.item() == pytest.approx(1 / 3)  # nothing is worse by clipping where A is 0
    assert found.ratio_mean.item() == pytest.approx((2 * math.exp(logratio) + 1) / 3 if logratio < 88.7 else math.inf)


def test_a_ratio_beyond_every_number_that_is_not_clipped_is_an_infinite_loss() -> None:
    logprobs = torch.tensor([[1000.0]], requires_grad=True)
    found = clipped_surrogate(logprobs, torch.zeros(1, 1), -torch.ones(1, 1), torch.ones(1, 1) > 0, 0.2)
    found.loss.backward()
    assert logprobs.grad is not None
    assert found.loss.item() == logprobs.grad.item() == math.inf
    assert not clipped_surrogate(
        logprobs * math.nan, torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1) > 0, 0.2
    ).loss.isfinite()


def test_only_the_loss_carries_a_gradient() -> None:
    found = policy_loss(kept_tail(PPO[0]), logprobs=torch.zeros(8, 6, requires_grad=True))
    assert [t.requires_grad for t in found] == [True, False, False, False]


def test_cliprange_matters() -> None:
    x = kept_tail(PPO[1])
    narrow, wide = policy_loss(x, cliprange=0.01), policy_loss(x, cliprange=10.0)
    assert narrow.loss > wide.loss
    assert narrow.clip_fraction > wide.clip_fraction == 0


def test_value_loss_by_hand() -> None:
    values, old_values = torch.tensor([[2.0, 2.0, 0.1, math.nan]]), torch.zeros(1, 4)
    returns, mask = torch.tensor([[3.0, -1.0, 1.0, 1.0]]), torch.tensor([[True, True, True, False]])
    # (2 - 3)² < (0.5 - 3)²: clipped counts; (2 + 1)² > (0.5 + 1)²: unclipped counts; inside the range: the same.
    expected = 0.5 * (2.5**2 + 3.0**2 + 0.9**2) / 3
    assert clipped_value_loss(values, old_values, returns, mask, 0.5).item() == pytest.approx(expected)


def test_cliprange_value_matters_and_a_wide_one_is_the_squared_error() -> None:
    x = kept_tail(PPO[1])
    square = 0.5 * (x["new_values"] - x["returns"])[x["mask"]].square().mean()
    assert torch.allclose(value_loss(x, cliprange_value=100.0), square)
    assert value_loss(x, cliprange_value=0.05) > square


def test_parts_divided_by_the_whole_count_add_up_to_the_whole() -> None:
    x = kept_tail(PPO[2])
    count = x["mask"].sum()
    grown = {name: x[name].clone().requires_grad_() for name in ("new_logprobs", "new_values")}
    whole = policy_loss(x | grown)
    whole_value = value_loss(x | grown)
    gradients = torch.autograd.grad(whole.loss + whole_value, list(grown.values()))

    parts, part_values = [], []
    for rows in torch.arange(len(x["rows"])).split([1, 4, 2]):
        part = {name: value[rows] for name, value in (x | grown).items()}
        parts.append(policy_loss(part, denominator=count))
        part_values.append(value_loss(part, denominator=float(count)))
    for figure, expected in zip(zip(*parts, strict=True), whole, strict=True):
        assert sum(figure).item() == pytest.approx(expected.item(), abs=1e-6)
    assert sum(part_values).item() == pytest.approx(whole_value.item(), abs=1e-6)
    total = sum(part.loss for part in parts) + sum(part_values)
    for found, expected in zip(torch.autograd.grad(total, list(grown.values())), gradients, strict=True):
        assert torch.allclose(found, expected, atol=1e-7)


def test_a_part_without_tokens_adds_nothing_when_the_denominator_is_given() -> None:
    x = kept_tail(PPO[2])
    nothing = torch.zeros_like(x["mask"])
    assert policy_loss(x, mask=nothing, denominator=5.0).loss.item() == 0
    assert value_loss(x, mask=nothing, denominator=5.0).item() == 0


def test_columns_of_padding_and_the_order_of_rows_change_nothing() -> None:
    x = kept_tail(PPO[3])
    names = ("new_logprobs", "logprobs", "advantages", "mask", "new_values", "values", "returns")
    flipped = {name: x[name].flip(0) for name in names}
    wide = {n: torch.nn.functional.pad(x[n], (0, 3), value=False if n == "mask" else 1e4) for n in names}
    for other in (flipped, wide):
        for found, expected in zip(policy_loss(other), policy_loss(x), strict=True):
            assert torch.allclose(found, expected, atol=1e-7)
        assert torch.allclose(value_loss(other), value_loss(x), atol=1e-7)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e4])
def test_gradients_are_finite_whatever_the_padding_holds(garbage: float) -> None:
    mask = torch.tensor([[True, True, False]])
    bad = torch.tensor([[0.1, -0.1, garbage]])
    logprobs, values = bad.clone().requires_grad_(), bad.clone().requires_grad_()
    clipped_surrogate(logprobs, bad / 2, bad, mask, 0.2).loss.backward()
    clipped_value_loss(values, bad / 2, bad / 3, mask, 0.2).backward()
    for leaf in (logprobs, values):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert leaf.grad[0, 2] == 0


def test_gradients_are_finite_in_bfloat16() -> None:
    x = {name: value.bfloat16() if value.is_floating_point() else value for name, value in kept_tail(PPO[2]).items()}
    logprobs, values = x["new_logprobs"].requires_grad_(), x["new_values"].requires_grad_()
    (policy_loss(x).loss + value_loss(x)).backward()
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()
    assert values.grad is not None
    assert values.grad.isfinite().all()
