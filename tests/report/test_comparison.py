from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lightning_rarlhf.config import EvaluationConfig
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.functional.statistics import Interval, MeanSD, mean_interval
from lightning_rarlhf.records.results import Run, read_run
from lightning_rarlhf.report.comparison import Comparison, _with_seeds, compare
from lightning_rarlhf.report.methods import group
from tests.report.run_folders import scores_of, write_run


def comparison(folder: Path, **methods: list[np.ndarray]) -> Comparison:
    """Methods by label, each with the scores of its seeds."""
    runs = [
        (label, read_run(write_run(folder / f"{label}{number}", scores)))
        for label, seeds in methods.items()
        for number, scores in enumerate(seeds)
    ]
    return compare(group([run for _, run in runs], [label for label, _ in runs]), resamples=400)


def test_one_seed_has_the_interval_of_its_results_and_a_paired_difference(tmp_path: Path) -> None:
    a, b = scores_of(1), scores_of(2, gain=1.0)
    row = comparison(tmp_path, a=[a], b=[b]).cells["score_mean"]
    stored = read_run(tmp_path / "a0").metrics["score_mean"]
    assert row["a"].estimate == stored
    assert row["a"].difference is None
    expected = mean_interval(np.float32(b) - np.float32(a), resamples=400)
    found = row["b"].difference
    assert found is not None
    assert (found.estimate, found.low, found.high) == pytest.approx(
        (expected.estimate, expected.low, expected.high), abs=1e-6
    )
    assert found.excludes(0.0)


def test_every_metric_of_the_results_has_a_row(tmp_path: Path) -> None:
    found = comparison(tmp_path, a=[scores_of(1)], b=[scores_of(2)])
    assert set(found.cells) == set(read_run(tmp_path / "a0").metrics)
    assert found.unpaired == ()


def test_a_metric_that_one_method_lacks_is_missing_there_alone(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name, scores_of(seed))) for name, seed in (("a", 1), ("b", 2))]
    extra = dict(runs[1].metrics) | {"perplexity": runs[1].metrics["kl_mean"]}
    runs[1] = Run(**{**vars(runs[1]), "metrics": extra})
    found = compare(group(runs, ["a", "b"]), resamples=100)
    assert list(found.cells["perplexity"]) == ["b"]


def test_a_metric_without_numbers_per_prompt_has_no_difference_and_is_named(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name, scores_of(seed))) for name, seed in (("a", 1), ("b", 2))]
    runs = [
        Run(**{**vars(run), "metrics": dict(run.metrics) | {"perplexity": run.metrics["score_mean"]}}) for run in runs
    ]
    found = compare(group(runs, ["a", "b"]), resamples=100)
    assert found.cells["perplexity"]["b"].difference is None
    assert found.unpaired == ("perplexity",)


def test_seeds_are_mean_and_sd_and_widen_the_interval_by_hand(tmp_path: Path) -> None:
    seeds = [scores_of(seed, gain=gain) for seed, gain in ((1, 0.0), (2, 0.3), (3, 0.9))]
    cell = comparison(tmp_path, a=seeds).cells["score_mean"]["a"]
    means = [float(np.float32(each).mean()) for each in seeds]
    assert cell.seeds.mean == pytest.approx(np.mean(means), abs=1e-6)
    assert cell.seeds.sd == pytest.approx(np.std(means, ddof=1), abs=1e-6)
    within = mean_interval(np.mean([np.float32(each) for each in seeds], axis=0), resamples=400)
    prompts, between = ((within.high - within.low) / (2 * stats.norm.ppf(0.975))) ** 2, np.var(means, ddof=1) / 3
    freedom = (prompts + between) ** 2 / (between**2 / 2)
    reach = stats.t.ppf(0.975, freedom) * math.sqrt(prompts + between)
    assert cell.estimate.low == pytest.approx(np.mean(means) - reach, abs=1e-5)
    assert cell.estimate.high == pytest.approx(np.mean(means) + reach, abs=1e-5)


def test_seeds_that_disagree_make_a_clear_difference_unclear(tmp_path: Path) -> None:
    base = scores_of(1)
    lucky = comparison(tmp_path / "one", a=[base], b=[base + 1.0]).cells["score_mean"]["b"].difference
    seeds = [base + 2.5, base - 0.5 + 1e-3]
    spread = comparison(tmp_path / "two", a=[base], b=seeds).cells["score_mean"]["b"].difference
    assert lucky is not None
    assert spread is not None
    assert lucky.estimate == pytest.approx(spread.estimate, abs=1e-2)
    assert lucky.excludes(0.0)
    assert not spread.excludes(0.0)


