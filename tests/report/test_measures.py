from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lightning_rarlhf.config import EvaluationConfig
from lightning_rarlhf.functional.statistics import mean_interval
from lightning_rarlhf.functional.tail_intervals import paired_cvar_interval
from lightning_rarlhf.records.results import Run, read_run
from lightning_rarlhf.report.measures import Measure, measure, paired_difference, seed_average
from tests.report.run_folders import PROMPTS, difficulty, scores_of, write_run

RESAMPLING = {"confidence": 0.9, "resamples": 300, "seed": 3}


def settings(k: int) -> EvaluationConfig:
    return EvaluationConfig(
        resamples=100, completions=k, tail_thresholds=(-0.5, 0.0), toxicity_of="reward", tail_levels=(0.05, 0.1, 0.2)
    )


@pytest.mark.parametrize("k", [1, 3])
def test_every_metric_that_the_generations_hold_is_computed_again(tmp_path: Path, k: int) -> None:
    scores = np.stack([scores_of(seed) for seed in range(k)], axis=1)
    kl = scores[:, 0] ** 2
    run = read_run(write_run(tmp_path, scores, kl=kl, config=settings(k)))
    prompt_score = run.columns["prompt_score"][:, 0]
    found = {name: measure(run, name, prompt_score) for name in run.metrics}
    assert {name for name, each in found.items() if each is None} == set()
    assert len(found) >= 17
    for name, each in found.items():
        assert each is not None
        assert each.estimate == pytest.approx(run.metrics[name].estimate, abs=1e-9)


def test_judges_are_measured_too(tmp_path: Path) -> None:
    config = EvaluationConfig(resamples=100, judges={"other": Named()})  # type: ignore[dict-item]
    run = read_run(write_run(tmp_path, scores_of(1), judges={"other": difficulty() * 3}, config=config))
    prompt_score = run.columns["prompt_score"][:, 0]
    for name in ("judge/other/score_mean", "judge/other/cvar_10"):
        found = measure(run, name, prompt_score)
        assert found is not None
        assert found.estimate == pytest.approx(run.metrics[name].estimate, abs=1e-9)


class Named:
    def identity(self) -> dict[str, str]:
        return {"reward": "other"}


def test_a_metric_that_is_no_number_of_the_prompts_is_not_measured(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, scores_of(1)))
    stored = dict(run.metrics) | {"perplexity": run.metrics["score_mean"]}
    other = Run(**{**vars(run), "metrics": stored})
    assert measure(other, "perplexity", run.columns["prompt_score"][:, 0]) is None


@pytest.mark.parametrize(
    "name",
    [
        "score_tail_le_low",
        "score_tail_lowest_few",
        "score_tail_lowest_0",
        "score_tail_lowest_400",
        "cvar_1.2.3",
        "cvar_.",
        "cvar_0",
        "cvar_300",
    ],
)
def test_a_metric_of_another_programs_name_is_shown_and_not_measured(tmp_path: Path, name: str) -> None:
    run = read_run(write_run(tmp_path, scores_of(1)))
    known = next(iter(run.metrics.values()))
    assert measure(replace(run, metrics={name: known}), name, run.columns["prompt_score"][:, 0]) is None


def test_a_stored_tail_of_less_than_one_prompt_is_not_compared(tmp_path: Path) -> None:
    scores = np.stack([scores_of(seed, n=6) for seed in range(4)], axis=1)
    run = read_run(write_run(tmp_path, scores, prompt_scores=difficulty(6)))
    stored = replace(
        run.metrics["score_mean"], estimate=float(np.sort(scores.astype(np.float32), axis=None)[:3].mean())
    )
    other = Run(**{**vars(run), "metrics": {**run.metrics, "cvar_10": stored}})
    assert measure(other, "cvar_10", run.columns["prompt_score"][:, 0]) is None


