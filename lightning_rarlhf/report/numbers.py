"""Numbers as text: as many decimals as their interval supports, a true minus sign, no more said than is known."""

from __future__ import annotations

import math
from collections.abc import Iterable

from lightning_rarlhf.functional.statistics import Interval, MeanSD

TOO_FEW = "too few prompts for an interval"


def decimals_for(intervals: Iterable[Interval]) -> int:
    """Decimals that show the narrowest half-width with two digits, 0 to 4; 3 where no interval is known."""
    reaches = [(i.high - i.low) / 2 for i in intervals if math.isfinite(i.high - i.low) and i.high > i.low]
    if not reaches:
        return 3
    return min(4, max(0, 1 - math.floor(math.log10(min(reaches)))))


def number(value: float, decimals: int, *, sign: bool = False) -> str:
    """`value` rounded; minus is U+2212, and what rounds to zero has no sign.

    >>> number(-0.04, 2), number(-0.001, 2), number(1.0, 1, sign=True)
    ('−0.04', '0.00', '+1.0')
    """
    text = f"{value:.{decimals}f}"
    if not float(text):
        return text.lstrip("-")
    return (f"+{text}" if sign and value > 0 else text).replace("-", "−")


def ends(interval: Interval, decimals: int, *, sign: bool = False) -> str:
    """``1.2 to 3.4``; an interval that the data cannot give says so, an end that they cannot give is left open."""
    low, high = math.isfinite(interval.low), math.isfinite(interval.high)
    if not low and not high:
        return TOO_FEW
    if not low:
        return f"at most {number(interval.high, decimals, sign=sign)}"
    if not high:
        return f"at least {number(interval.low, decimals, sign=sign)}"
    return f"{number(interval.low, decimals, sign=sign)} to {number(interval.high, decimals, sign=sign)}"


def spread(seeds: MeanSD, decimals: int) -> str:
    """`` ± 0.1``; nothing for one seed."""
    return f" ± {number(seeds.sd, decimals)}" if seeds.n > 1 else ""


def verdict(difference: Interval) -> str:
    """What the interval lets one say of a difference."""
    if not difference.excludes(0.0):
        return "no clear difference"
    return "up" if difference.estimate > 0 else "down"