def test_metrics_without_prompts_get_the_interval_of_the_seeds(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / str(seed), scores_of(seed))) for seed in range(3)]
    runs = [Run(**{**vars(run), "metrics": {"perplexity": run.metrics["score_mean"]}}) for run in runs]
    cell = compare(group(runs, ["a", "a", "a"]), resamples=100).cells["perplexity"]["a"]
    estimates = [run.metrics["perplexity"].estimate for run in runs]
    low, high = stats.t.interval(0.95, 2, np.mean(estimates), stats.sem(estimates))
    assert (cell.estimate.low, cell.estimate.high) == pytest.approx((low, high))


def test_a_tail_of_few_prompts_makes_no_claim(tmp_path: Path) -> None:
    row = comparison(tmp_path, a=[scores_of(1)], b=[scores_of(2, gain=50.0)]).cells
    assert row["cvar_1"]["b"].difference is not None
    assert not row["cvar_1"]["b"].difference.excludes(0.0)
    assert row["score_tail_lowest_1"]["b"].difference is not None
    assert row["score_tail_lowest_1"]["b"].difference.method == "none: fewer than 10 prompts"
    assert row["cvar_20"]["b"].difference is not None
    assert row["cvar_20"]["b"].difference.excludes(0.0)


def test_a_tail_of_few_prompts_makes_no_claim_over_seeds_either(tmp_path: Path) -> None:
    cells = comparison(tmp_path, rlhf=[scores_of(1), scores_of(2)]).cells
    assert math.isinf(cells["cvar_1"]["rlhf"].estimate.low)
    assert math.isinf(cells["cvar_1"]["rlhf"].estimate.high)
    assert math.isfinite(cells["cvar_20"]["rlhf"].estimate.low)


def test_a_metric_that_never_varies_is_no_difference(tmp_path: Path) -> None:
    made = comparison(tmp_path, sft=[scores_of(1), scores_of(2)], rlhf=[scores_of(3), scores_of(4)])
    cells = made.cells["repetition_rate"]
    assert cells["rlhf"].estimate.low == cells["rlhf"].estimate.high == cells["sft"].estimate.estimate
    assert cells["rlhf"].difference is not None
    assert not cells["rlhf"].difference.excludes(0.0)


def test_nothing_is_called_a_difference_more_often_than_its_confidence_says(tmp_path: Path) -> None:
    """40 pairs of equal policies: 95 % intervals exclude 0 in about 2 of them, in 7 or more once in 300 tries."""
    clear = 0
    for trial in range(40):
        a, b = scores_of(2 * trial + 1000), scores_of(2 * trial + 1001)
        config = EvaluationConfig(resamples=40, tail_levels=(), tail_thresholds=())
        runs = [
            read_run(write_run(tmp_path / f"{trial}{name}", scores, config=config))
            for name, scores in (("a", a), ("b", b))
        ]
        runs = [Run(**{**vars(run), "metrics": {"score_mean": run.metrics["score_mean"]}}) for run in runs]
        found = compare(group(runs, ["a", "b"]), resamples=200).cells["score_mean"]["b"].difference
        clear += found is not None and found.excludes(0.0)
    assert clear < 7


def test_too_few_resamples_are_refused(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, scores_of(1)))
    with pytest.raises(UserError, match="--resamples: got 10, expected at least 40"):
        compare(group([run], ["a"]), resamples=10)


@pytest.mark.parametrize(("sides", "seeds", "least"), [(1, 3, 0.92), (2, 2, 0.93), (2, 3, 0.93), (1, 2, 0.86)])
@pytest.mark.parametrize("ratio", [0.3, 1.0, 3.0, 10.0])
def test_coverage_over_seeds_is_what_the_documentation_says(sides: int, seeds: int, least: float, ratio: float) -> None:
    """Prompts have standard error 1, the mean of a side's seeds `ratio` times that; the truth is 0."""
    generator, experiments, reach = np.random.default_rng(0), 1000, stats.norm.ppf(0.975)
    held = 0
    for _ in range(experiments):
        drawn = ratio * math.sqrt(seeds) * generator.normal(size=(sides, seeds))
        at = generator.normal() + drawn.mean(axis=1).sum()
        prompts = Interval(estimate=at, low=at - reach, high=at + reach, confidence=0.95, n=500, method="bootstrap")
        across = [MeanSD(float(side.mean()), float(side.std(ddof=1)), seeds) for side in drawn]
        held += not _with_seeds(prompts, across).excludes(0.0)
    assert held / experiments >= least - 2 * math.sqrt(least * (1 - least) / experiments)
