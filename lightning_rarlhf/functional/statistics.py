"""Intervals for evaluation: what a finite set of prompts lets one say.

A prompt is the unit that is resampled: rows of `values` are prompts, and whatever was measured on one prompt (several
completions, several scores, two methods) stays together. Everything is computed in float64 with NumPy; SciPy is
imported where it is needed.

Sources: Efron, "Better bootstrap confidence intervals", 1987 (BCa); Massart, "The tight constant in the Dvoretzky-
Kiefer-Wolfowitz inequality", 1990; Clopper and Pearson, 1934; Anderson, "Confidence limits for the expected value of an
arbitrary bounded random variable", 1969, carried over to CVaR by Thomas and Learned-Miller, 2019.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_rarlhf.functional.risk import tail_size

Array = NDArray[np.float64]
Statistic = Callable[..., Any]
"""From one sample, [n] or [n, m], to a number; or, if it has a parameter `axis`, from many samples stacked in front,
[r, n] or [r, n, m], to one number each, [r], by reducing that axis (and [m]). The second kind is much faster."""
Side = Literal["two-sided", "lower", "upper"]
Rows = NDArray[np.int64]
_OfRows = Callable[..., Array]

_ALTERNATIVES: dict[Side, Literal["two-sided", "greater", "less"]] = {
    "two-sided": "two-sided",
    "lower": "greater",
    "upper": "less",
}

LEAST_TAIL = 10
"""prompts that a tail must hold for its mean to be given an interval"""
_BATCH_ELEMENTS = 2_000_000
"""resampled values held at a time, whatever n is: 16 MB for each array of a resample"""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and the interval that covers the truth in the share `confidence` of all experiments."""

    estimate: float
    """the statistic of the values as they are"""
    low: float
    """lower end; -inf where only an upper end is claimed or the values are too few for one"""
    high: float
    """upper end; inf likewise"""
    confidence: float
    """nominal coverage, in (0, 1)"""
    n: int
    """prompts"""
    method: str
    """how the ends were found"""

    def excludes(self, value: float = 0.0) -> bool:
        """Whether `value` is outside: only an interval that excludes 0 makes a difference a difference."""
        return not self.low <= value <= self.high


class Band(NamedTuple):
    """A simultaneous confidence band for a cumulative distribution function F."""

    x: Array
    """[n], the values in ascending order"""
    low: Array
    """[n], F(x) is at least this"""
    high: Array
    """[n], F(x) is at most this"""


class MeanSD(NamedTuple):
    """Mean and sample standard deviation (n - 1) across n training seeds."""

    mean: float
    sd: float
    """NaN for a single seed"""
    n: int


def lower_tail_mean(values: Array, alpha: float, axis: int = -1) -> Array:
    """Lower-tail CVaR as a statistic over `axis`: mean of the ⌈αn⌉ smallest values, exactly that many under ties.

    >>> float(lower_tail_mean(np.array([4.0, 1.0, 3.0, 2.0]), alpha=0.5))
    1.5
    """
    size = tail_size(values.shape[axis], alpha)
    smallest = np.partition(values, size - 1, axis=axis).take(np.arange(size), axis=axis)
    return np.asarray(smallest.mean(axis=axis))


