from __future__ import annotations

import math
import statistics as standard

import numpy as np
import pytest

from lightning_rarlhf.functional import statistics, tail_intervals
from lightning_rarlhf.functional.statistics import LEAST_TAIL, lower_tail_mean, mean_interval
from lightning_rarlhf.functional.tail_intervals import (
    _cvar_and_error,
    cvar_contrast_interval,
    cvar_interval,
    paired_cvar_interval,
)
from tests.functional import coverage
from tests.functional.coverage import TAILS
from tests.functional.test_statistics import FEW, ends, normal, width


def test_studentised_interval_agrees_with_a_loop() -> None:
    values, alpha, resamples = normal(50), 0.3, 200

    def tail_and_error(sample: np.ndarray) -> tuple[float, float]:
        ordered = np.sort(sample)
        influence = [min(x - ordered[14], 0.0) / alpha for x in ordered]
        return ordered[:15].mean(), standard.pstdev(influence) / math.sqrt(50)

    rows = np.random.default_rng(5).integers(50, size=(resamples, 50))
    estimate, error = tail_and_error(values)
    t = [(e - estimate) / s for e, s in (tail_and_error(values[row]) for row in rows)]
    found = cvar_interval(values, alpha, confidence=0.9, resamples=resamples, seed=5)
    assert found.estimate == pytest.approx(estimate, abs=1e-12)
    assert found.low == pytest.approx(estimate - np.quantile(t, 0.95, method="weibull") * error, abs=1e-10)
    assert found.high == pytest.approx(estimate - np.quantile(t, 0.05, method="weibull") * error, abs=1e-10)
    assert (found.method, found.n, found.confidence) == ("studentised bootstrap", 50, 0.9)


def test_the_standard_error_agrees_with_the_jackknife() -> None:
    """Each prompt left out once, with all its completions."""
    scores = np.random.default_rng(3).normal(size=(400, 2))
    _, error = _cvar_and_error([scores], [1.0], 0.1)
    left_out = np.array([lower_tail_mean(np.delete(scores, row, axis=0).ravel(), 0.1) for row in range(400)])
    assert float(error) == pytest.approx(np.sqrt(399 * left_out.var()), rel=0.02)


def test_paired_cvar_is_the_difference_of_the_two() -> None:
    a, b = normal(80, 1), normal(80, 2)
    found = paired_cvar_interval(a, b, 0.25, **FEW)
    assert found.estimate == pytest.approx(lower_tail_mean(a, 0.25) - lower_tail_mean(b, 0.25))
    assert found.low < found.estimate < found.high
    zeros = paired_cvar_interval(a, np.zeros(80), 0.25, **FEW)
    assert ends(zeros) == pytest.approx(ends(cvar_interval(a, 0.25, **FEW)))


def test_alpha_matters_and_one_is_the_mean() -> None:
    values = normal(200)
    assert cvar_interval(values, 0.1, **FEW).high < cvar_interval(values, 0.5, **FEW).low
    whole = cvar_interval(values, 1.0)
    assert whole.estimate == pytest.approx(values.mean())
    assert ends(whole) == pytest.approx(ends(mean_interval(values)), abs=0.02)


@pytest.mark.parametrize("m", [None, 3])
def test_a_share_that_is_no_whole_number_of_scores_is_rounded_up(m: int | None) -> None:
    """A tenth of 101 scores is the mean of 11 of them, of 303 that of 31; as `lower_tail_mean` has it."""
    values = normal(101, 4, m=m) if m else normal(101, 4)
    found = cvar_interval(values, 0.1, **FEW)
    assert found.method == "studentised bootstrap"
    assert found.estimate == pytest.approx(np.sort(values.ravel())[: 31 if m else 11].mean(), abs=1e-12)
    assert found.estimate == pytest.approx(float(lower_tail_mean(values.ravel(), 0.1)), abs=1e-12)


def test_scores_that_tie_throughout_the_tail_fall_back_on_bca() -> None:
    values = np.repeat([0.0, 1.0], [11, 89])
    found = cvar_interval(values, 0.12, **FEW)
    assert found.estimate == pytest.approx(1 / 12)
    assert found.method in {"BCa bootstrap", "percentile bootstrap"}
    assert 0 <= found.low <= found.estimate <= found.high <= 1


def test_a_tail_of_few_prompts_has_no_finite_interval() -> None:
    values = normal(100)
    few, enough = (cvar_interval(values, size / 100, **FEW) for size in (LEAST_TAIL - 1, LEAST_TAIL))
    assert ends(few) == (-math.inf, math.inf)
    assert few.method == "none: fewer than 10 prompts in the tail"
    assert few.estimate == pytest.approx(np.sort(values)[: LEAST_TAIL - 1].mean())
    assert math.isfinite(width(enough))


def test_a_tail_of_ties_with_few_exceptions_has_no_finite_interval() -> None:
    """A rule's score, 0 or -1, of 500 prompts: how rare five failures are no bootstrap knows."""
    few, enough = (cvar_interval(-1.0 * (np.arange(500) < count), 0.1, **FEW) for count in (5, LEAST_TAIL))
    assert ends(few) == (-math.inf, math.inf)
    assert few.method == "none: fewer than 10 prompts below the VaR"
    assert few.estimate == pytest.approx(-0.1)
    assert math.isfinite(width(enough))
    none = cvar_interval(-1.0 * (np.arange(500) < 200), 0.1, **FEW)
    assert (none.low, none.high, none.method) == (-1, -1, "none: resamples tell no spread")


