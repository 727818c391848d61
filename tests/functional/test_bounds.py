from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lightning_rarlhf.functional.bounds import (
    anderson_cvar_bound,
    clopper_pearson,
    dkw_band,
    prompts_needed_for_cvar,
    prompts_needed_for_rate,
    quantile_band,
    shows_rate,
)
from lightning_rarlhf.functional.statistics import Interval, lower_tail_mean


def normal(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=n)


def ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


# Quantiles


def test_dkw_band_by_hand() -> None:
    band = dkw_band([3.0, 1.0, 2.0, 2.0], confidence=0.5)
    reach = math.sqrt(math.log(4) / 8)
    assert band.x.tolist() == [1, 2, 2, 3]
    assert band.low.tolist() == pytest.approx([0, 0.75 - reach, 0.75 - reach, 1 - reach])
    assert band.high.tolist() == pytest.approx([0.25 + reach, 1, 1, 1])
    assert (dkw_band(normal(50), 0.99).high - dkw_band(normal(50), 0.9).high).max() > 0


def test_dkw_band_holds_the_whole_distribution_as_often_as_promised() -> None:
    generator, held = np.random.default_rng(0), 0
    for _ in range(2000):
        band = dkw_band(generator.uniform(size=60), confidence=0.8)
        # F is x itself. Between two values the band stays while F rises to the next value.
        rise = np.append(band.x[1:], 1.0)
        held += bool((band.low <= band.x).all() and (rise <= band.high).all())
    assert 0.78 <= held / 2000 <= 0.9


@pytest.mark.parametrize("n", [5, 50, 1000])
@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_dkw_band_is_no_narrower_and_hardly_wider_than_kolmogorovs_exact_law(n: int, confidence: float) -> None:
    band = dkw_band(np.arange(float(n)), confidence)
    exact = stats.kstwo.cdf(1 - band.low[-1], n)  # the distance that the band allows
    assert confidence <= exact < confidence + 0.7 * (1 - confidence)


def test_a_band_of_dependent_columns_is_wider_and_holds_their_average() -> None:
    generator, held, prompts = np.random.default_rng(1), 0, 60
    assert dkw_band(normal(60).repeat(3).reshape(60, 3)).high[0] == pytest.approx(
        1 / 60 + math.sqrt(math.log(6 / 0.05) / 120)
    )
    for _ in range(500):  # the worst case: completions of a prompt all score the same
        band = dkw_band(generator.uniform(size=prompts).repeat(3).reshape(prompts, 3), confidence=0.8)
        rise = np.append(band.x[1:], 1.0)
        held += bool((band.low <= band.x).all() and (rise <= band.high).all())
    assert held / 500 >= 0.8


@pytest.mark.parametrize("shape", [(400,), (200, 2)])
def test_quantile_band_is_the_band_read_from_the_other_axis(shape: tuple[int, ...]) -> None:
    values = normal(400).round(1).reshape(shape)  # with ties
    levels = np.arange(1, 101) / 100
    band, found = dkw_band(values), quantile_band(values, levels)
    assert found.estimate.tolist() == np.quantile(values, levels, method="inverted_cdf").tolist()
    reach = math.sqrt(math.log(2 * values.size / len(values) / 0.05) / (2 * len(values)))
    for level, low, high in zip(levels, found.low, found.high, strict=True):
        assert low == (-math.inf if level <= reach else min(band.x[band.high >= level]))
        assert high == min(band.x[band.low >= level], default=math.inf)
    assert np.isinf(found.low).sum() == math.floor(100 * reach)


def test_quantile_band_holds_all_quantiles_at_once_as_often_as_promised() -> None:
    generator, held, levels = np.random.default_rng(2), 0, np.arange(1, 100) / 100
    for _ in range(500):
        found = quantile_band(generator.uniform(size=100), levels, confidence=0.8)
        held += bool((found.low <= levels).all() and (levels <= found.high).all())
    assert 0.78 <= held / 500 <= 0.95


def test_quantile_band_of_too_few_values_knows_nothing() -> None:
    found = quantile_band([3.0, 1.0], [0.3, 0.7, 1.0])
    assert (found.low.tolist(), found.high.tolist()) == ([-math.inf] * 2 + [1.0], [math.inf] * 3)
    for levels in ([0.0, 0.5], [0.5, 1.01]):
        with pytest.raises(ValueError, match="levels: got .*, expected more than 0 and at most 1"):
            quantile_band([1.0, 2.0], levels)


