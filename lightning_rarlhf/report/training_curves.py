"""A run's training curves, out of the event files that `fit` left in ``lightning_logs``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

LOGS = "lightning_logs"
CURVES = {
    "objective/score_mean": "score, mean",
    "objective/score_std": "score, standard deviation",
    "objective/kl": "KL from the reference (nats)",
    "objective/kl_coef": "KL coefficient β",
    "objective/entropy": "entropy (nats per token)",
    "objective/return_mean": "return, mean",
    "tokens/response_length_mean": "response length (tokens)",
    "risk/level": "risk level α′",
}
"""what `fit` logs, and what it is called in a picture"""
_EXACT = ("objective/kl_coef", "risk/level")
"""set by a rule, not measured on a batch: no noise to smooth away"""
_WINDOW = 0.05
"""of the smoothing, as a share of the iterations"""


class TrainingCurve(NamedTuple):
    """One logged quantity."""

    iteration: Array
    """[k], ascending"""
    value: Array
    """[k]"""


class Band(NamedTuple):
    """Smoothed curves of one quantity across training seeds, [k] each."""

    iteration: Array
    mean: Array
    sd: Array
    """sample standard deviation across seeds; NaN for one seed"""


def read_training_curves(run: Path) -> dict[str, TrainingCurve]:
    """The quantities of `CURVES` that were logged under ``run/lightning_logs``; empty if there are none.

    A run that was stopped and resumed has several event files, in folders of their own or in one: a later file replaces
    an earlier one from its own first iteration on.
    """
    versions = sorted((run / LOGS).glob("version_*"), key=lambda path: int(re.sub(r"\D", "", path.name) or 0))
    read = [_read_scalars(version) for version in versions]
    found = {tag: _joined([scalars[tag] for scalars in read if tag in scalars]) for tag in CURVES}
    return {tag: curve for tag, curve in found.items() if curve is not None}


def _read_scalars(version: Path) -> dict[str, TrainingCurve]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(version), size_guidance={"scalars": 0})  # 0 = all
    accumulator.Reload()
    found = {}
    for tag in set(CURVES) & set(accumulator.Tags()["scalars"]):
        events = sorted(accumulator.Scalars(tag), key=lambda event: event.wall_time)  # whichever file came first
        steps, values = (
            np.array([getattr(event, name) for event in events], dtype=float) for name in ("step", "value")
        )
        found[tag] = _ascending(TrainingCurve(steps, values))
    return found


def _ascending(curve: TrainingCurve) -> TrainingCurve:
    """Without what was logged again: of a run that was resumed into the same folder, later events count."""
    least_after = np.minimum.accumulate(np.append(curve.iteration[1:], np.inf)[::-1])[::-1]
    kept = curve.iteration < least_after
    return TrainingCurve(curve.iteration[kept], curve.value[kept])


def _joined(parts: Sequence[TrainingCurve]) -> TrainingCurve | None:
    whole: TrainingCurve | None = None
    for part in parts:
        whole = part if whole is None else _continued(whole, part)
    return whole


def _continued(earlier: TrainingCurve, later: TrainingCurve) -> TrainingCurve:
    kept = earlier.iteration < later.iteration.min()
    return TrainingCurve(*(np.concatenate([old[kept], new]) for old, new in zip(earlier, later, strict=True)))


def smoothed(curve: TrainingCurve) -> TrainingCurve:
    """Running mean over a window of 5 % of the iterations, centred, narrower at the ends; never fewer than one."""
    reach = max(0, round(_WINDOW * len(curve.value) / 2))
    padded = np.concatenate([[0.0], np.cumsum(curve.value)])
    at = np.arange(len(curve.value))
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(at))
    return TrainingCurve(curve.iteration, (padded[high] - padded[low]) / (high - low))


def across_seeds(curves: Sequence[TrainingCurve], tag: str) -> Band:
    """Mean and standard deviation of a quantity's smoothed curves at the iterations that every seed logged.

    β and α′ are not smoothed.
    """
    common = curves[0].iteration
    for curve in curves[1:]:
        common = np.intersect1d(common, curve.iteration)
    lines = []
    for curve in curves if tag in _EXACT else map(smoothed, curves):
        order = np.searchsorted(curve.iteration, common)
        lines.append(curve.value[order])
    table = np.array(lines)
    sd = table.std(axis=0, ddof=1) if len(table) > 1 else np.full(len(common), np.nan)
    return Band(common, table.mean(axis=0), sd)
