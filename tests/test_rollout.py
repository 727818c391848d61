from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_rarlhf.config import PPOConfig
from lightning_rarlhf.data_types import PPOBatch, PromptBatch, Rollout, Samples
from lightning_rarlhf.errors import RewardError
from lightning_rarlhf.rollout import prepare_ppo_batch, score
from lightning_rarlhf.stepping.guards import require_finite

GOLDEN = json.loads((Path(__file__).parent / "fixtures" / "golden.json").read_text())["ppo"]
CODE = PPOConfig(rank_by="lambda_return", ties="keep")


def rollout_of(inputs: dict) -> Rollout:
    mask = torch.tensor(inputs["response_mask"]).bool()
    rows, width = mask.shape
    batch = PromptBatch(
        input_ids=torch.zeros(rows, 3, dtype=torch.int64),
        attention_mask=torch.ones(rows, 3, dtype=torch.bool),
        index=torch.arange(rows),
        prompts=("p",) * rows,
        labels=torch.ones(rows, dtype=torch.int64),
        source_scores=torch.zeros(rows),
    )
    samples = Samples(
        batch=batch,
        # each row's tokens name the row, so that a mix-up of rows shows
        sequences=torch.arange(rows)[:, None].repeat(1, 3 + width),
        response_mask=mask,
        responses=("r",) * rows,
    )
    tensors = {name: torch.tensor(inputs[name]) for name in ("scores", "logprobs", "ref_logprobs", "values")}
    return Rollout(samples=samples, entropy=torch.zeros(rows, width), **tensors)


def prepare(case: dict, config: PPOConfig, rollout: Rollout | None = None):
    level = case["tail_size"] / case["B"]
    return prepare_ppo_batch(
        rollout or rollout_of(case["inputs"]), risk_level=level, kl_coef=case["kl_coef"], config=config
    )


