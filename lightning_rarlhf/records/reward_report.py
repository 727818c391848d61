"""What `test` of a reward model leaves: its figures with intervals in JSON, and a picture of its calibration."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_rarlhf import __version__
from lightning_rarlhf.figures import PALETTE
from lightning_rarlhf.functional.bounds import clopper_pearson
from lightning_rarlhf.functional.checks import Array
from lightning_rarlhf.functional.classification import (
    Reliability,
    auroc,
    auroc_interval,
    calibration_null,
    expected_calibration_error,
    reliability,
)
from lightning_rarlhf.functional.statistics import Interval, mean_interval
from lightning_rarlhf.one_move import in_one_move, or_say_why

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESULTS = "reward_results.json"
PICTURE = "reliability.png"
_BINS = 15
_COLUMNS = 3


@dataclass(frozen=True)
class Calibration:
    """The estimated calibration error and what it would be by chance; no interval, as the estimate is biased upward."""

    estimate: float
    """mean |confidence − frequency|"""
    null_low: float
    """95 % of the estimates lie from here ..."""
    null_high: float
    """... to here where the model's probabilities are right; above it they are not"""
    n: int
    """predictions, or pairs"""

    def __str__(self) -> str:
        return f"{self.estimate:.3f}, {self.null_low:.3f} to {self.null_high:.3f} if calibrated, n = {self.n}"


Measures = dict[str, Interval | Calibration]


def known_by_label(scores: Array, labels: Array, names: list[str]) -> dict[str, tuple[Array, Array]]:
    """Logits and labels [n] of the texts of which the label is known, of each label that has any; both [n, L]."""
    known = np.isfinite(labels)
    columns = {name: known[:, column] for column, name in enumerate(names)}
    return {
        name: (scores[rows, column], labels[rows, column])
        for column, (name, rows) in enumerate(columns.items())
        if rows.any()
    }


def aurocs_of_labels(scores: Array, labels: Array, names: list[str]) -> dict[str, float]:
    """AUC of each label that has both classes; [n, L], [n, L]."""
    found = known_by_label(scores, labels, names)
    return {name: float(auroc(z, y)) for name, (z, y) in found.items() if _both_classes(y)}


def measures_of_labels(scores: Array, labels: Array, names: list[str]) -> Measures:
    """AUC, calibration error, log loss and accuracy of each label; no AUC where only one class was seen.

    Args:
        scores: [n, L], logits.
        labels: [n, L], 0, 1 or NaN = unknown.
        names: L.
    """
    found: Measures = {}
    for name, (z, y) in known_by_label(scores, labels, names).items():
        if _both_classes(y):
            found[f"{name}/auroc"] = auroc_interval(z, y)
        found[f"{name}/calibration_error"] = _calibration(z, y)
        found[f"{name}/log_loss"] = mean_interval(np.logaddexp(0, z) - z * y)
        found[f"{name}/accuracy"] = clopper_pearson(int(((z > 0) == (y == 1)).sum()), len(y), 0.95)
        found[f"{name}/positives"] = clopper_pearson(int(y.sum()), len(y), 0.95)
    return found


def measures_of_pairs(margins: Array) -> Measures:
    """Accuracy, log loss and calibration error of the margins r_chosen − r_rejected, [n]; a tie is half right.

    Calibration looks at each pair both ways round: how often does the one win that wins with probability σ(margin)?
    """
    return {
        "pairs/accuracy": _accuracy(margins),
        "pairs/log_loss": mean_interval(np.logaddexp(0, -margins)),
        "pairs/calibration_error": _calibration(margins, None),
    }


def _accuracy(margins: Array) -> Interval:
    """Exact where no pair ties: then it is a rate."""
    if (margins == 0).any():
        return mean_interval((margins > 0) + 0.5 * (margins == 0))
    return clopper_pearson(int((margins > 0).sum()), len(margins), 0.95)


def both_ways(margins: Array) -> tuple[Array, Array]:
    """Margins and outcomes of each pair as it is and turned round; [2n], [2n]."""
    return np.concatenate([margins, -margins]), np.concatenate([np.ones_like(margins), np.zeros_like(margins)])


