"""Mean of the worst q % as a function of q: a distribution's whole lower side in one curve."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_rarlhf.functional.checks import Array

SHARES = np.arange(1, 101)
"""q, in per cent"""


def worst_share_means(scores: ArrayLike) -> Array:
    """Mean of the worst q % for q = 1, 2, ..., 100: the lower-tail CVaR as a function of its level.

    Args:
        scores: [n], n ≥ 1, in any order.

    Returns:
        f64 [100], non-decreasing; entry 9 is CVaR10 and the last one the mean. A share holds ⌈qn/100⌉ scores.

    >>> worst_share_means([1.0, 2.0, 3.0, 4.0])[[0, 24, 49, 99]].tolist()
    [1.0, 1.0, 1.5, 2.5]
    """
    return first_share_means(np.sort(np.asarray(scores, dtype=np.float64)))


def first_share_means(ordered: Array) -> Array:
    """Means of the first ⌈qn/100⌉ of n values for q = 1, 2, ..., 100, in the order given: [..., n] → [..., 100]."""
    counts = share_counts(ordered.shape[-1])
    means: Array = np.cumsum(ordered, axis=-1)[..., counts - 1] / counts
    return means


def share_counts(n: int) -> NDArray[np.int64]:
    """i64 [100], ⌈qn/100⌉ for q = 1, 2, ..., 100: how many of n values each share holds."""
    counts: NDArray[np.int64] = -(-SHARES * n // 100)
    return counts