# Rates


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (7, 500)])
def test_clopper_pearson_agrees_with_beta_quantiles(successes: int, n: int) -> None:
    def lower(error: float) -> float:
        return stats.beta.ppf(error, successes, n - successes + 1) if successes else 0.0

    def upper(error: float) -> float:
        return stats.beta.ppf(1 - error, successes + 1, n - successes) if successes < n else 1.0

    expected = {"two-sided": (lower(0.05), upper(0.05)), "lower": (lower(0.1), 1.0), "upper": (0.0, upper(0.1))}
    for side, pair in expected.items():
        found = clopper_pearson(successes, n, 0.9, side)
        assert ends(found) == pytest.approx(pair, abs=1e-9)
        assert (found.estimate, found.n, found.method) == (successes / n, n, f"Clopper-Pearson, {side}")


def test_clopper_pearson_never_covers_less_than_it_says() -> None:
    n, kept = 25, [clopper_pearson(k, 25, 0.95) for k in range(26)]
    for p in np.linspace(0.01, 0.99, 99):
        missed = sum(stats.binom.pmf(k, n, p) for k in range(n + 1) if kept[k].excludes(p))
        assert missed <= 0.05 + 1e-9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 5), "successes, n: got -1 of 5"),
        ((6, 5), "successes, n: got 6 of 5"),
        ((0, 0), "successes, n: got 0 of 0"),
        ((1, 5, 1.0), "confidence: got 1.0"),
        ((1, 5, 0.9, "both"), "side: got 'both', expected one of 'two-sided', 'lower', 'upper'"),
    ],
)
def test_rates_that_cannot_be_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clopper_pearson(*arguments)


@pytest.mark.parametrize(("p", "delta"), [(0.01, 0.05), (0.05, 0.05), (0.5, 0.25), (0.1, 0.81), (0.9, 0.5)])
@pytest.mark.parametrize("failures", [0, 1, 4])
def test_prompts_needed_agree_with_a_search(p: float, delta: float, failures: int) -> None:
    def chance(n: int) -> float:
        return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(failures + 1))

    expected = next(n for n in range(failures + 1, 2000) if chance(n) <= delta + 1e-12)
    assert prompts_needed_for_rate(p, delta, failures=failures) == expected


@pytest.mark.parametrize("failures", [0, 3])
def test_as_many_prompts_as_needed_support_the_claim_and_one_fewer_do_not(failures: int) -> None:
    n = prompts_needed_for_rate(0.02, 0.1, failures=failures)
    assert clopper_pearson(failures, n, 0.9, "upper").high <= 0.02
    assert clopper_pearson(failures, n - 1, 0.9, "upper").high > 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0.0, 0.1, 0), "p: got 0.0"), ((0.1, 1.0, 0), "delta: got 1.0"), ((0.1, 0.1, -1), "failures: got -1")],
)
def test_claims_that_cannot_be_are_refused(arguments: tuple[float, float, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prompts_needed_for_rate(arguments[0], arguments[1], failures=arguments[2])


def test_a_claim_that_no_number_of_prompts_supports_is_refused():
    assert prompts_needed_for_rate(1e-15, 0.05) > 10**15
    with pytest.raises(ValueError, match="no number of prompts"):
        prompts_needed_for_rate(1e-30, 0.05)


# A bound that holds for every n


def envelope_cvar(values: np.ndarray, alpha: float, minimum: float, confidence: float) -> float:
    """CVaR of the distribution function min(1, F_n + ε), by integrating its quantile function numerically."""
    n, points = len(values), 400_000
    reach = math.sqrt(math.log(1 / (1 - confidence)) / (2 * n))
    p = (np.arange(points) + 0.5) / points * alpha
    rank = np.clip(np.ceil((p - reach) * n).astype(int), 1, n)
    return float(np.where(p <= reach, minimum, np.sort(values)[rank - 1]).mean())


@pytest.mark.parametrize(
    ("n", "alpha", "minimum", "confidence"),
    [(200, 0.1, 0.0, 0.95), (200, 0.5, 0.0, 0.95), (200, 1.0, -1.0, 0.95), (1000, 0.2, 0.0, 0.99), (37, 0.3, 0.0, 0.5)],
)
def test_anderson_bound_agrees_with_an_integral(n: int, alpha: float, minimum: float, confidence: float) -> None:
    values = np.random.default_rng(0).uniform(size=n)
    found = anderson_cvar_bound(values, alpha, minimum=minimum, confidence=confidence)
    assert found.low == pytest.approx(envelope_cvar(values, alpha, minimum, confidence), abs=1e-5)
    assert found.estimate == pytest.approx(lower_tail_mean(values, alpha))
    assert minimum <= found.low < found.estimate
    assert (found.high, found.n, found.confidence) == (math.inf, n, confidence)


def test_every_setting_of_the_bound_matters() -> None:
    values = np.random.default_rng(0).uniform(size=500)
    base = anderson_cvar_bound(values, 0.2, minimum=0.0).low
    assert anderson_cvar_bound(values, 0.4, minimum=0.0).low > base
    assert anderson_cvar_bound(values, 0.2, minimum=-1.0).low < base
    assert anderson_cvar_bound(values, 0.2, minimum=0.0, confidence=0.99).low < base
    assert anderson_cvar_bound(np.tile(values, 4), 0.2, minimum=0.0).low > base


def test_a_tail_within_the_band_gives_the_minimum() -> None:
    assert anderson_cvar_bound(np.ones(50), 0.1, minimum=-3.0).low == pytest.approx(-3)


def test_anderson_bound_holds_as_often_as_promised() -> None:
    generator, truth = np.random.default_rng(0), 0.25  # CVaR50 of uniform scores
    held = [
        anderson_cvar_bound(generator.uniform(size=80), 0.5, minimum=0.0, confidence=0.8).low <= truth
        for _ in range(1000)
    ]
    assert np.mean(held) >= 0.8


def test_a_tail_that_no_prompt_represents_is_refused() -> None:
    with pytest.raises(ValueError, match=r"alpha: got 0\.1 of 9 values, less than one; expected at least 10 values"):
        anderson_cvar_bound(normal(9), 0.1, minimum=-9.0)
    assert math.isfinite(anderson_cvar_bound(normal(10), 0.1, minimum=-9.0).low)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"minimum": 0.5}, r"minimum: got 0\.5, expected at most the least value, 0\.0"),
        ({"minimum": math.nan}, "minimum: got nan"),
        ({"confidence": 0.4}, r"confidence: got 0\.4, expected at least 0\.5 and less than 1"),
        ({"confidence": 1.0}, r"confidence: got 1\.0"),
    ],
)
def test_bounds_that_would_not_hold_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        anderson_cvar_bound(np.linspace(0, 1, 50), 0.5, **({"minimum": 0.0} | change))


