"""Mean and tail reward of methods at equal KL from the reference, interpolated between runs at different KL.

A method's runs (checkpoints, or a sweep of KL targets) are points (KL, reward). Points closer together than 5 % of the
method's KL range count as one. Training seeds of one configuration are one point wherever their KL came out, and its
interval adds the variance between them (`seed_noise`). Between points the reward is linear in √KL, the
distance in which gains are nearly straight (Gao, Schulman and Hilton, "Scaling laws for reward model overoptimization",
2023); every interval is widened to hold the interval of a line in KL itself as well, so that what rests on the choice
of the rule is not claimed. Where neighbouring runs are further apart than half the method's range of √KL, no rule is
good enough and nothing is claimed.

Every resample draws its prompts once for all runs of all methods and moves KL and reward of every point alike, so
intervals cover both and differences are paired. The band of a difference is simultaneous (sup-t): with its confidence
it holds at every KL at once, hence "ahead from 2 to 5 nats" is one claim, not many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lightning_rarlhf.errors import UserError
from lightning_rarlhf.functional.statistics import (
    LEAST_TAIL,
    batch_size,
    exceptions,
    lower_tail_mean,
    resampled_rows,
    tail_levels,
)
from lightning_rarlhf.functional.tail_intervals import few_in_tail
from lightning_rarlhf.records.results import Run
from lightning_rarlhf.report.identity import same_reference
from lightning_rarlhf.report.methods import Method
from lightning_rarlhf.report.seed_noise import has_seeds, has_unseeded_points, seed_groups, with_seed_noise

Array: TypeAlias = NDArray[np.float64]

Scale: TypeAlias = Callable[[Array], Array]

STATISTICS = ("mean", "tail")
_NEAR = 0.05
"""share of a method's KL range within which points are pooled"""
_WIDEST = 0.5
"""share of a method's range of √KL that neighbouring points may be apart"""
_GRID = 41


class Curve(NamedTuple):
    """Estimate and interval ends at each KL of a grid, [G] each."""

    estimate: Array
    low: Array
    high: Array


class Stretch(NamedTuple):
    """A range of KL over which one thing can be said."""

    low: float
    """nats"""
    high: float
    ahead: str
    """label of the method that is ahead; empty where the interval holds 0 or nothing can be claimed"""
    supported: bool
    """whether both methods have runs near enough to interpolate between"""


@dataclass(frozen=True, kw_only=True)
class Points:
    """A method's runs, pooled where their KL is nearly equal; ascending in KL."""

    label: str
    kl: Array
    """[K], nats"""
    reward: dict[str, Array]
    """[K] of each of `STATISTICS`"""


@dataclass(frozen=True, kw_only=True)
class Match:
    """Two methods at equal KL."""

    first: str
    second: str
    first_range: tuple[float, float]
    """least and greatest KL of its points, nats"""
    second_range: tuple[float, float]
    kl: Array
    """[G], grid over the KL that both reach; empty if there is none"""
    supported: NDArray[np.bool_]
    """[G], True = both methods have runs near enough to interpolate between"""
    curves: dict[str, tuple[Curve, Curve]]
    """interpolated reward of either method, pointwise intervals, by statistic"""
    difference: dict[str, Curve]
    """second − first with its simultaneous band, by statistic"""

    def stretches(self, statistic: str) -> list[Stretch]:
        """Which method is ahead where, over the whole grid."""
        band = self.difference[statistic]
        ahead = np.where(band.low > 0, self.second, np.where(band.high < 0, self.first, ""))
        said = [(str(who) if known else "", bool(known)) for who, known in zip(ahead, self.supported, strict=True)]
        parts = [list(rows) for _, rows in groupby(range(len(said)), key=said.__getitem__)]
        return [Stretch(float(self.kl[part[0]]), float(self.kl[part[-1]]), *said[part[0]]) for part in parts]


@dataclass(frozen=True, kw_only=True)
class MatchedKL:
    """Several methods' frontiers; every method against the first."""

    points: tuple[Points, ...]
    matches: tuple[Match, ...]
    alpha: float
    confidence: float
    few: dict[str, str]
    """what a run has fewer than `LEAST_TAIL` prompts for, by statistic; such a statistic has no intervals: the ends of
    its curves are infinite, and nobody is ahead"""
    prompts: int
    """number that the bands rest on; of fewer than `SMALL` they may be too narrow"""
    unseeded: tuple[str, ...]
    """methods with a point of a single training run, whose chance the intervals do not cover"""
    seeded: bool
    """whether any point rests on several training seeds"""


