"""The learning rate over a run, as a share of its highest value."""

from __future__ import annotations


def warmup_then_decay(step: int, *, warmup: int, total: int) -> float:
    """Factor of the learning rate at 0-based `step`: linear to 1 over `warmup` steps, then linear towards 0.

    >>> [warmup_then_decay(step, warmup=2, total=6) for step in range(7)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(total - warmup, 1))