@pytest.mark.parametrize("case", GOLDEN)
def test_the_authors_code_is_reproduced_by_its_options(case):
    tail, kept, report = prepare(case, CODE)
    expected = case["expect"]
    rows = torch.tensor(expected["kept"]).nonzero().squeeze(1)
    assert kept.tolist() == rows.tolist()
    mask = tail.response_mask
    whitened = torch.tensor(expected["whitened_advantages_kept"])[rows]
    torch.testing.assert_close(tail.advantages[mask], whitened[mask], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(tail.returns[mask], torch.tensor(expected["returns"])[rows][mask], atol=2e-6, rtol=1e-5)
    assert report.kl_mean == pytest.approx(expected["kl_mean_over_kept"], abs=1e-5)
    assert report.tail_size == len(rows)


@pytest.mark.parametrize("case", GOLDEN)
def test_the_paper_keeps_exactly_the_rows_of_lowest_return(case):
    rollout = rollout_of(case["inputs"])
    tail, kept, report = prepare(case, PPOConfig(), rollout)
    mask = rollout.response_mask
    kl = ((rollout.logprobs - rollout.ref_logprobs) * mask).sum(1)
    returns = rollout.scores - case["kl_coef"] * kl  # γ = 1: the return is the score less β times the episode's KL
    lowest = sorted(range(case["B"]), key=lambda row: float(returns[row]))[: case["tail_size"]]
    assert kept.tolist() == sorted(lowest)
    assert tail.sequences[:, 0].tolist() == sorted(lowest)
    assert report.cvar == pytest.approx(float(returns[lowest].mean()), abs=1e-5)
    assert report.var == pytest.approx(float(returns[lowest].max()), abs=1e-5)
    assert report.return_mean == pytest.approx(float(returns.mean()), abs=1e-5)
    assert report.score_mean == pytest.approx(float(rollout.scores[lowest].mean()), abs=1e-5)


def test_each_statistic_ranks_differently():
    case = {**GOLDEN[2], "kl_coef": 3.0}
    keeps = {name: prepare(case, PPOConfig(rank_by=name))[1].tolist() for name in ("return", "lambda_return", "score")}
    assert len({tuple(rows) for rows in keeps.values()}) == 3
    scores = torch.tensor(case["inputs"]["scores"])
    assert keeps["score"] == sorted(scores.argsort()[: case["tail_size"]].tolist())


def test_risk_level_1_keeps_every_row():
    rollout = rollout_of(GOLDEN[1]["inputs"])
    tail, kept, _ = prepare_ppo_batch(rollout, risk_level=1.0, kl_coef=0.2, config=PPOConfig())
    assert kept.tolist() == list(range(len(rollout)))
    assert len(tail) == len(rollout)


def test_row_order_does_not_change_what_is_kept():
    case = GOLDEN[2]
    rollout = rollout_of(case["inputs"])
    order = torch.randperm(len(rollout), generator=torch.Generator().manual_seed(3))
    straight, _, _ = prepare(case, PPOConfig(), rollout)
    shuffled, _, _ = prepare(case, PPOConfig(), rollout.select(order))
    by_name = shuffled.select(shuffled.sequences[:, 0].argsort())
    assert torch.equal(by_name.sequences, straight.sequences)
    torch.testing.assert_close(by_name.advantages, straight.advantages, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padding", [7.0, float("nan")])
def test_extra_padding_columns_change_nothing(padding):
    """Also where they hold no number: nothing reads them, and the guard lets them pass."""
    case = GOLDEN[3]
    rollout = rollout_of(case["inputs"])
    wide = {
        name: [row + [padding if name != "response_mask" else 0.0] * 2 for row in values]
        if name != "scores"
        else values
        for name, values in case["inputs"].items()
    }
    require_finite(rollout_of(wide))
    assert torch.equal(rollout_of(wide).kl, rollout.kl)
    plain, kept, report = prepare(case, PPOConfig(), rollout)
    padded, kept_wide, report_wide = prepare(case, PPOConfig(), rollout_of(wide))
    assert kept.tolist() == kept_wide.tolist()
    width = plain.advantages.shape[1]
    torch.testing.assert_close(padded.advantages[:, :width], plain.advantages, atol=1e-6, rtol=1e-6)
    assert report == report_wide


def test_ties_are_cut_to_the_tail_or_kept_whole():
    case = GOLDEN[1]
    inputs = {**case["inputs"], "scores": [0.0] * case["B"], "ref_logprobs": case["inputs"]["logprobs"]}
    exact = prepare(case, PPOConfig(), rollout_of(inputs))[1]
    every = prepare(case, PPOConfig(ties="keep"), rollout_of(inputs))[1]
    assert exact.tolist() == list(range(case["tail_size"]))
    assert every.tolist() == list(range(case["B"]))


@pytest.mark.parametrize("ties", ["exact", "keep"])
@pytest.mark.parametrize(
    "scores", [[3.0, -1.5, 0.25, -7.0, 2.0, 9.0, 1.0, 4.0], [0.0, 2.0, 2.0, 2.0, 0.0, 2.0, 5.0, 2.0]]
)
@pytest.mark.parametrize("level", [0.05, 0.3, 0.5, 1.0])
def test_the_reported_var_is_the_papers_and_the_highest_that_is_kept(scores, ties, level):
    case = next(case for case in GOLDEN if case["B"] == len(scores))
    rollout = rollout_of({**case["inputs"], "scores": scores})
    config = PPOConfig(rank_by="score", ties=ties)
    _, kept, report = prepare_ppo_batch(rollout, risk_level=level, kl_coef=case["kl_coef"], config=config)
    assert report.var == min(x for x in scores if sum(y <= x for y in scores) / len(scores) >= level)
    assert report.var == max(scores[row] for row in kept)


def test_advantages_are_raw_without_whitening():
    case = GOLDEN[1]
    raw = prepare(case, PPOConfig(whiten_advantages=False))[0]
    white = prepare(case, PPOConfig())[0]
    mask = raw.response_mask
    assert white.advantages[mask].mean().abs() < 1e-5
    centred = raw.advantages[mask] - raw.advantages[mask].mean()
    torch.testing.assert_close(white.advantages[mask], centred / raw.advantages[mask].std(), atol=1e-4, rtol=1e-4)


def test_minibatches_cover_every_row_once_in_even_parts():
    tail, _, _ = prepare(GOLDEN[2], PPOConfig())
    parts = list(tail.minibatches(3, torch.Generator().manual_seed(0)))
    assert [len(part) for part in parts] == [3, 2, 2]
    assert sorted(row for part in parts for row in part.sequences[:, 0].tolist()) == tail.sequences[:, 0].tolist()
    assert all(isinstance(part, PPOBatch) for part in parts)


def test_a_minibatch_larger_than_the_tail_is_the_tail():
    tail, _, _ = prepare(GOLDEN[2], PPOConfig())
    assert [len(part) for part in tail.minibatches(128, torch.Generator())] == [7]


def test_a_reward_of_the_wrong_length_is_refused():
    with pytest.raises(RewardError, match=r"returned shape \[3\], expected \[8\]"):
        score(lambda prompts, responses: torch.zeros(3), rollout_of(GOLDEN[0]["inputs"]).samples)


@pytest.mark.parametrize("field", ["scores", "logprobs", "values"])
def test_wrong_shapes_are_refused_where_the_batch_is_made(field):
    inputs = {**GOLDEN[0]["inputs"], field: GOLDEN[0]["inputs"][field][:-1]}
    with pytest.raises(ValueError, match=rf"{field}: expected torch.float32"):
        rollout_of(inputs)
