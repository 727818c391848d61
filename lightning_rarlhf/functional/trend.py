"""Whether a short series rises or falls, whatever its unit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations


def kendall_trend(values: Sequence[float]) -> float:
    """Kendall's τ of the values against their order: (rising pairs − falling pairs) / pairs, in [-1, 1].

    1 = each value exceeds all before it. Ties and NaN count as neither. Of n values in random order, τ is 1 with
    chance 1/n!.

    Source: Mann, "Nonparametric tests against trend", 1945.

    Args:
        values: n ≥ 2 numbers, oldest first.

    Raises:
        ValueError: if there are fewer than 2 values.

    >>> kendall_trend([1.0, 2.0, 4.0, 3.0])
    0.6666666666666666
    """
    pairs = list(combinations(values, 2))
    if not pairs:
        raise ValueError(f"values: got {len(values)}, expected at least 2")
    return sum((later > earlier) - (later < earlier) for earlier, later in pairs) / len(pairs)
