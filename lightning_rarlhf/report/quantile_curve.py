"""Mean reward of the prompts with the lowest scores, as a function of how many of them (paper, quantile plots)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lightning_rarlhf.functional.checks import Array
from lightning_rarlhf.functional.statistics import LEAST_TAIL, batch_size, resampled_rows, tail_levels
from lightning_rarlhf.functional.worst_shares import first_share_means, share_counts


class QuantileCurve(NamedTuple):
    """[100] each: estimate and pointwise interval ends for q = 1..100 %; NaN ends = too few prompts."""

    estimate: Array
    low: Array
    high: Array


def quantile_curve(
    prompt_score: Array, reward: Array, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> QuantileCurve:
    """Mean reward of the ⌈qn/100⌉ prompts of lowest prompt score, with percentile bootstrap intervals over prompts.

    Prompts are drawn with replacement and ranked anew in each resample. Ties in the prompt score keep their order. A
    share of fewer than `LEAST_TAIL` prompts has no interval.

    Args:
        prompt_score: [n], what ranks the prompts.
        reward: [n], of the prompts' responses; the difference of two methods' rewards gives a paired comparison.
        confidence: of the band at each q.
        resamples: bootstrap samples.
        seed: of the resampling.
    """
    ordered = reward[np.argsort(prompt_score, kind="stable")]
    n = len(ordered)
    # ascending row numbers are in the order of the prompt score
    resampled = (np.sort(rows, axis=1) for rows in resampled_rows(n, resamples, batch_size((n,)), seed))
    parts = [first_share_means(ordered[rows]) for rows in resampled]
    low, high = np.quantile(np.concatenate(parts), tail_levels(confidence), axis=0)
    few = share_counts(n) < LEAST_TAIL
    return QuantileCurve(first_share_means(ordered), np.where(few, np.nan, low), np.where(few, np.nan, high))
