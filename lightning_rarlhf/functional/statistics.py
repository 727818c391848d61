"""Bootstrap intervals for evaluation: what a finite set of prompts lets one say; those of tails: `tail_intervals`.

A prompt is the unit that is resampled: rows of `values` are prompts, and whatever was measured on one prompt (several
completions, several scores, two methods) stays together. Everything is computed in float64 with NumPy; SciPy is
imported where it is needed. Bounds that hold for every n and every distribution are in `bounds`.

Source: Efron, "Better bootstrap confidence intervals", 1987 (BCa).
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_rarlhf.functional.checks import Array, as_values, as_vector, least_resamples, require_open_unit
from lightning_rarlhf.functional.risk import tail_size

Statistic = Callable[..., Any]
"""From one sample, [n] or [n, m], to a number; or, if it has a parameter `axis`, from many samples stacked in front,
[r, n] or [r, n, m], to one number each, [r], by reducing that axis (and [m]). The second kind is much faster."""
Rows = NDArray[np.int64]
_OfRows = Callable[..., Array]

LEAST_TAIL = 10
"""prompts that a tail must hold for its mean to be given an interval; or that must differ from all the others"""
SMALL = 200
"""prompts from which on bootstraps of skewed values were measured to keep their word (docs/results.md): below, they
cover 92 % of nominal 95 %, and less where few prompts differ from the others"""
SMALL_NOTE = (
    f"† fewer than {SMALL} prompts: where scores are skewed the interval holds the truth less often than it says "
    "(nominal 95 %: 92 % in simulations, less where few prompts differ from the others)."
)
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

    @property
    def is_bounded(self) -> bool:
        """Whether both ends are known."""
        return math.isfinite(self.low) and math.isfinite(self.high)

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


def mean_interval(values: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Studentised bootstrap interval of the mean of `values` [n]: each resample is measured in its own standard error.

    docs/results.md has the coverage that was measured: of 50 values more than BCa's, which is 90 to 95 % of nominal
    95 %, of 500 the same; of fewer than `SMALL` less than 93 % where they are skewed, see `is_small`.
    Where nearly all values are one and the same and fewer than `LEAST_TAIL` are others, how rare these are is not known
    well enough: both ends are infinite. So they are where the bootstrap reaches further than the values do, as it does
    when a few of them dwarf the others: resamples without these know no spread. Values that are all equal give both
    ends the same value: this says nothing of exceptions rarer than one in n/3.

    Args:
        values: [n], one value per prompt, finite.
        confidence: nominal coverage, in (0, 1).
        resamples: bootstrap samples, enough for one to lie beyond either end.
        seed: of the resampling.

    Raises:
        ValueError: as `bootstrap_interval` does.

    >>> mean_interval([1.0, 2.0, 3.0, 4.0]).estimate
    2.5
    """
    table = as_vector(values, least=2)
    require_resamples(resamples, confidence)
    if np.ptp(table) == 0:
        value = float(table[0])
        method = "none: all values are equal"
        return Interval(estimate=value, low=value, high=value, confidence=confidence, n=len(table), method=method)
    if 0 < exceptions(table) < LEAST_TAIL:
        return unbounded(float(table.mean()), len(table), confidence, f"fewer than {LEAST_TAIL} prompts differ")
    found = _studentised_mean(table, confidence=confidence, resamples=resamples, seed=seed)
    if found and max(found.high - found.estimate, found.estimate - found.low) > np.ptp(table):
        return unbounded(found.estimate, len(table), confidence, "a few prompts make nearly all of the mean")
    return found or bootstrap_interval(table, np.mean, confidence=confidence, resamples=resamples, seed=seed)


def is_small(interval: Interval) -> bool:
    """Whether it is a bootstrap of so few prompts that it may cover less than it says."""
    bootstrap = "bootstrap" in interval.method and interval.is_bounded and interval.low < interval.high
    return bootstrap and interval.n < SMALL


def unbounded(estimate: float, n: int, confidence: float, why: str) -> Interval:
    """An estimate without an interval."""
    return Interval(estimate=estimate, low=-math.inf, high=math.inf, confidence=confidence, n=n, method=f"none: {why}")


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

    require_resamples(resamples, confidence)
    with warnings.catch_warnings():
        # SciPy warns and answers NaN where BCa is undefined; that case is dealt with below.
        warnings.simplefilter("ignore")
        result = stats.bootstrap(
            (np.arange(shape[0]),),
            of_rows,
            n_resamples=resamples,
            batch=batch_size(shape),
            vectorized=True,
            confidence_level=confidence,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    low, high = result.confidence_interval
    method = "BCa bootstrap"
    if not (math.isfinite(low) and math.isfinite(high)):
        low, high = np.quantile(result.bootstrap_distribution, tail_levels(confidence))
        method = "percentile bootstrap"
    estimate = float(of_rows(np.arange(shape[0])))
    return Interval(
        estimate=estimate, low=float(low), high=float(high), confidence=confidence, n=shape[0], method=method
    )


def exceptions(values: Array) -> int:
    """Number of values that are not the one that more than half of them are; 0 if there is no such one."""
    _, counts = np.unique(values, return_counts=True)
    others = len(values) - int(counts.max())
    return others if others < len(values) / 2 else 0


def _studentised_mean(table: Array, *, confidence: float, resamples: int, seed: int) -> Interval | None:
    """Each resample measured in its own standard error; None where one has none, being all the same value."""
    n, parts = len(table), []
    for rows in resampled_rows(n, resamples, batch_size((n,)), seed):
        sample = table[rows]
        parts.append((sample.mean(axis=1), sample.std(axis=1)))
    means, deviations = (np.concatenate(part) for part in zip(*parts, strict=True))
    if (deviations == 0).any():
        return None
    estimate, deviation = float(table.mean()), float(table.std())
    below, above = np.quantile((means - estimate) / deviations, tail_levels(confidence), method="weibull")
    return Interval(
        estimate=estimate,
        low=float(estimate - above * deviation),
        high=float(estimate - below * deviation),
        confidence=confidence,
        n=n,
        method="studentised bootstrap",
    )


def resampled_rows(n: int, resamples: int, batch: int, seed: int) -> Iterator[Rows]:
    """Row numbers of the resamples, [batch, n] at a time."""
    generator = np.random.default_rng(seed)
    for done in range(0, resamples, batch):
        yield generator.integers(n, size=(min(batch, resamples - done), n))


def batch_size(shape: tuple[int, ...]) -> int:
    """Resamples to hold at a time, so that memory does not grow with the number of prompts."""
    return max(1, _BATCH_ELEMENTS // math.prod(shape))


def tail_levels(confidence: float) -> tuple[float, float]:
    """Levels of the two quantiles that bound a central interval."""
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


def require_resamples(resamples: int, confidence: float) -> None:
    """Refuse so few that the ends would be the extremes themselves.

    Raises:
        ValueError: with the least number (`least_resamples`), or for a confidence that is not in (0, 1).
    """
    require_open_unit("confidence", confidence)
    least = least_resamples(confidence)
    if resamples < least:
        raise ValueError(f"resamples: got {resamples}, expected at least {least} for confidence {confidence}")
