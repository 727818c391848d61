"""Mean reward of the prompts with the lowest scores, as a function of how many of them (paper, quantile plots)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

SHARES = np.arange(1, 101)
"""q, in per cent"""
_BATCH_ELEMENTS = 2_000_000


class QuantileCurve(NamedTuple):
    """[100] each: estimate and pointwise interval ends for q = 1..100 %."""

    estimate: Array
    low: Array
    high: Array


def quantile_curve(
    prompt_score: Array, reward: Array, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> QuantileCurve:
    """Mean reward of the ⌈qn/100⌉ prompts of lowest prompt score, with percentile bootstrap intervals over prompts.

    Prompts are drawn with replacement and ranked anew in each resample. Ties in the prompt score keep their order.

    Args:
        prompt_score: [n], what ranks the prompts.
        reward: [n], of the prompts' responses; the difference of two methods' rewards gives a paired comparison.
        confidence: of the band at each q.
        resamples: bootstrap samples.
        seed: of the resampling.
    """
    ordered = reward[np.argsort(prompt_score, kind="stable")]
    estimate = worst_prompt_means(ordered[None])[0]
    parts = [worst_prompt_means(ordered[rows]) for rows in _ascending_rows(len(ordered), resamples, seed)]
    low, high = np.quantile(np.concatenate(parts), [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return QuantileCurve(estimate, low, high)


def worst_prompt_means(ordered: Array) -> Array:
    """Means of the first ⌈qn/100⌉ of n values, q = 1..100: [r, n] → [r, 100]."""
    counts = -(-SHARES * ordered.shape[1] // 100)
    means: Array = np.cumsum(ordered, axis=1)[:, counts - 1] / counts
    return means


def _ascending_rows(n: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Resampled row numbers in ascending order, that is, in the order of the prompt score."""
    generator = np.random.default_rng(seed)
    batch = max(1, _BATCH_ELEMENTS // n)
    for done in range(0, resamples, batch):
        yield np.sort(generator.integers(n, size=(min(batch, resamples - done), n)), axis=1)
