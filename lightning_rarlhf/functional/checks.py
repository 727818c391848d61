"""What the statistics of evaluation refuse: values that are no sample, shares that are none, tails without a prompt."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_rarlhf.functional.risk import tail_size

Array = NDArray[np.float64]


def as_values(name: str, values: ArrayLike, *, least: int = 1) -> Array:
    """`values` as f64 [n] or [n, m], one row per prompt.

    Raises:
        ValueError: if the shape is another, a value is not finite, or there are fewer than `least` rows.
    """
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


def as_vector(values: ArrayLike, *, least: int = 1) -> Array:
    """`values` as f64 [n].

    Raises:
        ValueError: if the shape is another, or as `as_values` does.
    """
    table = as_values("values", values, least=least)
    if table.ndim != 1:
        raise ValueError(f"values: got shape {list(table.shape)}, expected [n]")
    return table


def require_open_unit(name: str, value: float) -> None:
    """Refuse what is not in (0, 1), by the argument's `name`.

    Raises:
        ValueError: with the value.
    """
    if not 0 < value < 1:
        raise ValueError(f"{name}: got {value}, expected more than 0 and less than 1")


def least_resamples(confidence: float) -> int:
    """Resamples from which on an interval's ends are not the extremes themselves: ⌈2 / (1 − confidence)⌉.

    >>> least_resamples(0.95)
    40
    """
    return math.ceil(round(2 / (1 - confidence), 6))


def require_tail(n: int, alpha: float) -> None:
    """Refuse a risk level that is out of range, and a tail of αn < 1 prompts, which no prompt represents.

    Raises:
        ValueError: with the number of prompts that `alpha` needs.
    """
    tail_size(n, alpha)
    if alpha * n < 1 - 1e-12:
        raise ValueError(
            f"alpha: got {alpha} of {n} values, less than one; expected at least {math.ceil(1 / alpha)} values"
        )
