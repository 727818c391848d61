"""Intervals of the lower-tail CVaR: of a policy, of the difference of two, with several completions and seeds.

A prompt is resampled with everything that was measured on it. Each resample is measured in its own standard error,
which the CVaR's influence function min(x - VaR, 0)/α gives; the influences of a prompt's completions are averaged. In
simulations of nominal 95 % intervals this covers 93 to 96 % from ten tail prompts on (scores of light and heavy tails,
one completion or several, 500 prompts), where BCa covers 90 to 93 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from lightning_rarlhf.functional.checks import Array, as_values, require_tail
from lightning_rarlhf.functional.risk import tail_size
from lightning_rarlhf.functional.statistics import (
    LEAST_TAIL,
    Interval,
    batch_size,
    bootstrap_interval,
    exceptions,
    require_resamples,
    resampled_rows,
    tail_levels,
    unbounded,
)


def cvar_interval(
    values: ArrayLike, alpha: float, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Studentised bootstrap interval of the lower-tail CVaR (see `statistics.lower_tail_mean`).

    Scores so coarse that a resample's tail is all ties have no standard error; BCa then steps in.

    Args:
        values: [n], one score per prompt, or [n, k], k completions per prompt whose n·k scores share one tail; finite.
        alpha: risk level in (0, 1].
        confidence: nominal coverage, in (0, 1).
        resamples: bootstrap samples, enough for one to lie beyond either end.
        seed: of the resampling.

    Returns:
        both ends infinite where fewer than `LEAST_TAIL` prompts make the tail or, scores being coarse, differ from the
        VaR in it: too few for any resampling. A tail that is all ties may give both ends the same value: this says
        nothing of exceptions rarer than one in n/3.

    Raises:
        ValueError: if αn < 1, a tail that no prompt represents, or as `bootstrap_interval` does.
    """
    return cvar_contrast_interval([values], [1.0], alpha, confidence=confidence, resamples=resamples, seed=seed)