def match_kl(sweeps: Sequence[Method], *, alpha: float, resamples: int = 1000, seed: int = 0) -> MatchedKL:
    """Compare every method with the first one at equal KL.

    Args:
        sweeps: at least 2 methods of at least 2 runs each, all comparable, KL measured from one reference.
        alpha: risk level of the tail, in (0, 1].
        resamples: bootstrap samples.
        seed: of the resampling.

    Raises:
        UserError: too few methods or runs, unequal references, no KL, runs of one KL, or αn < 1.
    """
    _require_sweeps(sweeps, alpha)
    confidence = sweeps[0].runs[0].confidence
    samples = [
        _Samples.of(sweep, parts, seed=seed + 1 + number)
        for number, (sweep, parts) in enumerate(zip(sweeps, _resample(sweeps, alpha, resamples, seed), strict=True))
    ]
    prompts = len(sweeps[0].runs[0])
    few = _few([run.columns["score"] for sweep in sweeps for run in sweep.runs], alpha)
    bounded = [statistic for statistic in STATISTICS if statistic not in few]
    return MatchedKL(
        points=tuple(each.points for each in samples),
        matches=tuple(_match(samples[0], other, confidence, bounded) for other in samples[1:]),
        alpha=alpha,
        confidence=confidence,
        few=few,
        prompts=prompts,
        unseeded=tuple(sweep.label for sweep in sweeps if has_unseeded_points(sweep)),
        seeded=any(map(has_seeds, sweeps)),
    )


def _require_sweeps(sweeps: Sequence[Method], alpha: float) -> None:
    if len(sweeps) < 2:
        raise UserError(f"--sweep: got {len(sweeps)} method, expected at least 2 to compare at equal KL")
    for sweep in sweeps:
        if len(sweep.runs) < 2:
            raise UserError(
                f"--sweep {sweep.label}: got a single run, {sweep.runs[0].folder}; expected at least 2 at different KL "
                "to interpolate between (the reference's own test is one, at KL 0)"
            )
        for run in sweep.runs:
            _require_kl(run, sweeps[0].runs[0])
    require_tail_share(sweeps[0].runs[0], alpha)


def require_tail_share(run: Run, alpha: float) -> None:
    """Refuse a tail that no prompt represents; a prompt's responses count as one.

    Raises:
        UserError: αn < 1.
    """
    n = len(run)
    if alpha * n < 1 - 1e-12:
        raise UserError(
            f"--alpha: got {alpha:g} of {n} prompts in {run.folder}, less than one; expected at least "
            f"{math.ceil(round(1 / alpha, 9))} prompts or a larger alpha"
        )


def _require_kl(run: Run, first: Run) -> None:
    if "kl" not in run.columns or not np.isfinite(run.columns["kl"]).all():
        raise UserError(f"{run.folder}: KL is missing in its generations; test it with model.reference set")
    if not same_reference(first, run):
        ours, theirs = first.identity.get("reference"), run.identity.get("reference")
        raise UserError(
            f"references differ: {first.folder} measures KL from {ours}, {run.folder} from {theirs}; "
            "equal KL means nothing then, test both with one model.reference"
        )


def _few(tables: Sequence[Array], alpha: float) -> dict[str, str]:
    """`MatchedKL.few` of runs' scores, [n, k] each: the rules of the intervals of a single run."""
    differ = any(0 < exceptions(table.mean(axis=1)) < LEAST_TAIL for table in tables)
    tail = next(filter(None, (few_in_tail([table], [1.0], alpha) for table in tables)), "")
    said = {"mean": "that differ" if differ else "", "tail": tail}
    return {statistic: why for statistic, why in said.items() if why}


class _Resampled(NamedTuple):
    """[R, K] each, runs as columns; row 0 is the data as they are."""

    kl: Array
    mean: Array
    tail: Array


def _resample(sweeps: Sequence[Method], alpha: float, resamples: int, seed: int) -> list[_Resampled]:
    """KL, mean and tail reward of every run in every resample of the prompts."""
    runs = [run for sweep in sweeps for run in sweep.runs]
    size = runs[0].columns["score"].size
    parts = []
    as_they_are = np.arange(len(runs[0]))[None]
    for rows in chain([as_they_are], resampled_rows(len(runs[0]), resamples, batch_size((size,)), seed)):
        scores = [run.columns["score"][rows].reshape(len(rows), -1) for run in runs]
        kl = [run.columns["kl"].mean(axis=1)[rows].mean(axis=1) for run in runs]
        means = [each.mean(axis=1) for each in scores]
        tails = [lower_tail_mean(each, alpha) for each in scores]
        parts.append([np.stack(columns, axis=1) for columns in (kl, means, tails)])
    whole = [np.concatenate(column) for column in zip(*parts, strict=True)]
    ends = np.cumsum([len(sweep.runs) for sweep in sweeps])
    split = [np.split(column, ends[:-1], axis=1) for column in whole]
    return [_Resampled(*each) for each in zip(*split, strict=True)]


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """A method's pooled points in every resample."""

    points: Points
    kl: Array
    """[R, K]"""
    reward: dict[str, Array]
    """[R, K] by statistic"""

    @classmethod
    def of(cls, sweep: Method, resampled: _Resampled, seed: int) -> _Samples:
        seeds = seed_groups(sweep.runs)
        resampled = _Resampled(*with_seed_noise(np.stack(resampled), seeds, seed))
        pools = _pools(resampled.kl[0])
        if len(pools) < 2:
            raise UserError(
                f"--sweep {sweep.label}: its {len(sweep.runs)} runs have one and the same KL, "
                f"{resampled.kl[0].mean():.3g} nats; expected runs at different KL to interpolate between"
            )
        kl, mean, tail = (np.stack([each[:, pool].mean(axis=1) for pool in pools], axis=1) for each in resampled)
        reward = dict(zip(STATISTICS, (mean, tail), strict=True))
        points = Points(label=sweep.label, kl=kl[0], reward={name: each[0] for name, each in reward.items()})
        return cls(points=points, kl=kl, reward=reward)

    @property
    def range(self) -> tuple[float, float]:
        return float(self.points.kl[0]), float(self.points.kl[-1])

    def at(self, grid: Array, statistic: str, scale: Scale) -> Array:
        """[R, G]: a line on `scale` between a resample's own points, level beyond its ends."""
        order = self.kl.argsort(axis=1)
        kl, reward = (np.take_along_axis(each, order, axis=1) for each in (self.kl, self.reward[statistic]))
        return np.stack([np.interp(scale(grid), scale(x), y) for x, y in zip(kl, reward, strict=True)])

    def is_near(self, grid: Array) -> NDArray[np.bool_]:
        """[G], whether the points on either side are near enough to interpolate between."""
        ticks = square_root(self.points.kl)
        right = np.clip(np.searchsorted(ticks, square_root(grid)), 1, len(ticks) - 1)
        return np.asarray(ticks[right] - ticks[right - 1] <= _WIDEST * (ticks[-1] - ticks[0]) * (1 + 1e-9))


