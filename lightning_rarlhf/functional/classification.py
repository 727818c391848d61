"""How well scores tell two classes apart, and whether the probabilities made of them mean what they say."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


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
