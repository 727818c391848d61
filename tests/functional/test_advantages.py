from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_rarlhf.functional.advantages import episode_returns, explained_variance, gae, token_rewards

PPO = json.loads((Path(__file__).parents[1] / "fixtures" / "golden.json").read_text())["ppo"]
golden = pytest.mark.parametrize("case", PPO, ids=lambda c: f"B{c['B']}-T{c['T']}-tail{c['tail_size']}")


def tensors(case: dict) -> dict[str, Tensor]:
    found = {name: torch.tensor(value) for name, value in case["inputs"].items()}
    return found | {"response_mask": found["response_mask"].bool()}


def prefix_mask(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


def slow_gae(rewards: Tensor, values: Tensor, lengths: list[int], gamma: float, lam: float) -> Tensor:
    """Each advantage as the sum Σ_l (γλ)^l δ_{t+l} over what is left of its own row: O(T²), no recursion."""
    advantages = torch.zeros_like(rewards)
    for b, length in enumerate(lengths):
        for t in range(length):
            for s in range(t, length):
                beyond = values[b, s + 1] if s + 1 < length else 0.0
                advantages[b, t] += (gamma * lam) ** (s - t) * (rewards[b, s] + gamma * beyond - values[b, s])
    return advantages


@golden
def test_golden_rewards(case: dict) -> None:
    x = tensors(case)
    rewards = token_rewards(x["scores"], x["logprobs"], x["ref_logprobs"], x["response_mask"], case["kl_coef"])
    assert torch.allclose(rewards, torch.tensor(case["expect"]["rewards"]), atol=1e-6)


@golden
def test_golden_returns(case: dict) -> None:
    x = tensors(case)
    rewards = torch.tensor(case["expect"]["rewards"])
    _, returns = gae(rewards, x["values"], x["response_mask"], case["gamma"], case["lam"])
    assert torch.allclose(returns, torch.tensor(case["expect"]["returns"]), atol=2e-6)


def test_rewards_by_hand() -> None:
    mask = prefix_mask([2, 3, 0], 3)
    logprobs = torch.tensor([[-1.0, -2.0, math.nan], [-1.0, -1.0, -1.0], [math.inf, -1.0, 0.0]])
    ref_logprobs = torch.tensor([[-1.5, -1.0, 0.0], [-1.0, -3.0, -1.0], [-1.0, -1.0, math.nan]])
    rewards = token_rewards(torch.tensor([10.0, -4.0, 7.0]), logprobs, ref_logprobs, mask, kl_coef=0.1)
    assert torch.allclose(rewards, torch.tensor([[-0.05, 10.1, 0.0], [0.0, -0.2, -4.0], [0.0, 0.0, 0.0]]))


def test_kl_coef_scales_the_penalty_and_not_the_score() -> None:
    mask, logprobs, ref_logprobs = prefix_mask([2], 2), torch.tensor([[-1.0, -1.0]]), torch.tensor([[-2.0, -2.0]])
    for kl_coef in (0.0, 0.5, 2.0):
        rewards = token_rewards(torch.tensor([3.0]), logprobs, ref_logprobs, mask, kl_coef)
        assert rewards.tolist() == [[-kl_coef, 3 - kl_coef]]


def test_return_is_the_discounted_sum_of_the_counted_rewards() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, math.nan]])
    mask = prefix_mask([3, 2], 3)
    assert episode_returns(rewards, mask, gamma=0.5).tolist() == [1 + 1 + 1, 1 + 1]
    assert episode_returns(rewards, mask, gamma=1.0).tolist() == [7, 3]
    assert episode_returns(rewards, mask, gamma=0.0).tolist() == [1, 1]


def test_undiscounted_return_is_score_minus_penalised_kl() -> None:
    x = tensors(PPO[2])
    mask, kl_coef = x["response_mask"], 0.3
    rewards = token_rewards(x["scores"], x["logprobs"], x["ref_logprobs"], mask, kl_coef)
    kl = ((x["logprobs"] - x["ref_logprobs"]) * mask).sum(1)
    assert torch.allclose(episode_returns(rewards, mask, 1.0), x["scores"] - kl_coef * kl, atol=1e-5)


def test_gae_by_hand() -> None:
    rewards, values = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.5, 1.0, -1.0]])
    advantages, returns = gae(rewards, values, prefix_mask([3], 3), gamma=0.5, lam=0.5)
    last = 2 - -1.0
    middle = 0 + 0.5 * -1.0 - 1.0 + 0.25 * last
    first = 1 + 0.5 * 1.0 - 0.5 + 0.25 * middle
    assert advantages.tolist() == [[first, middle, last]]
    assert torch.equal(returns, advantages + values)


