"""Picture: how the rewards of a class of prompts shift from the prompts themselves to each method's responses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lightning_rarlhf.figures import INK
from lightning_rarlhf.report.figure_style import looks, new_figure, save, tidy
from lightning_rarlhf.report.methods import Method

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array: TypeAlias = NDArray[np.float64]

BINS = 30
_PROMPT = "prompts alone"
_PROMPT_COLOUR = "#9AA3A9"


class _Row(NamedTuple):
    label: str
    colour: str
    score: Array
    """[n, any]"""


def draw_distribution_shift(methods: Sequence[Method], stem: Path) -> list[Path]:
    """Write histograms of 30 bins: a row for the prompts and one per method, a column per class.

    All share one axis; seeds and responses of one method are pooled. Vertical lines are means.

    Args:
        methods: comparable ones.
        stem: path of the two files without their endings.
    """
    first = methods[0].runs[0]
    label = first.columns["label"][:, 0]
    rows = [_Row(_PROMPT, _PROMPT_COLOUR, first.columns["prompt_score"])]
    for name, look in looks([method.label for method in methods]).items():
        runs = next(method.runs for method in methods if method.label == name)
        rows.append(_Row(name, look.colour, np.concatenate([run.columns["score"] for run in runs], axis=1)))
    edges = np.histogram_bin_edges(np.concatenate([row.score.ravel() for row in rows]), bins=BINS)
    classes = {f"{name} class": label == number for number, name in ((1, "wanted"), (0, "unwanted"))}
    present = {name: chosen for name, chosen in classes.items() if chosen.any()} or {"all": label == label}
    return save(lambda: _compose(rows, present, edges), stem)


def _compose(rows: Sequence[_Row], classes: dict[str, NDArray[np.bool_]], edges: Array) -> Figure:
    from matplotlib.patheffects import withStroke

    outline = [withStroke(linewidth=3, foreground="white")]  # a label stays legible where the mean's line crosses it
    height = 1.9 + 1.05 * len(rows)
    figure = new_figure(
        4.6 * len(classes) + 1.2,
        height,
        "Rewards of prompts and of prompts with responses",
        f"share of texts in each of {BINS} bins, each row to its own scale; vertical line: mean",
    )
    grid = figure.subplots(len(rows), len(classes), sharex=True, sharey="row", squeeze=False)
    width = figure.get_figwidth()
    figure.subplots_adjust(
        left=0.75 / width, right=1 - 0.25 / width, top=1 - 1.15 / height, bottom=0.62 / height, wspace=0.1, hspace=0.2
    )
    for line, row in zip(grid, rows, strict=True):
        for axes, (name, chosen) in zip(line, classes.items(), strict=True):
            _histogram(axes, row.score[chosen].ravel(), edges, row.colour)
            place = {"x": 0.015, "y": 0.93, "transform": axes.transAxes, "va": "top"}
            axes.text(s=row.label, weight="bold", fontsize=9.5, path_effects=outline, **place)
            if row is rows[0]:
                axes.set_title(f"{name}, {int(chosen.sum()):,} prompts", pad=8)
            if row is rows[-1]:
                axes.set_xlabel("reward (prompts alone: prompt score)")
        line[0].set_ylim(bottom=0)  # of both: the row's scale stays as it is from then on
    figure.text(0.18 / width, 0.5, "share of texts (%)", rotation=90, va="center")
    return figure


def _histogram(axes: Axes, score: Array, edges: Array, colour: str) -> None:
    share = 100 * np.histogram(score, edges)[0] / len(score)
    axes.stairs(share, edges, fill=True, color=colour, alpha=0.45)
    axes.stairs(share, edges, color=colour, linewidth=1.1)
    axes.axvline(float(score.mean()), color=INK, linewidth=1.2)
    axes.set_xlim(edges[0], edges[-1])
    tidy(axes)
