"""Picture: training curves of all methods, mean and spread over their seeds (paper, Figures 3 and 4 in form)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightning_rarlhf.report.figure_style import Look, legend_below, looks, new_figure, save, tidy
from lightning_rarlhf.report.training_curves import CURVES, TrainingCurve, across_seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 4
Curves = Mapping[str, Sequence[Mapping[str, TrainingCurve]]]
"""by label, one dict of `read_training_curves` per seed"""


def draw_training_curves(curves: Curves, stem: Path, *, among: Sequence[str] = ()) -> list[Path]:
    """Write a panel for each of `training_curves.CURVES` that was logged.

    One seed: every iteration thin, the running mean bold. Several: their mean with a band of ± 1 sd.

    Args:
        curves: at least one quantity of one run.
        stem: path of the two files without their endings.
        among: all labels of the report, so that a method has its colour of the other pictures.
    """
    tags = [tag for tag in CURVES if any(tag in seed for seeds in curves.values() for seed in seeds)]
    style = looks(list(dict.fromkeys([*among, *curves])))

    def draw() -> Figure:
        lines = -(-len(tags) // _COLUMNS)
        height = 1.5 + 2.3 * lines
        several = any(len(seeds) > 1 for seeds in curves.values())
        figure = new_figure(
            12.5,
            height,
            "Training",
            "thin: every iteration; bold: running mean over 5 % of the iterations"
            + ("; several seeds: their mean, band ± 1 standard deviation" if several else ""),
        )
        for number, tag in enumerate(tags, start=1):
            axes = figure.add_subplot(lines, _COLUMNS, number)
            for label, seeds in curves.items():
                _draw(axes, label, tag, [seed[tag] for seed in seeds if tag in seed], style[label])
            axes.set_title(CURVES[tag])
            axes.set_xlabel("iteration" if number > len(tags) - _COLUMNS else "")
            tidy(axes)
        figure.subplots_adjust(
            left=0.045, right=0.985, top=1 - 1.05 / height, bottom=0.9 / height, wspace=0.26, hspace=0.32
        )
        first = figure.axes[0]
        for label in curves:  # a method may lack the first quantity
            if label not in first.get_legend_handles_labels()[1]:
                first.plot([], [], color=style[label].colour, linestyle=style[label].dash, linewidth=1.9, label=label)
        legend_below(figure, first, columns=6)
        return figure

    return save(draw, stem)


def _draw(axes: Axes, label: str, tag: str, seeds: Sequence[TrainingCurve], look: Look) -> None:
    if not seeds:
        return
    band = across_seeds(seeds, tag)
    if len(seeds) == 1:
        axes.plot(seeds[0].iteration, seeds[0].value, color=look.colour, linewidth=0.6, alpha=0.4)
    else:
        axes.fill_between(
            band.iteration, band.mean - band.sd, band.mean + band.sd, color=look.colour, alpha=0.2, linewidth=0
        )
    axes.plot(band.iteration, band.mean, color=look.colour, linestyle=look.dash, linewidth=1.9, label=label)
    if np.ptp(band.mean) == 0 and len(seeds) == 1:  # a constant needs room to be seen as one
        axes.margins(y=0.2)
