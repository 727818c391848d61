"""The soft risk schedule (Eqs. 8-10) and the lower tail of a reward: VaR, CVaR and the episodes in it.

The risk level α is a fraction of the episodes, the tail size a count of them. A reward is at stake, so the tail is the
*lower* one: CVaR_α(R) = E[R | R ≤ q_α(R)] with q_α = inf{x : F_R(x) ≥ α}.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from lightning_rarlhf.errors import ScheduleError

_SLACK = 1e-12
"""thousands of times the rounding error of a share, and finer than any share that is written down"""


def _count(share: float, of: int) -> int:
    """⌈share · of⌉ where rounding error does not add one: 0.1 of 30 is 3, not 4."""
    return max(1, math.ceil((share - _SLACK) * of))


def tail_size(batch_size: int, risk_level: float) -> int:
    """Episodes in the tail, ⌈αB⌉: at least 1, at most B.

    Args:
        batch_size: B ≥ 1.
        risk_level: α in (0, 1].

    Raises:
        ValueError: if either is out of range.

    >>> tail_size(128, 0.4), tail_size(30, 0.1)
    (52, 3)
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
    _require_fraction("risk_level", risk_level, ValueError)
    return _count(risk_level, batch_size)


def annealing_end(total: int, rho: float) -> int:
    """⌈ρM⌉, the first of M = `total` iterations at which the schedule has reached α (Eqs. 8-10)."""
    return _count(rho, total)


def scheduled_risk_level(iteration: int, *, total: int, risk_level: float, warmup: int, rho: float) -> float:
    """Risk level of one iteration (Eqs. 8-10).

    1 up to and including iteration n; then down in a line, 1 - K(m - n) with K = (1 - α)/(⌈ρM⌉ - n); α from iteration
    ⌈ρM⌉ on.

    Args:
        iteration: m, from 0.
        total: M, iterations in all.
        risk_level: α in (0, 1], the final level.
        warmup: n, the last iteration that keeps every episode.
        rho: ρ in (0, 1], the share of the run after which α is reached.

    Raises:
        ScheduleError: if an argument is out of range.

    >>> scheduled_risk_level(20, total=100, risk_level=0.2, warmup=10, rho=0.9)
    0.9
    >>> paper = {"total": 194, "risk_level": 0.4, "warmup": 30, "rho": 0.95}
    >>> [tail_size(128, scheduled_risk_level(m, **paper)) for m in (32, 33, 193)]
    [128, 127, 52]
    """
    _require_fraction("risk_level", risk_level, ScheduleError)
    _require_fraction("rho", rho, ScheduleError)
    for name, value, least in (("iteration", iteration, 0), ("total", total, 1), ("warmup", warmup, 0)):
        if value < least:
            raise ScheduleError(f"{name}: got {value}, expected at least {least}")
    reached = annealing_end(total, rho)
    if iteration <= warmup:
        return 1.0
    if iteration >= reached:
        return risk_level
    return max(risk_level, 1 - (1 - risk_level) * (iteration - warmup) / (reached - warmup))


def value_at_risk(values: Tensor, alpha: float) -> Tensor:
    """Lower-tail VaR, inf{x : F(x) ≥ α} of the empirical distribution: the ⌈αN⌉-th smallest value, a scalar.

    Args:
        values: float [N].
        alpha: in (0, 1].

    Raises:
        ValueError: if `values` is empty, not one-dimensional or holds NaN, or `alpha` is out of range.
    """
    _require_ranked("values", values)
    return values.kthvalue(tail_size(len(values), alpha)).values


def cvar(values: Tensor, alpha: float) -> Tensor:
    """Lower-tail CVaR: mean of the ⌈αN⌉ smallest values, exactly that many also where they tie, a scalar.

    Arguments and errors are those of `value_at_risk`.

    >>> import torch
    >>> cvar(torch.tensor([4.0, 1.0, 3.0, 2.0]), alpha=0.5)
    tensor(1.5000)
    """
    _require_ranked("values", values)
    return values.topk(tail_size(len(values), alpha), largest=False).values.mean()


def tail_rows(statistic: Tensor, size: int, *, ties: Literal["exact", "keep"] = "exact") -> Tensor:
    """Row numbers of the episodes with the smallest statistic, in ascending row order, i64 [k].

    Args:
        statistic: float [B], what ranks the episodes.
        size: episodes to keep, 1 ≤ size ≤ B.
        ties: "exact" keeps `size` rows, of those that tie at the border the first ones (the paper); "keep" keeps every
            row that ties with the `size`-th smallest (the authors' code), so k can exceed `size`.

    Raises:
        ValueError: if `statistic` is empty, not one-dimensional or holds NaN, `size` is out of range or `ties` unknown.

    >>> import torch
    >>> tail_rows(torch.tensor([3.0, 1.0, 2.0, 2.0]), 2).tolist()
    [1, 2]
    >>> tail_rows(torch.tensor([3.0, 1.0, 2.0, 2.0]), 2, ties="keep").tolist()
    [1, 2, 3]
    """
    _require_ranked("statistic", statistic)
    if not 1 <= size <= len(statistic):
        raise ValueError(f"size: got {size}, expected 1 to {len(statistic)}, the number of episodes")
    if ties == "exact":
        return statistic.argsort(stable=True)[:size].sort().values
    if ties == "keep":
        return (statistic <= statistic.kthvalue(size).values).nonzero().squeeze(1)
    raise ValueError(f"ties: got {ties!r}, expected 'exact' or 'keep'")


def _require_fraction(name: str, value: float, error: type[ValueError]) -> None:
    if not 0 < value <= 1:
        raise error(f"{name}: got {value}, expected more than 0 and at most 1")


def _require_ranked(name: str, values: Tensor) -> None:
    if values.dim() != 1 or len(values) == 0:
        raise ValueError(f"{name}: got shape {list(values.shape)}, expected one dimension with at least one value")
    if values.isnan().any():
        rows = values.isnan().nonzero().squeeze(1).tolist()
        raise ValueError(f"{name}: got NaN in {len(rows)} of {len(values)} rows (first: {rows[0]}), expected numbers")