def write_reward_report(
    folder: Path,
    metrics: Mapping[str, Interval | Calibration],
    curves: Mapping[str, tuple[Array, Array]],
    identity: Mapping[str, Any],
) -> None:
    """Write both files and print the figures.

    Args:
        folder: of the run.
        metrics: figures by name.
        curves: logits [n] and outcomes [n] by label, for the picture.
        identity: what the results say of model and data.

    Raises:
        WriteError: the disk is full, ...; former files are as they were.
    """
    bins = {name: reliability(_sigmoid(scores), labels, _BINS) for name, (scores, labels) in curves.items()}
    content = {
        "schema_version": 2,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "code_version": __version__,
        **identity,
        "metrics": {name: _as_json(figure) for name, figure in metrics.items()},
        "reliability": {name: _rows(found) for name, found in bins.items()},
    }
    with or_say_why(folder / RESULTS), in_one_move(folder / RESULTS) as path:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=str)
        path.write_text(text + "\n", encoding="utf-8")
        _draw(bins, folder / PICTURE)  # before the results move in: a picture that fails leaves both as they were
    for name, figure in metrics.items():
        print(f"{name}: {figure if isinstance(figure, Calibration) else _said(figure)}")


def _as_json(figure: Interval | Calibration) -> dict[str, Any]:
    """JSON knows no infinity: an end that is not known is null."""
    return {name: None if value in (-math.inf, math.inf) else value for name, value in asdict(figure).items()}


def _said(interval: Interval) -> str:
    if not interval.is_bounded:
        return f"{interval.estimate:.3f} (too few for an interval), n = {interval.n}"
    return f"{interval.estimate:.3f} ({interval.low:.3f} to {interval.high:.3f}), n = {interval.n}"


def _both_classes(labels: Array) -> bool:
    return bool(0 < labels.sum() < len(labels))


def _calibration(scores: Array, labels: Array | None) -> Calibration:
    """Of logits and labels [n], or of the margins of pairs."""
    logits, outcomes = both_ways(scores) if labels is None else (scores, labels)
    null = calibration_null(_sigmoid(scores), _BINS, mirrored=labels is None)
    low, high = np.quantile(null, [0.025, 0.975])
    estimate = expected_calibration_error(reliability(_sigmoid(logits), outcomes, _BINS))
    return Calibration(estimate, float(low), float(high), len(scores))


def _sigmoid(scores: Array) -> Array:
    return np.exp(-np.logaddexp(0, -scores))


def _rows(found: Reliability) -> list[dict[str, float]]:
    rows = zip(found.counts.tolist(), found.confidence.tolist(), found.frequency.tolist(), strict=True)
    return [{"count": n, "confidence": p, "frequency": f} for n, p, f in rows if n]


def _draw(bins: Mapping[str, Reliability], path: Path) -> None:
    """A panel a label: observed frequency against predicted probability, with Clopper-Pearson intervals of each bin."""
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(bins))
    rows = math.ceil(len(bins) / columns)
    figure = Figure(figsize=(1.2 + 2.9 * columns, 0.7 + 2.7 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for (name, found), axes in zip(bins.items(), panels, strict=False):
        filled: NDArray[np.bool_] = found.counts > 0
        p, f, n = found.confidence[filled], found.frequency[filled], found.counts[filled]
        bounds = [clopper_pearson(round(share * count), int(count), 0.95) for share, count in zip(f, n, strict=True)]
        low, high = np.array([[b.low for b in bounds], [b.high for b in bounds]])
        axes.plot([0, 1], [0, 1], color="#B0B6BA", linewidth=1, linestyle=(0, (4, 3)))
        error = [np.clip(f - low, 0, None), np.clip(high - f, 0, None)]
        axes.errorbar(p, f, yerr=error, color=PALETTE[2], marker="o", markersize=4, linewidth=1.2, capsize=2)
        axes.set_title(f"{name}, {int(n.sum()):,} texts" if len(bins) > 1 else name, fontsize=10, parse_math=False)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(panels):
        axes.set_axis_off()  # of a last row that is not full
    figure.supxlabel("predicted probability", fontsize=10)
    figure.supylabel("observed frequency\nbars: 95 % Clopper-Pearson", fontsize=10)  # two lines: there may be one panel
    with in_one_move(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