def paired_cvar_interval(
    a: ArrayLike, b: ArrayLike, alpha: float, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """`cvar_interval` of CVaR(a) - CVaR(b), where row i of both was measured on the same prompt.

    Args:
        a: [n] or [n, k], as in `cvar_interval`.
        b: [n] or [n, j], the other method's scores on the same prompts in the same order.
        alpha: risk level in (0, 1].
        confidence: nominal coverage, in (0, 1).
        resamples: bootstrap samples.
        seed: of the resampling.

    Returns:
        both ends infinite as of `cvar_interval`, and where fewer than `LEAST_TAIL` prompts score differently.

    Raises:
        ValueError: if the numbers of prompts differ, or as `cvar_interval` does.
    """
    return cvar_contrast_interval([a, b], [1.0, -1.0], alpha, confidence=confidence, resamples=resamples, seed=seed)


def cvar_contrast_interval(
    tables: Sequence[ArrayLike],
    weights: Sequence[float],
    alpha: float,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """`cvar_interval` of Σ_r weights[r] · CVaR(tables[r]), each with a tail of its own, on the same prompts.

    Args:
        tables: one [n] or [n, k_r] per run, row i of each measured on the same prompt.
        weights: of the runs; 1/s for each of s training seeds, negative for what is subtracted.
        alpha: risk level in (0, 1].
        confidence: nominal coverage, in (0, 1).
        resamples: bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: if the numbers of prompts differ, or as `cvar_interval` does.
    """
    stacked = [_columns(table) for table in tables]
    n = len(stacked[0])
    for table in stacked[1:]:
        if len(table) != n:
            raise ValueError(f"tables: got {len(table)} and {n} rows, expected the same prompts in each")
    require_tail(n, alpha)
    require_resamples(resamples, confidence)
    estimate, error = _cvar_and_error(stacked, weights, alpha)
    if why := few_in_tail(stacked, weights, alpha):
        return unbounded(float(estimate), n, confidence, f"fewer than {LEAST_TAIL} prompts {why}")
    columns = sum(table.shape[1] for table in stacked)
    parts = [
        _cvar_and_error([table[rows] for table in stacked], weights, alpha)
        for rows in resampled_rows(n, resamples, batch_size((n, columns)), seed)
    ]
    estimates, errors = (np.concatenate(part) for part in zip(*parts, strict=True))
    if error == 0 or (errors == 0).any():
        return _bca(stacked, weights, alpha, confidence=confidence, resamples=resamples, seed=seed)
    below, above = np.quantile((estimates - estimate) / errors, tail_levels(confidence), method="weibull")
    return Interval(
        estimate=float(estimate),
        low=float(estimate - above * error),
        high=float(estimate - below * error),
        confidence=confidence,
        n=n,
        method="studentised bootstrap",
    )


def few_in_tail(tables: Sequence[Array], weights: Sequence[float], alpha: float) -> str:
    """What fewer than `LEAST_TAIL` prompts do, of whose chance no resampling knows enough; empty if none does.

    Args:
        tables: [n, k_r], as of `cvar_contrast_interval`.
        weights: of the tables.
        alpha: risk level in (0, 1].
    """
    if tail_size(len(tables[0]), alpha) < LEAST_TAIL:
        return "in the tail"
    # scores above the VaR and at it have influence 0; without ties one prompt of the tail is there
    if 0 < exceptions(_cvar_and_influence(tables, weights, alpha)[1]) < LEAST_TAIL - 1:
        return "below the VaR"
    if len({table.shape for table in tables}) == 1 and len(tables) > 1:
        unequal = np.any([(table != tables[0]).any(axis=1) for table in tables], axis=0).sum()
        return "differ" if 0 < unequal < LEAST_TAIL else ""
    return ""


def _columns(values: ArrayLike) -> Array:
    """[n] → [n, 1]; [n, k] as it is."""
    table = as_values("values", values, least=2)
    return table[:, None] if table.ndim == 1 else table


def _cvar_and_error(tables: Sequence[Array], weights: Sequence[float], alpha: float) -> tuple[Array, Array]:
    """Weighted sum of the CVaRs of tables [..., n, k_r], and its standard error from the prompts' influences; [...]."""
    estimate, influence = _cvar_and_influence(tables, weights, alpha)
    return estimate, influence.std(axis=-1) / math.sqrt(tables[0].shape[-2])


def _cvar_and_influence(tables: Sequence[Array], weights: Sequence[float], alpha: float) -> tuple[Array, Array]:
    """Weighted sum of the CVaRs, [...], and what each prompt has to do with it, but for a constant, [..., n]."""
    estimate, influence = np.zeros(()), np.zeros(())
    for weight, table in zip(weights, tables, strict=True):
        scores = table.reshape(*table.shape[:-2], -1)
        size = tail_size(scores.shape[-1], alpha)
        value_at_risk = np.partition(scores, size - 1, axis=-1)[..., size - 1 : size]
        shortfall = np.minimum(table - value_at_risk[..., None], 0.0).mean(axis=-1) * (scores.shape[-1] / size)
        estimate = estimate + weight * (value_at_risk[..., 0] + shortfall.mean(axis=-1))
        influence = influence + weight * shortfall
    return estimate, influence


def _bca(
    tables: Sequence[Array], weights: Sequence[float], alpha: float, *, confidence: float, resamples: int, seed: int
) -> Interval:
    ends = np.cumsum([table.shape[1] for table in tables])[:-1]

    def contrast(sample: Array, axis: int) -> Array:
        return _cvar_and_error(np.split(sample, ends, axis=axis + 1), weights, alpha)[0]

    joined = np.concatenate(tables, axis=1)
    found = bootstrap_interval(joined, contrast, confidence=confidence, resamples=resamples, seed=seed)
    return found if found.low < found.high else replace(found, method="none: resamples tell no spread")
