"""What a finite set of prompts proves without assuming anything of the distribution: bounds that hold for every n.

Everything is computed in float64 with NumPy; SciPy is imported where it is needed. Resampled intervals, which are
narrower and hold approximately, are in `statistics`.

Sources: Clopper and Pearson, 1934; Massart, "The tight constant in the Dvoretzky-Kiefer-Wolfowitz inequality", 1990;
Anderson, "Confidence limits for the expected value of an arbitrary bounded random variable", 1969, carried over to CVaR
by Thomas and Learned-Miller, 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lightning_rarlhf.functional.checks import Array, as_values, as_vector, require_open_unit, require_tail
from lightning_rarlhf.functional.risk import tail_size
from lightning_rarlhf.functional.statistics import Interval, lower_tail_mean

Side = Literal["two-sided", "lower", "upper"]

_ALTERNATIVES: dict[Side, Literal["two-sided", "greater", "less"]] = {
    "two-sided": "two-sided",
    "lower": "greater",
    "upper": "less",
}

_ROUNDING = 1e-12
"""by which a bound may miss a claim that it would equal in exact arithmetic"""


class Band(NamedTuple):
    """A simultaneous confidence band for a cumulative distribution function F."""

    x: Array
    """[n], the values in ascending order"""
    low: Array
    """[n], F(x) is at least this"""
    high: Array
    """[n], F(x) is at most this"""


class QuantileBand(NamedTuple):
    """A simultaneous confidence band for the quantiles inf{x : F(x) ≥ level}, [k] each."""

    estimate: Array
    low: Array
    """-inf where nothing is known from below"""
    high: Array
    """inf where nothing is known from above"""


def dkw_band(values: ArrayLike, confidence: float = 0.95) -> Band:
    """Dvoretzky-Kiefer-Wolfowitz band: with this confidence it holds the whole distribution function at once.

    F_n ± √(ln(2m/(1 - confidence))/(2n)), cut to [0, 1] (Massart's constant). The m values of a row (completions of one
    prompt, training seeds) may depend on each other in any way: each column's own band holds with its m-th part of the
    error, hence all do together, and with them the band of their average.

    Args:
        values: [n], one value per prompt, or [n, m]; finite.
        confidence: in (0, 1).

    Returns:
        [n·m] each, of the average of the columns' distributions.

    Raises:
        ValueError: if `values` is empty, of another shape or not finite, or `confidence` is out of range.

    >>> dkw_band([0.0] * 200).low[-1].round(3)
    np.float64(0.904)
    """
    table = as_values("values", values)
    require_open_unit("confidence", confidence)
    x = np.sort(table, axis=None)
    reach = _band_reach(table, confidence)
    share = np.searchsorted(x, x, side="right") / x.size
    return Band(x, np.maximum(share - reach, 0.0), np.minimum(share + reach, 1.0))


def quantile_band(values: ArrayLike, levels: ArrayLike, confidence: float = 0.95) -> QuantileBand:
    """`dkw_band` turned into quantiles: with this confidence it holds the quantiles of all levels at once.

    Args:
        values: [n] or [n, m], as in `dkw_band`.
        levels: [k], in (0, 1]; 0.1 = the value that a tenth of the distribution does not exceed.
        confidence: in (0, 1).

    Returns:
        [k] each; an end is infinite where n prompts bound nothing.

    Raises:
        ValueError: if a level is out of range, or as `dkw_band` does.
    """
    at = as_vector(levels)
    if not (at.min() > 0 and at.max() <= 1):
        raise ValueError(f"levels: got {at.min():g} to {at.max():g}, expected more than 0 and at most 1")
    band = dkw_band(values, confidence)
    n = len(band.x)
    unknown = at <= _band_reach(as_values("values", values), confidence)  # so much may lie below all the values
    estimate = band.x[[tail_size(n, float(level)) - 1 for level in at]]
    low = np.where(unknown, -math.inf, band.x[np.searchsorted(band.high, at).clip(max=n - 1)])
    above = np.searchsorted(band.low, at)
    return QuantileBand(estimate, low, np.where(above < n, band.x[np.minimum(above, n - 1)], math.inf))


def _band_reach(table: Array, confidence: float) -> float:
    """Distance ε between F and F_n of [n] or [n, m] values that is exceeded somewhere with chance 1 - confidence."""
    return math.sqrt(math.log(2 * (table.size // len(table)) / (1 - confidence)) / (2 * len(table)))


def clopper_pearson(successes: int, n: int, confidence: float = 0.95, side: Side = "two-sided") -> Interval:
    """Exact binomial interval of a rate; never narrower than its confidence says.

    Args:
        successes: times that it happened, 0 to n.
        n: prompts, at least 1.
        confidence: coverage at least, in (0, 1).
        side: "upper" claims only "the rate is at most high" (low is 0), "lower" only "at least low" (high is 1).

    Raises:
        ValueError: if an argument is out of range.

    >>> round(clopper_pearson(0, 299, side="upper").high, 4)
    0.01
    """
    from scipy import stats

    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"successes, n: got {successes} of {n}, expected 0 to n of at least 1")
    require_open_unit("confidence", confidence)
    if side not in _ALTERNATIVES:
        raise ValueError(f"side: got {side!r}, expected one of {', '.join(map(repr, _ALTERNATIVES))}")
    ends = stats.binomtest(successes, n, alternative=_ALTERNATIVES[side]).proportion_ci(confidence, method="exact")
    return Interval(
        estimate=successes / n,
        low=float(ends.low),
        high=float(ends.high),
        confidence=confidence,
        n=n,
        method=f"Clopper-Pearson, {side}",
    )


def prompts_needed_for_rate(p: float, delta: float, *, failures: int = 0) -> int:
    """Fewest prompts that support "the rate is at most p, with confidence 1 - delta" when so many of them fail.

    The smallest n with P(Binomial(n, p) ≤ failures) ≤ delta, which is where the upper `clopper_pearson` end reaches p.

    Args:
        p: claimed rate, in (0, 1).
        delta: chance of a wrong claim, in (0, 1).
        failures: failures among the prompts that shall still be allowed.

    Raises:
        ValueError: if an argument is out of range, or p so small that no number of prompts supports it.

    >>> prompts_needed_for_rate(0.01, 0.05)
    299
    """
    return _fewest(lambda n: shows_rate(failures, n, p, delta), least=failures + 1, most=_MOST_TRIALS)


def shows_rate(failures: int, n: int, p: float, delta: float) -> bool:
    """Whether so many failures of `n` prompts support "the rate is at most p, with confidence 1 - delta".

    P(Binomial(n, p) ≤ failures) ≤ delta: the test that `clopper_pearson` inverts. Where both sides are equal, rounding
    error is not held against the claim (relative 1e-12).

    Args:
        failures: 0 to n.
        n: prompts, at least 1.
        p: claimed rate, in (0, 1).
        delta: chance of a wrong claim, in (0, 1).

    Raises:
        ValueError: if an argument is out of range.

    >>> shows_rate(0, 299, 0.01, 0.05), shows_rate(0, 298, 0.01, 0.05)
    (True, False)
    """
    from scipy import stats

    require_open_unit("p", p)
    require_open_unit("delta", delta)
    if failures < 0:
        raise ValueError(f"failures: got {failures}, expected at least 0")
    if n < max(1, failures):
        raise ValueError(f"n: got {n}, expected at least {max(1, failures)} prompts")
    return bool(stats.binom.cdf(failures, n, p) <= delta * (1 + _ROUNDING))


def anderson_cvar_bound(values: ArrayLike, alpha: float, *, minimum: float, confidence: float = 0.95) -> Interval:
    """Lower confidence bound of the lower-tail CVaR of scores that cannot be below `minimum`, valid for every n.

    One-sided DKW: with this confidence F ≤ F_n + ε everywhere, ε = √(ln(1/(1 - confidence))/(2n)). The worst
    distribution that this allows has mass ε at `minimum` and lacks as much at its upper end; its CVaR is the bound.
    It holds for (1/α) ∫_0^α q_p dp, hence also for E[R | R ≤ q_α], which is never less.

    Args:
        values: [n], one score per fresh prompt, finite.
        alpha: risk level in (0, 1].
        minimum: least score possible, known before looking at the values; a raw logit has none.
        confidence: in [0.5, 1), where the one-sided inequality is known to hold.

    Returns:
        `low` is the bound, `high` is inf.

    Raises:
        ValueError: if a value is below `minimum`, αn < 1, or an argument is out of range.
    """
    ordered = np.sort(as_vector(values))
    require_tail(len(ordered), alpha)
    _require_bounded(ordered, minimum, confidence)
    n = len(ordered)
    return Interval(
        estimate=float(lower_tail_mean(ordered, alpha)),
        low=_worst_cvar(ordered, alpha, minimum, _reach(n, confidence)),
        high=math.inf,
        confidence=confidence,
        n=n,
        method="Anderson/DKW, lower",
    )


def prompts_needed_for_cvar(
    values: ArrayLike, alpha: float, claim: float, *, minimum: float, confidence: float = 0.95
) -> int | None:
    """Fewest prompts with which `anderson_cvar_bound` reaches `claim`, if they score as `values` do.

    With the highest possible score as the only value this is the best case: no claim is had for fewer.

    Args:
        values: [n], scores whose distribution is taken for the true one, finite.
        alpha: risk level in (0, 1].
        claim: "CVaR is at least this".
        minimum: least score possible.
        confidence: in [0.5, 1).

    Returns:
        None if no number of prompts is enough: the CVaR of `values` itself is not above the claim.

    Raises:
        ValueError: if a value is below `minimum`, or an argument is out of range.

    >>> prompts_needed_for_cvar([1.0], 0.1, 0.5, minimum=0.0)
    600
    """
    ordered = np.sort(as_vector(values))
    tail_size(len(ordered), alpha)
    _require_bounded(ordered, minimum, confidence)
    if not _worst_cvar(ordered, alpha, minimum, 0.0) > claim:
        return None
    return _fewest(
        lambda n: shows_cvar(_worst_cvar(ordered, alpha, minimum, _reach(n, confidence)), claim),
        least=math.ceil(round(1 / alpha, 9)),
    )


def shows_cvar(bound: float, claim: float) -> bool:
    """Whether a lower bound of the CVaR supports "CVaR is at least `claim`".

    Where both are equal, rounding error is not held against the claim (1e-12 of it, or of 1 if that is more).
    """
    return bound >= claim - _ROUNDING * max(1.0, abs(claim))


def _worst_cvar(ordered: Array, alpha: float, minimum: float, reach: float) -> float:
    """CVaR of the distribution function min(1, F_n + reach), whose added mass is at `minimum`."""
    n = len(ordered)
    reach = min(alpha, reach)
    mass = np.diff(np.minimum(reach + np.arange(n + 1) / n, alpha))
    return float((reach * minimum + mass @ ordered) / alpha)


def _reach(n: int, confidence: float) -> float:
    """Distance ε between F and F_n that n prompts exceed, on one side, with chance 1 - confidence at most."""
    return math.sqrt(math.log(1 / (1 - confidence)) / (2 * n))


def _require_bounded(ordered: Array, minimum: float, confidence: float) -> None:
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence: got {confidence}, expected at least 0.5 and less than 1")
    if not ordered[0] >= minimum:
        raise ValueError(f"minimum: got {minimum}, expected at most the least value, {ordered[0]}")


_MOST_TRIALS = 2**62
"""scipy's binomial distribution counts in 64 bits"""


def _fewest(enough: Callable[[int], bool], least: int, most: float = math.inf) -> int:
    """Smallest n ≥ `least` that is enough, where more never hurts; ValueError where it may be above `most`."""
    low, high = least - 1, least
    while not enough(high):
        low, high = high, 2 * high
        if high > most:
            raise ValueError(f"no number of prompts below {most:.0e} supports the claim; claim less")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