@pytest.mark.parametrize(("alpha", "claim", "minimum"), [(0.1, 0.5, 0.0), (1.0, 0.9, -1.0), (0.3, -0.5, -1.0)])
@pytest.mark.parametrize("confidence", [0.5, 0.99])
def test_prompts_needed_for_a_tail_in_the_best_case(
    alpha: float, claim: float, minimum: float, confidence: float
) -> None:
    """All scores are 1: the bound is (ε·minimum + (α - ε))/α, hence ε ≤ α (1 - claim)/(1 - minimum)."""
    reach = alpha * (1 - claim) / (1 - minimum)
    expected = math.ceil(math.log(1 / (1 - confidence)) / (2 * reach**2) - 1e-9)
    found = prompts_needed_for_cvar([1.0], alpha, claim, minimum=minimum, confidence=confidence)
    assert found == max(expected, math.ceil(1 / alpha))
    if found * alpha > 1:
        low = anderson_cvar_bound(np.ones(found), alpha, minimum=minimum, confidence=confidence).low
        assert low >= claim - 1e-9


def test_prompts_needed_for_a_tail_by_repeating_the_values() -> None:
    values = np.random.default_rng(0).uniform(size=100)
    needed = prompts_needed_for_cvar(values, 0.5, 0.2, minimum=0.0)
    assert needed is not None
    repeats = needed / 100
    assert anderson_cvar_bound(np.tile(values, math.ceil(repeats)), 0.5, minimum=0.0).low >= 0.2
    assert anderson_cvar_bound(np.tile(values, math.floor(repeats)), 0.5, minimum=0.0).low < 0.2


def test_no_number_of_prompts_shows_what_the_values_do_not_have() -> None:
    assert prompts_needed_for_cvar([1.0], 0.1, 1.0, minimum=0.0) is None
    assert prompts_needed_for_cvar([0.0, 1.0], 1.0, 0.6, minimum=0.0) is None
    with pytest.raises(ValueError, match="minimum: got 2.0"):
        prompts_needed_for_cvar([1.0], 0.1, 0.5, minimum=2.0)
    with pytest.raises(ValueError, match="confidence: got 0.1"):
        prompts_needed_for_cvar([1.0], 0.1, 0.5, minimum=0.0, confidence=0.1)


@pytest.mark.parametrize(("failures", "n", "least"), [(6, 5, 6), (0, 0, 1)])
def test_more_failures_than_prompts_and_no_prompts_are_refused(failures: int, n: int, least: int) -> None:
    with pytest.raises(ValueError, match=rf"n: got {n}, expected at least {least} prompts"):
        shows_rate(failures, n, 0.1, 0.05)
