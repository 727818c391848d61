from __future__ import annotations

import functools
import math
import statistics as standard
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_rarlhf.functional import statistics as under_test
from lightning_rarlhf.functional.risk import cvar
from lightning_rarlhf.functional.statistics import (
    Interval,
    bootstrap_interval,
    is_small,
    lower_tail_mean,
    mean_interval,
    mean_sd,
)
from tests.functional import coverage
from tests.functional.coverage import MEANS

FEW = {"resamples": 200}


def normal(n: int, seed: int = 0, *, m: int | None = None) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=n if m is None else (n, m))


def ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def width(interval: Interval) -> float:
    return interval.high - interval.low


# Interval


@pytest.mark.parametrize(("low", "high", "excludes"), [(-1, 1, False), (0.1, 1, True), (-2, -1, True), (0, 1, False)])
def test_an_interval_excludes_what_is_outside(low: float, high: float, excludes: bool) -> None:
    interval = Interval(estimate=0.0, low=low, high=high, confidence=0.95, n=9, method="by hand")
    assert interval.excludes() is excludes
    assert interval.excludes(5.0)


# Bootstrap


def test_bca_agrees_with_scipy_on_the_values_themselves() -> None:
    values = np.exp(normal(80))
    found = bootstrap_interval(values, np.mean, confidence=0.9, resamples=300, seed=7)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=300, confidence_level=0.9, method="BCa", rng=np.random.default_rng(7)
    ).confidence_interval
    assert ends(found) == pytest.approx(tuple(expected), abs=1e-12)
    assert (found.estimate, found.n, found.confidence) == (pytest.approx(values.mean()), 80, 0.9)
    assert found.method == "BCa bootstrap"


def test_interval_of_the_mean_is_close_to_students() -> None:
    values = normal(400, seed=3)
    expected = stats.t.interval(0.95, 399, loc=values.mean(), scale=stats.sem(values))
    assert ends(mean_interval(values)) == pytest.approx(expected, abs=0.01)


def test_a_statistic_of_one_sample_gives_the_same_as_one_over_an_axis() -> None:
    values = normal(60)
    fast = bootstrap_interval(values, np.median, **FEW)
    slow = bootstrap_interval(values, lambda sample: float(np.median(sample)), **FEW)
    assert fast == slow


def test_partial_functions_and_built_ins_serve_as_statistics() -> None:
    values = normal(60)
    tail = functools.partial(lower_tail_mean, alpha=0.5)
    assert bootstrap_interval(values, tail, **FEW).estimate == pytest.approx(np.sort(values)[:30].mean())
    assert bootstrap_interval(values, max, **FEW).estimate == values.max()


def test_rows_of_several_values_stay_together() -> None:
    values = normal(50, m=2)

    def slope(sample: np.ndarray) -> float:
        return float(np.polyfit(sample[:, 0], sample[:, 1], 1)[0])

    found = bootstrap_interval(np.c_[values[:, 0], 3 * values[:, 0]], slope, **FEW)
    assert (found.estimate, found.low, found.high) == pytest.approx((3, 3, 3))
    assert width(bootstrap_interval(values, slope, **FEW)) > 0.1


def test_a_statistic_of_several_values_over_an_axis() -> None:
    values = normal(50, m=3)
    found = bootstrap_interval(values, lambda sample, axis: sample.max(axis=-1).mean(axis=axis), **FEW)
    assert found == bootstrap_interval(values.max(axis=1), np.mean, **FEW)


def test_the_seed_decides_and_nothing_else_does() -> None:
    values = normal(60)
    np.random.seed(1)  # noqa: NPY002 - the global generator must not matter
    first = bootstrap_interval(values, np.mean, seed=1, **FEW)
    np.random.seed(2)  # noqa: NPY002
    again = bootstrap_interval(values, np.mean, seed=1, **FEW)
    other = bootstrap_interval(values, np.mean, seed=2, **FEW)
    assert first == again
    assert ends(first) != ends(other)


@pytest.mark.parametrize(
    "interval",
    [
        mean_interval,
        functools.partial(bootstrap_interval, statistic=np.std),
    ],
)
def test_confidence_and_resamples_matter(interval) -> None:
    values = normal(100)
    assert width(interval(values, confidence=0.5, **FEW)) < width(interval(values, confidence=0.9, **FEW))
    assert ends(interval(values, resamples=200)) != ends(interval(values, resamples=400))
    with pytest.raises(ValueError, match=r"resamples: got 39, expected at least 40 for confidence 0\.95"):
        interval(values, resamples=39)
    assert interval(values, resamples=40).confidence == 0.95
    for confidence in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match=f"confidence: got {confidence}, expected more than 0 and less than 1"):
            interval(values, confidence=confidence)


def test_the_order_of_the_prompts_hardly_matters() -> None:
    values = normal(300)
    assert ends(mean_interval(values)) == pytest.approx(ends(mean_interval(values[::-1])), abs=0.02)


def test_where_bca_is_undefined_the_percentile_interval_is_named() -> None:
    # No resample of 40 distinct values has 40 distinct ones again: every one is on the same side of the estimate.
    found = bootstrap_interval(np.arange(40.0), lambda sample: len(np.unique(sample)), **FEW)
    assert found.method == "percentile bootstrap"
    assert found.estimate == 40
    expected = 40 * (1 - (1 - 1 / 40) ** 40)
    assert expected - 8 < found.low < expected < found.high < 40


