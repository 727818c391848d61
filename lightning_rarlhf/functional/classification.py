"""How well scores tell two classes apart, and whether the probabilities made of them mean what they say."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_rarlhf.functional.checks import Array, as_vector, require_open_unit
from lightning_rarlhf.functional.statistics import Interval


class Reliability(NamedTuple):
    """Predictions by probability, in bins of equal width."""

    counts: NDArray[np.int64]
    """[bins], predictions"""
    confidence: Array
    """[bins], mean predicted probability; NaN in an empty bin"""
    frequency: Array
    """[bins], share of positives; NaN in an empty bin"""


def auroc(scores: Array, labels: Array, axis: int = -1) -> Array:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties count half.

    Args:
        scores: [..., n, ...], n along `axis`.
        labels: 0 or 1, of the same shape.
        axis: of the n predictions.

    Returns:
        0.5, which is what a coin has, where only one class is there: a bootstrap sample may be so unlucky.
    """
    from scipy.stats import rankdata

    ranks = rankdata(scores, axis=axis)
    positives = labels.sum(axis=axis)
    negatives = labels.shape[axis] - positives
    pairs = positives * negatives
    wins = (ranks * labels).sum(axis=axis) - positives * (positives + 1) / 2
    return np.where(pairs > 0, wins / np.maximum(pairs, 1), 0.5)


def auroc_interval(scores: Array, labels: Array, confidence: float = 0.95) -> Interval:
    """Interval of `auroc` by Newcombe's method 5, which holds also for few positives and for perfect separation.

    The ends are the θ with |AUC − θ| = z √V(θ), V Hanley and McNeil's variance at θ with both class sizes but for the
    product replaced by their mean. In simulations of 40 to 1,100 texts, 5 positives or more, normal and heavy-tailed
    scores and an AUC of .5 to .998, nominal 95 % intervals covered 92 to 99.8 %; a BCa bootstrap covered as little as
    65 %, and has no width where the classes do not overlap.

    Source: Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2",
    2006.

    Args:
        scores: [n], one per text, finite.
        labels: [n], 0 or 1; both are there.
        confidence: nominal coverage, in (0, 1).

    Raises:
        ValueError: if a score is not finite, only one class is there, or `confidence` is out of range.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    values = as_vector(scores)
    require_open_unit("confidence", confidence)
    positives = int(np.sum(labels))
    pairs, mean = positives * (len(values) - positives), len(values) / 2
    if pairs <= 0:
        raise ValueError(f"labels: got {positives} positives of {len(values)}, expected both classes")
    z = float(norm.ppf((1 + confidence) / 2))

    def lower(area: float) -> float:
        def beyond(theta: float) -> float:
            wins = (mean - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
            return area - theta - z * math.sqrt(theta * (1 - theta) * (1 + wins) / pairs)

        # an area of 1 is a root itself
        return float(brentq(beyond, 0, min(area, 1 - 1e-12))) if area > 0 else 0.0

    area = float(auroc(values, np.asarray(labels)))
    method = "Newcombe, method 5"
    low, high = lower(area), 1 - lower(1 - area)
    return Interval(estimate=area, low=low, high=high, confidence=confidence, n=len(values), method=method)


def reliability(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> Reliability:
    """Mean prediction and observed frequency in each of `bins` bins of (0, 1]; [n], [n]."""
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    which = np.clip(np.ceil(p * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(which, weights=p, minlength=bins) / count
        frequency = np.bincount(which, weights=y, minlength=bins) / count
    return Reliability(count, confidence, frequency)


def expected_calibration_error(found: Reliability) -> float:
    """Mean |confidence − frequency| over the predictions (Guo et al. 2017): 0 = a probability means what it says."""
    filled = found.counts > 0
    gaps = np.abs(found.confidence - found.frequency)[filled]
    return float((gaps * found.counts[filled]).sum() / found.counts.sum())


def calibration_null(
    probabilities: ArrayLike, bins: int = 15, *, mirrored: bool = False, simulations: int = 1000, seed: int = 0
) -> Array:
    """Calibration errors of a model whose probabilities are right: outcomes are drawn from them; f64 [simulations].

    The estimated error of finitely many predictions is above 0 even then, so it means little without these.

    Args:
        probabilities: [n].
        bins: as in `reliability`.
        mirrored: each prediction also counts turned round, 1 − p of the opposite outcome (pairs).
        simulations: how often outcomes are drawn.
        seed: of the draws.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    draw = np.random.default_rng(seed)
    both = np.concatenate([p, 1 - p]) if mirrored else p
    errors = np.empty(simulations)
    for number in range(simulations):
        y = draw.random(len(p)) < p
        outcomes = np.concatenate([y, ~y]) if mirrored else y
        errors[number] = expected_calibration_error(reliability(both, outcomes, bins))
    return errors