def test_a_stored_number_that_the_prompts_contradict_is_not_compared(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, scores_of(1)))
    wrong = Run(**{**vars(run), "metrics": {"score_mean": run.metrics["kl_mean"]}})
    assert measure(wrong, "score_mean", run.columns["prompt_score"][:, 0]) is None


def test_which_prompts_are_low_is_said_by_the_run_compared_with(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, scores_of(1)))
    turned = -run.columns["prompt_score"][:, 0]
    found = measure(run, "score_tail_le_0", turned)
    assert found is not None
    assert found.values[:, 0].tolist() == run.columns["score"][turned <= 0, 0].tolist()


def column(values: np.ndarray, alpha: float | None = None) -> Measure:
    return Measure(values=values.reshape(len(values), -1), alpha=alpha)


def test_the_difference_of_two_means_is_the_paired_bootstrap() -> None:
    a, b = scores_of(1, gain=0.5), scores_of(2)
    found = paired_difference([column(a)], [column(b)], **RESAMPLING)
    expected = mean_interval(a - b, **RESAMPLING)
    assert (found.estimate, found.low, found.high) == pytest.approx((expected.estimate, expected.low, expected.high))


def test_the_difference_of_two_tails_is_the_paired_interval() -> None:
    a, b = scores_of(1, gain=0.5), scores_of(2)
    found = paired_difference([column(a, 0.2)], [column(b, 0.2)], **RESAMPLING)
    assert found == paired_cvar_interval(a, b, 0.2, **RESAMPLING)


def test_tails_of_seeds_and_completions_by_brute_force() -> None:
    """Each run has its own tail of all its completions; seeds are averaged; prompts are drawn once for all."""
    after = [np.stack([scores_of(s), scores_of(s + 10)], axis=1) for s in (1, 2)]
    before = [np.stack([scores_of(s), scores_of(s + 10)], axis=1) for s in (3, 4, 5)]

    def tail(values: np.ndarray) -> float:
        return float(np.sort(values.ravel())[: int(0.2 * values.size)].mean())

    def statistic(rows: np.ndarray) -> float:
        return float(np.mean([tail(each[rows]) for each in after]) - np.mean([tail(each[rows]) for each in before]))

    found = paired_difference([column(a, 0.2) for a in after], [column(b, 0.2) for b in before], **RESAMPLING)
    assert found.estimate == pytest.approx(statistic(np.arange(PROMPTS)))
    generator = np.random.default_rng(0)
    brute = [statistic(generator.integers(PROMPTS, size=PROMPTS)) for _ in range(1000)]
    assert (found.low, found.high) == pytest.approx(np.quantile(brute, [0.05, 0.95]), abs=0.06)


def test_pairing_takes_out_what_the_prompts_have_in_common() -> None:
    common = 10 * difficulty()
    a, b = column(common + scores_of(1)), column(common + scores_of(2))
    paired = paired_difference([a], [b], **RESAMPLING)
    alone = seed_average([a], **RESAMPLING)
    assert paired.high - paired.low < 0.2 * (alone.high - alone.low)


def test_a_method_does_not_differ_from_itself() -> None:
    for alpha in (None, 0.2):
        found = paired_difference([column(scores_of(1), alpha)], [column(scores_of(1), alpha)], **RESAMPLING)
        assert found.estimate == 0
        assert not found.excludes(0.0)


def test_the_mean_over_seeds_averages_prompt_by_prompt() -> None:
    seeds = [scores_of(1), scores_of(2), scores_of(3)]
    found = seed_average([column(each) for each in seeds], **RESAMPLING)
    assert found.estimate == pytest.approx(np.mean(seeds))


def test_unknown_values_leave_out_their_prompt() -> None:
    a, b = scores_of(1), scores_of(2)
    a[:5], b[5:8] = np.nan, np.nan
    found = paired_difference([column(a)], [column(b)], **RESAMPLING)
    assert found.n == PROMPTS - 8
    assert found.estimate == pytest.approx((a - b)[8:].mean())