def test_equal_values_give_a_width_of_zero() -> None:
    values = np.full(40, 0.1)
    found = mean_interval(values, **FEW)
    assert (found.estimate, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


def test_lists_and_tensors_are_values_too() -> None:
    values = normal(30).astype(np.float32)
    assert mean_interval(torch.from_numpy(values), **FEW) == mean_interval(values.tolist(), **FEW)


def test_memory_is_bounded_whatever_the_number_of_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "_BATCH_ELEMENTS", 1000)
    seen: list[int] = []

    def mean(sample: np.ndarray, axis: int) -> np.ndarray:
        seen.append(sample.size)
        return sample.mean(axis=axis)

    found = bootstrap_interval(normal(300), mean, **FEW)
    assert max(seen) <= 1000
    assert sum(seen) >= 300 * 200
    assert ends(found) == pytest.approx(ends(mean_interval(normal(300), **FEW)), abs=0.05)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "values: got 1 rows, expected at least 2 prompts"),
        ([], r"values: got shape \[0\]"),
        (np.zeros((2, 2, 2)), r"values: got shape \[2, 2, 2\], expected \[n\] or \[n, m\]"),
        ([1.0, math.nan, math.inf], "values: got 2 values that are NaN or infinite"),
    ],
)
def test_values_without_an_interval_are_refused(values, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, np.mean)
    with pytest.raises(ValueError, match=message):
        mean_interval(values)


@pytest.mark.parametrize("statistic", [np.std, np.mean])
def test_a_statistic_that_leaves_a_column_is_refused(statistic) -> None:
    with pytest.raises(ValueError, match="statistic: got shape .* expected one finite number for each of"):
        bootstrap_interval(normal(20, m=2), statistic, **FEW)


def test_a_statistic_that_gives_nan_or_a_list_is_refused() -> None:
    for statistic in (lambda sample: math.nan, lambda sample: [1.0, 2.0]):
        with pytest.raises(ValueError, match="expected one finite number"):
            bootstrap_interval(normal(20), statistic, **FEW)


def test_conveniences_want_one_value_per_prompt() -> None:
    with pytest.raises(ValueError, match=r"got shape \[20, 2\], expected \[n\]"):
        mean_interval(normal(20, m=2))


# CVaR


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.integers(1, 100).map(lambda n: n / 100))
def test_tail_mean_agrees_with_the_training_time_cvar(row: list[float], alpha: float) -> None:
    expected = cvar(torch.tensor(row, dtype=torch.float64), alpha).item()
    assert lower_tail_mean(np.array(row), alpha) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_tail_mean_over_an_axis(axis: int) -> None:
    values = normal(12, m=7)
    expected = [lower_tail_mean(line, 0.3) for line in np.moveaxis(values, axis, -1)]
    assert lower_tail_mean(values, 0.3, axis=axis) == pytest.approx(np.array(expected))


@pytest.mark.parametrize("shape", MEANS)
def test_nominal_95_percent_intervals_of_the_mean_cover_93_percent_and_more(shape: str) -> None:
    assert coverage.of_mean(shape, n=500, experiments=300) >= coverage.least(0.93, experiments=300)


@pytest.mark.parametrize("n", [10, 25, 50])
def test_intervals_of_few_prompts_cover_unless_the_values_are_skewed(n: int) -> None:
    assert coverage.of_mean("normal", n, experiments=500) >= 0.93
    assert coverage.of_mean("skewed (log-normal)", n, experiments=500) >= 0.87  # what is_small warns of


def test_an_interval_of_few_prompts_says_so() -> None:
    assert is_small(mean_interval(normal(199)))
    assert not is_small(mean_interval(normal(200)))
    assert not is_small(mean_interval(np.ones(5)))
    assert not is_small(replace(mean_interval(normal(9)), low=-math.inf, high=math.inf))  # there is none


def test_the_studentised_interval_of_a_mean_agrees_with_a_loop() -> None:
    values = normal(30)
    rows = np.random.default_rng(3).integers(30, size=(200, 30))
    t = [(values[row].mean() - values.mean()) / values[row].std() for row in rows]
    found = mean_interval(values, confidence=0.9, resamples=200, seed=3)
    low, high = (values.mean() - np.quantile(t, level, method="weibull") * values.std() for level in (0.95, 0.05))
    assert ends(found) == pytest.approx((low, high), abs=1e-12)


def test_exceptions_too_few_to_be_resampled_get_no_interval() -> None:
    values = np.zeros(200)
    values[:9] = 1.0
    found = mean_interval(values, **FEW)
    assert (found.estimate, *ends(found)) == (0.045, -math.inf, math.inf)
    assert found.method == "none: fewer than 10 prompts differ"
    values[9] = 1.0
    assert math.isfinite(width(mean_interval(values, **FEW)))


# Seeds


def test_mean_and_deviation_over_seeds_agree_with_the_standard_library() -> None:
    figures = [1.26, 1.31, 1.19, 1.4]
    found = mean_sd(figures)
    assert found == pytest.approx((standard.mean(figures), standard.stdev(figures), 4))
    single = mean_sd([2.0])
    assert (single.mean, single.n) == (2.0, 1)
    assert math.isnan(single.sd)
    with pytest.raises(ValueError, match=r"got shape \[0\]"):
        mean_sd([])


def test_a_mean_that_one_prompt_makes_has_no_ends_rather_than_impossible_ones():
    """As toxicities of 119 harmless texts and one that is not: a mean of probabilities never was 922."""
    values = 1 / (1 + np.exp(np.random.default_rng(0).normal(12, 1, 120)))
    values[3] = 0.5
    found = mean_interval(values)
    assert (found.estimate, found.low, found.high) == (pytest.approx(values.mean()), -np.inf, np.inf)
    assert "a few prompts" in found.method
    values[:20] = 0.5
    assert 0 < mean_interval(values).low < mean_interval(values).high < 0.5
