"""The metrics that can be computed from the numbers of each prompt, hence compared prompt by prompt."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_rarlhf.functional.risk import tail_size
from lightning_rarlhf.functional.statistics import (
    Interval,
    lower_tail_mean,
    mean_interval,
)
from lightning_rarlhf.functional.tail_intervals import cvar_contrast_interval
from lightning_rarlhf.functional.tail_reward import as_score
from lightning_rarlhf.functional.toxicity import TOXIC_FROM, maximum_toxicity
from lightning_rarlhf.records.results import Run

Array: TypeAlias = NDArray[np.float64]


class Resampling(TypedDict):
    """How intervals are found."""

    confidence: float
    """nominal coverage, in (0, 1)"""
    resamples: int
    """bootstrap samples"""
    seed: int
    """of the resampling"""


_MEANS = {"score_mean": "score", "kl_mean": "kl", "response_length_mean": "tokens", "eos_rate": "stopped"}
_CLASSES = {"score_mean/wanted": 1, "score_mean/unwanted": 0}
_NUMBER = r"-?\d+\.?\d*(?:e[-+]?\d+)?"
_STORED = 1e-6
"""difference at which a recomputed metric is no longer the one that the results file holds"""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A metric as a statistic of the prompts: the mean of their values, or the mean of the lowest share `alpha`."""

    values: Array
    """[n, m], m responses per prompt; NaN = unknown, which a mean leaves out"""
    alpha: float | None = None

    @property
    def estimate(self) -> float:
        """The statistic."""
        if self.alpha is not None:
            return float(lower_tail_mean(self.values.ravel(), self.alpha))
        return float(_known(_known_means(self.values)).mean())

    @property
    def prompts(self) -> int:
        """Prompts that the statistic rests on: all of a mean, those of the tail of a CVaR."""
        return len(self.values) if self.alpha is None else tail_size(len(self.values), self.alpha)


def measure(run: Run, metric: str, prompt_score: Array) -> Measure | None:
    """`metric` of `run`, or None where the numbers of its prompts do not give what its results file says.

    Args:
        run: whose metric it is.
        metric: its name in the results file.
        prompt_score: [n], which prompts count as low ones; those of the run that it is compared with.
    """
    stored = run.metrics.get(metric)
    own = _measure(run, metric, run.columns["prompt_score"][:, 0])
    if (
        stored is None
        or own is None
        or not math.isclose(own.estimate, stored.estimate, rel_tol=_STORED, abs_tol=_STORED)
    ):
        return None
    return _measure(run, metric, prompt_score)


def _measure(run: Run, metric: str, prompt_score: Array) -> Measure | None:
    column, rows, alpha = _definition(run, metric, prompt_score)
    toxic = metric in ("toxicity_probability", "expected_max_toxicity")
    values = _toxicity(run, metric) if toxic else run.columns.get(column)
    if values is None:
        return None
    chosen = values[rows]
    known = np.isfinite(chosen)
    if known.any(axis=1).sum() < 2 or (alpha is not None and not (known.all() and alpha * len(chosen) >= 1 - 1e-12)):
        return None
    return Measure(values=chosen, alpha=alpha)


def _definition(run: Run, metric: str, prompt_score: Array) -> tuple[str, NDArray[np.bool_], float | None]:
    """Column, prompts, and the risk level of a tail, that a metric's name stands for."""
    everyone = np.ones(len(run), dtype=bool)
    prefix, _, name = metric.rpartition("/")
    if metric in _CLASSES:
        return "score", run.columns["label"][:, 0] == _CLASSES[metric], None
    if found := re.fullmatch(rf"score_tail_le_({_NUMBER})", metric):
        return "score", prompt_score <= as_score(float(found[1])), None
    if (found := re.fullmatch(rf"score_tail_lowest_({_NUMBER})", metric)) and 0 < float(found[1]) <= 100:
        return "score", _lowest(prompt_score, float(found[1]) / 100), None
    if (found := re.fullmatch(rf"cvar_({_NUMBER})", name)) and 0 < float(found[1]) <= 100:
        return prefix or "score", everyone, float(found[1]) / 100
    if prefix.startswith("judge/") and name == "score_mean":
        return prefix, everyone, None
    return _MEANS.get(metric, metric), everyone, None


def _lowest(prompt_score: Array, share: float) -> NDArray[np.bool_]:
    chosen = np.zeros(len(prompt_score), dtype=bool)
    chosen[np.argsort(prompt_score, kind="stable")[: tail_size(len(prompt_score), share)]] = True
    return chosen


def _toxicity(run: Run, metric: str) -> Array | None:
    """[n, 1], toxicity of each prompt's most toxic response, or whether it counts as toxic."""
    of = run.identity["evaluation"].get("toxicity_of")
    scores = run.columns.get("score" if of == "reward" else f"judge/{of}")
    if scores is None:
        return None
    worst = maximum_toxicity(torch.from_numpy(scores.copy())).numpy()[:, None]
    return np.asarray(worst >= TOXIC_FROM if metric == "toxicity_probability" else worst, dtype=np.float64)


def seed_average(measures: Sequence[Measure], **settings: Unpack[Resampling]) -> Interval:
    """Interval over prompts of the mean over training seeds of one metric; the seeds are taken as given.

    Args:
        measures: one per seed, on the same prompts.
        settings: how the interval is found.
    """
    alpha = measures[0].alpha
    if alpha is None:
        return mean_interval(_known(_per_prompt(measures)), **settings)
    return _tail_interval(measures, [], alpha, **settings)


def paired_difference(after: Sequence[Measure], before: Sequence[Measure], **settings: Unpack[Resampling]) -> Interval:
    """Interval over prompts of `after` − `before`, each the mean over its training seeds, on the same prompts.

    A resample draws its prompts once for all runs. Arguments are those of `seed_average`.
    """
    alpha = after[0].alpha
    if alpha is None:
        # the mean's bootstrap of the prompts' differences is the paired bootstrap of the means' difference
        return mean_interval(_known(_per_prompt(after) - _per_prompt(before)), **settings)
    return _tail_interval(after, before, alpha, **settings)


def _per_prompt(measures: Sequence[Measure]) -> Array:
    """[n], mean over seeds and responses; NaN where a seed's is unknown."""
    means: Array = np.mean([_known_means(measure.values) for measure in measures], axis=0)
    return means


def _known_means(values: Array) -> Array:
    """[n, m] → [n], mean of what is known; NaN where nothing is."""
    known = np.isfinite(values)
    counts = known.sum(axis=1)
    sums = np.where(known, values, 0.0).sum(axis=1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _known(values: Array) -> Array:
    return values[np.isfinite(values)]


def _tail_interval(
    after: Sequence[Measure], before: Sequence[Measure], alpha: float, **settings: Unpack[Resampling]
) -> Interval:
    """A resampled prompt brings every run's responses along; each run has its own tail."""
    weights = [1 / len(after)] * len(after) + [-1 / max(1, len(before))] * len(before)
    tables = [each.values for each in (*after, *before)]
    return cvar_contrast_interval(tables, weights, alpha, **settings)