def test_a_tail_that_few_prompts_fill_with_their_completions_has_no_finite_interval() -> None:
    values = normal(100, 1, m=25)
    assert math.isfinite(width(cvar_interval(values, 0.1, **FEW)))
    values[:8] -= 10  # 200 of the 250 scores of the tail
    values[8:] = 0.0
    assert ends(cvar_interval(values, 0.1, **FEW)) == (-math.inf, math.inf)


@pytest.mark.parametrize(("changed", "better"), [(6, 5.0), (6, 0.1)])
def test_a_difference_that_few_prompts_make_is_none(changed: int, better: float) -> None:
    """Of two policies that answer nearly every prompt alike; whether the VaR itself moves or not."""
    before, after = normal(200), np.sort(normal(200))
    before.sort()
    after[:changed] += better
    found = paired_cvar_interval(after, before, 0.1, **FEW)
    assert found.estimate > 0
    assert not found.excludes(0.0)
    assert ends(found) == (-math.inf, math.inf)
    after[:LEAST_TAIL] += better
    assert math.isfinite(width(paired_cvar_interval(after, before, 0.1, **FEW)))


def test_a_difference_of_a_run_to_itself_is_not_said_to_be_of_equal_scores() -> None:
    values = normal(200)
    found = paired_cvar_interval(values, values, 0.1, **FEW)
    assert (found.estimate, found.low, found.high, found.method) == (0, 0, 0, "none: resamples tell no spread")


def test_a_tail_that_no_prompt_represents_is_refused() -> None:
    for call in (
        lambda n: cvar_interval(normal(n), 0.1),
        lambda n: paired_cvar_interval(normal(n), normal(n), 0.1),
    ):
        with pytest.raises(
            ValueError, match=r"alpha: got 0\.1 of 9 values, less than one; expected at least 10 values"
        ):
            call(9)
        assert math.isfinite(call(10).estimate)
    with pytest.raises(ValueError, match=r"got 1\.5, expected more than 0 and at most 1"):
        cvar_interval(normal(10), 1.5)


def test_what_the_prompts_have_in_common_cancels_out() -> None:
    prompt = 5 * normal(200, 1)
    a, b = prompt + 0.3 * normal(200, 2) + 0.5, prompt + 0.3 * normal(200, 3)
    together, apart = paired_cvar_interval(a, b, 0.2, **FEW), paired_cvar_interval(a, np.roll(b, 1), 0.2, **FEW)
    assert together.excludes()
    assert not apart.excludes()
    assert width(together) < width(apart) / 4
    assert paired_cvar_interval(b, a, 0.2, **FEW).estimate == pytest.approx(-together.estimate)
    assert ends(paired_cvar_interval(a, a, 0.2, **FEW)) == (0, 0)


def test_pairs_of_different_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tables: got 19 and 20 rows, expected the same prompts in each"):
        paired_cvar_interval(normal(20), normal(19), 0.5)
    with pytest.raises(ValueError, match="values: got 1 values that are NaN"):
        paired_cvar_interval(normal(2), [1.0, math.nan], 0.5)


def test_settings_matter() -> None:
    a, b = normal(60, 1), normal(60, 2)
    base = paired_cvar_interval(a, b, 0.5, **FEW)
    assert width(paired_cvar_interval(a, b, 0.5, confidence=0.5, **FEW)) < width(base)
    others = paired_cvar_interval(a, b, 0.5, resamples=400), paired_cvar_interval(a, b, 0.5, seed=1, **FEW)
    assert ends(others[0]) != ends(base) != ends(others[1])


def test_completions_share_one_tail_and_prompts_stay_together() -> None:
    values = normal(60, 1, m=3)
    found = cvar_interval(values, 0.25, **FEW)
    assert found.estimate == pytest.approx(np.sort(values.ravel())[:45].mean())
    assert found.n == 60
    assert ends(cvar_interval(values[:, :1], 0.25, **FEW)) == ends(cvar_interval(values[:, 0], 0.25, **FEW))
    copies = cvar_interval(np.repeat(normal(60), 3).reshape(60, 3), 0.25, **FEW)
    assert ends(copies) == pytest.approx(ends(cvar_interval(normal(60), 0.25, **FEW)))  # a copy is no evidence


def test_a_contrast_is_the_weighted_sum_of_the_tails() -> None:
    tables = [normal(50, 1, m=2), normal(50, 2), normal(50, 3, m=4)]
    found = cvar_contrast_interval(tables, [0.5, 0.5, -1.0], 0.2, **FEW)
    tails = [float(lower_tail_mean(table.ravel(), 0.2)) for table in tables]
    assert found.estimate == pytest.approx((tails[0] + tails[1]) / 2 - tails[2])
    assert found.low < found.estimate < found.high


@pytest.mark.parametrize("name", TAILS)
def test_nominal_95_percent_intervals_cover_93_percent_and_more(name: str) -> None:
    assert coverage.least(0.93, experiments=200) <= coverage.of_tail(name, n=500, experiments=200) <= 0.99


def test_the_smallest_tails_that_get_an_interval_are_covered_too() -> None:
    """Ten tail prompts of a hundred."""
    assert coverage.of_tail("CVaR10", n=100, experiments=500) >= 0.93


def test_memory_is_bounded_whatever_the_number_of_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_BATCH_ELEMENTS", 1000)
    drawn: list[int] = []
    inner = tail_intervals._cvar_and_error
    monkeypatch.setattr(
        tail_intervals, "_cvar_and_error", lambda tables, *rest: drawn.append(tables[0].size) or inner(tables, *rest)
    )
    assert width(cvar_interval(normal(300), 0.1, **FEW)) > 0
    assert max(drawn) <= 1000
    assert sum(drawn) == 300 + 300 * 200