def bootstrap_interval(
    values: ArrayLike, statistic: Statistic, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """BCa bootstrap interval of any statistic, resampling prompts with replacement.

    BCa (bias-corrected, accelerated) corrects for a biased or skewed statistic, which the percentile method ignores.
    Where its correction is undefined (every resample lies on one side of the estimate) the percentile interval is
    given, and `method` says so. Values that are all equal give an interval of width 0: for a rate use
    `clopper_pearson`, which knows better.

    Args:
        values: [n] or [n, m], one row per prompt, finite.
        statistic: see `Statistic`.
        confidence: nominal coverage, in (0, 1).
        resamples: bootstrap samples, enough for one to lie beyond either end.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: if there are fewer than 2 prompts, values that are not finite, an argument out of range, or a
            statistic that does not give one finite number per sample.
    """
    table = _as_values("values", values, least=2)
    return _bca(_on_rows(table, statistic), table.shape, confidence=confidence, resamples=resamples, seed=seed)


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    statistic: Statistic,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """BCa bootstrap interval of statistic(a) - statistic(b), where row i of both was measured on the same prompt.

    Each resample draws its prompts once for both, so what the prompts have in common cancels out.

    Args:
        a: [n] or [n, m], one row per prompt, finite.
        b: shape of `a`, the other method on the same prompts in the same order.
        statistic: see `Statistic`.
        confidence: nominal coverage, in (0, 1).
        resamples: bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: if the shapes differ, or as `bootstrap_interval` does.
    """
    pair = _as_pair(a, b)
    on_first, on_second = (_on_rows(table, statistic) for table in pair)

    def difference(rows: Rows, axis: int = -1) -> Array:
        return on_first(rows, axis) - on_second(rows, axis)

    return _bca(difference, pair[0].shape, confidence=confidence, resamples=resamples, seed=seed)


def mean_interval(values: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """`bootstrap_interval` of the mean of `values` [n], with its other arguments and its errors.

    >>> mean_interval([1.0, 2.0, 3.0, 4.0]).estimate
    2.5
    """
    table = _as_vector(values, least=2)
    return bootstrap_interval(table, np.mean, confidence=confidence, resamples=resamples, seed=seed)


def cvar_interval(
    values: ArrayLike, alpha: float, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Studentised bootstrap interval of the lower-tail CVaR (see `lower_tail_mean`).

    Each resample is measured in its own standard error, which the CVaR's influence function min(x - VaR, 0)/α gives.
    In simulations of nominal 95 % intervals this covers 93 to 96 % from ten tail prompts on (scores of light and heavy
    tails), where BCa covers 90 to 93 %. Scores so coarse that a resample's tail is all ties have no standard error; BCa
    then steps in.

    Args:
        values: [n], one score per prompt, finite.
        alpha: risk level in (0, 1].
        confidence: nominal coverage, in (0, 1).
        resamples: bootstrap samples, enough for one to lie beyond either end.
        seed: of the resampling.

    Returns:
        both ends infinite where the tail holds fewer than `LEAST_TAIL` prompts: too few for any resampling.

    Raises:
        ValueError: if αn < 1, a tail that no prompt represents, or as `bootstrap_interval` does.
    """
    table = _as_vector(values, least=2)
    return _studentised_cvar([table], alpha, confidence=confidence, resamples=resamples, seed=seed)


def paired_cvar_interval(
    a: ArrayLike, b: ArrayLike, alpha: float, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """`cvar_interval` of CVaR(a) - CVaR(b), where row i of both was measured on the same prompt.

    Args:
        a: [n], one score per prompt, finite.
        b: [n], the other method's scores on the same prompts in the same order.
        alpha: risk level in (0, 1].
        confidence: nominal coverage, in (0, 1).
        resamples: bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: if the shapes differ, or as `cvar_interval` does.
    """
    pair = _as_pair(a, b)
    if pair[0].ndim != 1:
        raise ValueError(f"a: got shape {list(pair[0].shape)}, expected [n]")
    return _studentised_cvar(pair, alpha, confidence=confidence, resamples=resamples, seed=seed)


def quantile_interval(values: ArrayLike, level: float, *, confidence: float = 0.95) -> Interval:
    """Exact interval of one quantile from order statistics: no assumption about the distribution.

    The number of values below the quantile is binomial; either end errs with at most half of 1 - confidence.

    Args:
        values: [n], finite.
        level: of the quantile, in (0, 1); 0.1 = the value that a tenth of the distribution does not exceed.
        confidence: coverage at least, in (0, 1).

    Returns:
        estimate inf{x : F(x) ≥ level}; an end is infinite where n is too small for a finite one.

    Raises:
        ValueError: if `values` is empty, not [n] or not finite, or an argument is out of range.
    """
    from scipy import stats

    ordered = np.sort(_as_vector(values))
    _require_open_unit("level", level)
    _require_open_unit("confidence", confidence)
    n = len(ordered)
    count = np.arange(n)
    error = (1 - confidence) / 2
    lower = int((stats.binom.cdf(count, n, level) <= error).sum())
    upper = int((stats.binom.sf(count, n, level) > error).sum())
    return Interval(
        estimate=float(ordered[tail_size(n, level) - 1]),
        low=float(ordered[lower - 1]) if lower else -math.inf,
        high=float(ordered[upper]) if upper < n else math.inf,
        confidence=confidence,
        n=n,
        method="order statistics",
    )


def dkw_band(values: ArrayLike, confidence: float = 0.95) -> Band:
    """Dvoretzky-Kiefer-Wolfowitz band: with this confidence it holds the whole distribution function at once.

    F_n ± √(ln(2/(1 - confidence))/(2n)), cut to [0, 1] (Massart's constant).

    Args:
        values: [n], finite.
        confidence: in (0, 1).

    Raises:
        ValueError: if `values` is empty, not [n] or not finite, or `confidence` is out of range.
    """
    x = np.sort(_as_vector(values))
    _require_open_unit("confidence", confidence)
    reach = math.sqrt(math.log(2 / (1 - confidence)) / (2 * len(x)))
    share = np.searchsorted(x, x, side="right") / len(x)
    return Band(x, np.maximum(share - reach, 0.0), np.minimum(share + reach, 1.0))


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
    _require_open_unit("confidence", confidence)
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
        ValueError: if an argument is out of range.

    >>> prompts_needed_for_rate(0.01, 0.05)
    299
    """
    from scipy import stats

    _require_open_unit("p", p)
    _require_open_unit("delta", delta)
    if failures < 0:
        raise ValueError(f"failures: got {failures}, expected at least 0")
    allowed = delta * (1 + 1e-12)  # so that rounding error costs no prompt where the two are equal
    enough = failures + 1
    while stats.binom.cdf(failures, enough, p) > allowed:
        enough *= 2
    least = failures
    while enough - least > 1:
        middle = (least + enough) // 2
        least, enough = (least, middle) if stats.binom.cdf(failures, middle, p) <= allowed else (middle, enough)
    return enough


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
    ordered = np.sort(_as_vector(values))
    _require_tail(len(ordered), alpha)
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence: got {confidence}, expected at least 0.5 and less than 1")
    if not ordered[0] >= minimum:
        raise ValueError(f"minimum: got {minimum}, expected at most the least value, {ordered[0]}")
    n = len(ordered)
    reach = min(alpha, math.sqrt(math.log(1 / (1 - confidence)) / (2 * n)))
    mass = np.diff(np.minimum(reach + np.arange(n + 1) / n, alpha))
    return Interval(
        estimate=float(lower_tail_mean(ordered, alpha)),
        low=float((reach * minimum + mass @ ordered) / alpha),
        high=math.inf,
        confidence=confidence,
        n=n,
        method="Anderson/DKW, lower",
    )


def mean_sd(seeds: ArrayLike) -> MeanSD:
    """Mean and sample standard deviation of one figure over training seeds.

    Args:
        seeds: [n], the figure of each seed, finite.

    Raises:
        ValueError: if `seeds` is empty, not [n] or not finite.

    >>> mean_sd([1.0, 2.0, 3.0])
    MeanSD(mean=2.0, sd=1.0, n=3)
    """
    values = _as_vector(seeds)
    sd = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return MeanSD(float(values.mean()), sd, len(values))


def _bca(of_rows: _OfRows, shape: tuple[int, ...], *, confidence: float, resamples: int, seed: int) -> Interval:
    """Bootstrap over row numbers."""
    from scipy import stats

    _require_resamples(resamples, confidence)
    with warnings.catch_warnings():
        # SciPy warns and answers NaN where BCa is undefined; that case is dealt with below.
        warnings.simplefilter("ignore")
        result = stats.bootstrap(
            (np.arange(shape[0]),),
            of_rows,
            n_resamples=resamples,
            batch=_batch_size(shape),
            vectorized=True,
            confidence_level=confidence,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    low, high = result.confidence_interval
    method = "BCa bootstrap"
    if not (math.isfinite(low) and math.isfinite(high)):
        low, high = np.quantile(result.bootstrap_distribution, _levels(confidence))
        method = "percentile bootstrap"
    estimate = float(of_rows(np.arange(shape[0])))
    return Interval(
        estimate=estimate, low=float(low), high=float(high), confidence=confidence, n=shape[0], method=method
    )


def _studentised_cvar(
    tables: Sequence[Array], alpha: float, *, confidence: float, resamples: int, seed: int
) -> Interval:
    """CVaR of the first table, less that of the second where there is one."""
    n = len(tables[0])
    _require_tail(n, alpha)
    _require_resamples(resamples, confidence)
    estimate, error = _cvar_and_error(tables, alpha)
    low, high, method = -math.inf, math.inf, f"none: fewer than {LEAST_TAIL} prompts in the tail"
    if tail_size(n, alpha) >= LEAST_TAIL:
        parts = [
            _cvar_and_error([table[rows] for table in tables], alpha)
            for rows in _resampled_rows(n, resamples, _batch_size((n, len(tables))), seed)
        ]
        estimates, errors = (np.concatenate(part) for part in zip(*parts, strict=True))
        if error == 0 or (errors == 0).any():
            return _cvar_bca(tables, alpha, confidence=confidence, resamples=resamples, seed=seed)
        below, above = np.quantile((estimates - estimate) / errors, _levels(confidence))
        low, high, method = float(estimate - above * error), float(estimate - below * error), "studentised bootstrap"
    return Interval(estimate=float(estimate), low=low, high=high, confidence=confidence, n=n, method=method)


def _cvar_bca(tables: Sequence[Array], alpha: float, *, confidence: float, resamples: int, seed: int) -> Interval:
    def of_rows(rows: Rows, axis: int = -1) -> Array:
        return _cvar_and_error([table[np.moveaxis(rows, axis, -1)] for table in tables], alpha)[0]

    shape = (len(tables[0]), len(tables))
    return _bca(of_rows, shape, confidence=confidence, resamples=resamples, seed=seed)


def _cvar_and_error(tables: Sequence[Array], alpha: float) -> tuple[Array, Array]:
    """CVaR of the first table [..., n] (less the second's) and its standard error from the influences, [...] each."""
    n = tables[0].shape[-1]
    size = tail_size(n, alpha)
    estimate, influence = np.zeros(()), np.zeros(())
    for sign, table in zip((1, -1), tables, strict=False):
        value_at_risk = np.partition(table, size - 1, axis=-1)[..., size - 1 : size]
        shortfall = np.minimum(table - value_at_risk, 0.0) * (n / size)
        estimate = estimate + sign * (value_at_risk[..., 0] + shortfall.mean(axis=-1))
        influence = influence + sign * shortfall
    return estimate, influence.std(axis=-1) / math.sqrt(n)


def _resampled_rows(n: int, resamples: int, batch: int, seed: int) -> Iterator[Rows]:
    generator = np.random.default_rng(seed)
    for done in range(0, resamples, batch):
        yield generator.integers(n, size=(min(batch, resamples - done), n))


def _batch_size(shape: tuple[int, ...]) -> int:
    """Resamples to hold at a time, so that memory does not grow with the number of prompts."""
    return max(1, _BATCH_ELEMENTS // math.prod(shape))


def _levels(confidence: float) -> tuple[float, float]:
    return (1 - confidence) / 2, (1 + confidence) / 2


def _on_rows(table: Array, statistic: Statistic) -> _OfRows:
    """The statistic as a function of row numbers [..., n], giving [...]."""
    takes_axis = _takes_axis(statistic)

    def of_rows(rows: Rows, axis: int = -1) -> Array:
        rows = np.moveaxis(rows, axis, -1)
        if takes_axis:
            result = np.asarray(statistic(table[rows], axis=rows.ndim - 1), dtype=np.float64)
        else:
            each = [statistic(table[sample]) for sample in rows.reshape(-1, rows.shape[-1])]
            result = np.asarray(each, dtype=np.float64)
            result = result.reshape(rows.shape[:-1] + result.shape[1:])
        if result.shape != rows.shape[:-1] or not np.isfinite(result).all():
            expected = f"one finite number for each of {math.prod(rows.shape[:-1])} samples"
            raise ValueError(f"statistic: got shape {list(result.shape)} or NaN, expected {expected}")
        return result

    return of_rows


def _takes_axis(statistic: Statistic) -> bool:
    try:
        return "axis" in inspect.signature(statistic).parameters
    except ValueError:  # some built-ins have no signature
        return False


def _as_values(name: str, values: ArrayLike, *, least: int = 1) -> Array:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim not in (1, 2) or table.size == 0:
        raise ValueError(f"{name}: got shape {list(table.shape)}, expected [n] or [n, m] with at least one value")
    if len(table) < least:
        raise ValueError(f"{name}: got {len(table)} rows, expected at least {least} prompts")
    if not np.isfinite(table).all():
        raise ValueError(
            f"{name}: got {int((~np.isfinite(table)).sum())} values that are NaN or infinite, expected none"
        )
    return table


def _as_pair(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    first, second = _as_values("a", a, least=2), _as_values("b", b, least=2)
    if first.shape != second.shape:
        raise ValueError(f"b: got shape {list(second.shape)}, expected {list(first.shape)}: the same prompts as in a")
    return first, second


def _as_vector(values: ArrayLike, *, least: int = 1) -> Array:
    table = _as_values("values", values, least=least)
    if table.ndim != 1:
        raise ValueError(f"values: got shape {list(table.shape)}, expected [n]")
    return table


def _require_open_unit(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name}: got {value}, expected more than 0 and less than 1")


def _require_resamples(resamples: int, confidence: float) -> None:
    _require_open_unit("confidence", confidence)
    least = math.ceil(round(2 / (1 - confidence), 6))
    if resamples < least:
        raise ValueError(f"resamples: got {resamples}, expected at least {least} for confidence {confidence}")


def _require_tail(n: int, alpha: float) -> None:
    tail_size(n, alpha)
    if alpha * n < 1 - 1e-12:
        raise ValueError(
            f"alpha: got {alpha} of {n} values, less than one; expected at least {math.ceil(1 / alpha)} values"
        )
