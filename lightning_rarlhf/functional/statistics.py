"""Bootstrap intervals for evaluation: what a finite set of prompts lets one say.

A prompt is the unit that is resampled: rows of `values` are prompts, and whatever was measured on one prompt (several
completions, several scores, two methods) stays together. Everything is computed in float64 with NumPy; SciPy is
imported where it is needed. Bounds that hold for every n and every distribution are in `bounds`.

Source: Efron, "Better bootstrap confidence intervals", 1987 (BCa).
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_rarlhf.functional.checks import Array, as_values, as_vector, require_open_unit, require_tail
from lightning_rarlhf.functional.risk import tail_size

Statistic = Callable[..., Any]
"""From one sample, [n] or [n, m], to a number; or, if it has a parameter `axis`, from many samples stacked in front,
[r, n] or [r, n, m], to one number each, [r], by reducing that axis (and [m]). The second kind is much faster."""
Rows = NDArray[np.int64]
_OfRows = Callable[..., Array]

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
        return value < self.low or value > self.high  # an end that is NaN excludes nothing


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
    `bounds.clopper_pearson`, which knows better.

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
    table = as_values("values", values, least=2)
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
    table = as_vector(values, least=2)
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
    table = as_vector(values, least=2)
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


def mean_sd(seeds: ArrayLike) -> MeanSD:
    """Mean and sample standard deviation of one figure over training seeds.

    Args:
        seeds: [n], the figure of each seed, finite.

    Raises:
        ValueError: if `seeds` is empty, not [n] or not finite.

    >>> mean_sd([1.0, 2.0, 3.0])
    MeanSD(mean=2.0, sd=1.0, n=3)
    """
    values = as_vector(seeds)
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
    require_tail(n, alpha)
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


def _as_pair(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    first, second = as_values("a", a, least=2), as_values("b", b, least=2)
    if first.shape != second.shape:
        raise ValueError(f"b: got shape {list(second.shape)}, expected {list(first.shape)}: the same prompts as in a")
    return first, second


def _require_resamples(resamples: int, confidence: float) -> None:
    require_open_unit("confidence", confidence)
    least = math.ceil(round(2 / (1 - confidence), 6))
    if resamples < least:
        raise ValueError(f"resamples: got {resamples}, expected at least {least} for confidence {confidence}")