@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    lam=st.sampled_from([0.0, 0.95, 1.0]),
    seed=st.integers(0, 1000),
)
def test_gae_agrees_with_the_direct_sum(lengths: list[int], gamma: float, lam: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(len(lengths), 7, generator=generator)
    values = torch.randn(len(lengths), 7, generator=generator)
    advantages, returns = gae(rewards, values, prefix_mask(lengths, 7), gamma, lam)
    expected = slow_gae(rewards, values, lengths, gamma, lam)
    assert torch.allclose(advantages, expected, atol=1e-5)
    assert torch.allclose(returns, (expected + values) * prefix_mask(lengths, 7), atol=1e-5)


def test_lambda_one_gives_monte_carlo_returns() -> None:
    x = tensors(PPO[2])
    mask = x["response_mask"]
    rewards = torch.tensor(PPO[2]["expect"]["rewards"])
    _, returns = gae(rewards, x["values"], mask, gamma=1.0, lam=1.0)
    assert torch.allclose(returns[:, 0], episode_returns(rewards, mask, 1.0), atol=1e-5)


def test_lambda_zero_gives_temporal_differences() -> None:
    rewards, values = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 5.0]])
    advantages, _ = gae(rewards, values, prefix_mask([2], 2), gamma=0.9, lam=0.0)
    assert torch.allclose(advantages, torch.tensor([[1 + 0.9 * 5 - 3, 2 - 5.0]]))


@pytest.mark.parametrize("garbage", [0.0, 1e6, math.nan, math.inf])
def test_columns_of_padding_change_nothing(garbage: float) -> None:
    x = tensors(PPO[3])
    mask, case = x["response_mask"], PPO[3]

    def everything(extra: int) -> list[Tensor]:
        fill = {name: torch.full((case["B"], extra), garbage) for name in ("logprobs", "ref_logprobs", "values")}
        wide = {name: torch.cat([x[name].masked_fill(~mask, garbage), fill[name]], 1) for name in fill}
        wide_mask = torch.cat([mask, torch.zeros(case["B"], extra, dtype=torch.bool)], 1)
        rewards = token_rewards(x["scores"], wide["logprobs"], wide["ref_logprobs"], wide_mask, 0.2)
        advantages, returns = gae(rewards, wide["values"], wide_mask, 1.0, 0.95)
        return [t[:, : case["T"]] for t in (rewards, advantages, returns)] + [episode_returns(rewards, wide_mask, 0.9)]

    expected_rewards = torch.tensor(case["expect"]["rewards"])
    for narrow, wide in zip(everything(0), everything(5), strict=True):
        assert torch.equal(narrow, wide)
    assert torch.allclose(everything(5)[0], expected_rewards, atol=1e-6)


def test_rows_do_not_depend_on_each_other() -> None:
    x = tensors(PPO[3])
    order = torch.randperm(PPO[3]["B"], generator=torch.Generator().manual_seed(0))
    rewards = torch.tensor(PPO[3]["expect"]["rewards"])
    straight = gae(rewards, x["values"], x["response_mask"], 0.9, 0.95)
    shuffled = gae(rewards[order], x["values"][order], x["response_mask"][order], 0.9, 0.95)
    for before, after in zip(straight, shuffled, strict=True):
        assert torch.equal(before[order], after)


@pytest.mark.parametrize("width", [0, 1])
def test_responses_of_no_or_one_token(width: int) -> None:
    mask = torch.ones(2, width, dtype=torch.bool)
    rewards = token_rewards(torch.tensor([1.0, 2.0]), torch.zeros(2, width), torch.zeros(2, width), mask, 0.2)
    advantages, returns = gae(rewards, torch.full((2, width), 0.5), mask, 1.0, 0.95)
    assert returns.tolist() == [[1.0], [2.0]] if width else returns.shape == (2, 0)
    assert advantages.tolist() == [[0.5], [1.5]] if width else advantages.shape == (2, 0)
    assert episode_returns(rewards, mask, 1.0).tolist() == [1.0 * width, 2.0 * width]


def test_inputs_are_not_changed() -> None:
    x = tensors(PPO[3])
    rewards = torch.tensor(PPO[3]["expect"]["rewards"])
    before = rewards.clone(), x["values"].clone(), x["response_mask"].clone()
    gae(rewards, x["values"], x["response_mask"], 1.0, 0.95)
    for was, now in zip(before, (rewards, x["values"], x["response_mask"]), strict=True):
        assert torch.equal(was, now)


def test_explained_variance_by_hand() -> None:
    mask = prefix_mask([3, 1], 3)
    returns = torch.tensor([[1.0, 2.0, 3.0], [6.0, math.nan, 0.0]])
    assert explained_variance(returns, returns, mask).item() == 1
    assert explained_variance(torch.full_like(returns, 9.0), returns, mask).item() == 0
    assert explained_variance(returns / 2, returns, mask).item() == pytest.approx(0.75)
    assert explained_variance(-returns, returns, mask).item() == pytest.approx(-3)


def test_explained_variance_of_returns_that_do_not_vary_is_nan() -> None:
    assert explained_variance(torch.randn(2, 3), torch.ones(2, 3), prefix_mask([3, 3], 3)).isnan()


@pytest.mark.parametrize("value", [0.1, -1000.3, 1e-6])
def test_rounding_of_a_mean_is_no_variance_of_the_returns(value: float) -> None:
    mask = prefix_mask([7, 7, 5], 7)
    assert explained_variance(torch.randn(3, 7), torch.full((3, 7), value), mask).isnan()
    varied = torch.full((3, 7), value)
    varied[0, 0] *= 1.01
    assert explained_variance(varied, varied, mask).item() == pytest.approx(1)