def square_root(kl: Array) -> Array:
    """√KL; an estimate of KL that is below 0 counts as 0."""
    return np.sqrt(np.maximum(kl, 0.0))


def _itself(kl: Array) -> Array:
    return kl


def _pools(kl: Array) -> list[list[int]]:
    """Column numbers of points that count as one, ascending in KL."""
    order = kl.argsort(kind="stable")
    near = _NEAR * (kl.max() - kl.min())
    pools = [[int(order[0])]]
    for column in order[1:]:
        if kl[column] - kl[pools[-1][0]] <= near:
            pools[-1].append(int(column))
        else:
            pools.append([int(column)])
    return pools


def _match(first: _Samples, second: _Samples, confidence: float, bounded: Sequence[str] = STATISTICS) -> Match:
    """Compare two methods; statistics that are not among `bounded` get estimates without intervals."""
    low, high = max(first.range[0], second.range[0]), min(first.range[1], second.range[1])
    grid = np.linspace(low, high, _GRID) if high > low else np.empty(0)
    curves, difference = {}, {}
    for statistic in STATISTICS if len(grid) else ():
        # the estimates are those of the first scale
        lines = [[each.at(grid, statistic, scale) for each in (first, second)] for scale in (square_root, _itself)]
        curves[statistic] = (
            _envelope([_pointwise(pair[0], confidence) for pair in lines]),
            _envelope([_pointwise(pair[1], confidence) for pair in lines]),
        )
        difference[statistic] = _envelope([_simultaneous(pair[1] - pair[0], confidence) for pair in lines])
        if statistic not in bounded:
            curves[statistic] = (_unbounded(curves[statistic][0]), _unbounded(curves[statistic][1]))
            difference[statistic] = _unbounded(difference[statistic])
    return Match(
        first=first.points.label,
        second=second.points.label,
        first_range=first.range,
        second_range=second.range,
        kl=grid,
        supported=first.is_near(grid) & second.is_near(grid) if len(grid) else np.empty(0, dtype=bool),
        curves=curves,
        difference=difference,
    )


def _envelope(curves: Sequence[Curve]) -> Curve:
    """The first one's estimate, and the ends of all."""
    return Curve(
        curves[0].estimate,
        np.min([curve.low for curve in curves], axis=0),
        np.max([curve.high for curve in curves], axis=0),
    )


def _unbounded(curve: Curve) -> Curve:
    """The estimate without its interval."""
    nothing = np.full_like(curve.estimate, np.inf)
    return Curve(curve.estimate, -nothing, nothing)


def _pointwise(samples: Array, confidence: float) -> Curve:
    """Percentile interval at each KL; row 0 is the estimate."""
    low, high = np.quantile(samples[1:], tail_levels(confidence), axis=0)
    return Curve(samples[0], low, high)


def _simultaneous(samples: Array, confidence: float) -> Curve:
    """Band that holds at every KL at once: estimate ± c·e, c the quantile of the greatest |deviation|/e.

    e is the deviation that is exceeded at that KL alone with chance 1 − confidence.
    """
    estimate = samples[0]
    # a quantile, not a standard deviation, which few training seeds (Student's t of 1 or 2 degrees) do not have
    error = np.quantile(np.abs(samples[1:] - estimate), confidence, axis=0)
    certain = error <= 1e-12
    deviation = np.abs(samples[1:] - estimate) / np.where(certain, 1.0, error)
    greatest = np.where(certain, 0.0, deviation).max(axis=1)
    reach = float(np.quantile(greatest, confidence)) * np.where(certain, 0.0, error)
    return Curve(estimate, estimate - reach, estimate + reach)
