"""Picture: quantiles of the rewards, each method with a band that holds for its whole curve at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightning_rarlhf.functional.bounds import QuantileBand, quantile_band
from lightning_rarlhf.report.figure_style import legend_below, looks, new_figure, save, tidy, with_band
from lightning_rarlhf.report.methods import Method

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVELS = np.arange(1, 201) / 200
"""of the quantiles that are drawn"""
_WORST = 20
"""per cent of the responses that the second panel shows"""


def draw_score_quantiles(methods: Sequence[Method], stem: Path) -> list[Path]:
    """Write the quantiles of all responses and, enlarged, those of the worst fifth.

    Bands are Dvoretzky, Kiefer and Wolfowitz's over prompts, seeds and responses pooled: valid for every number of
    prompts and every distribution. Where so many prompts bound a quantile on one side only, that side is a thin line.
    Of more than six methods only the first has its band.

    Args:
        methods: comparable ones.
        stem: path of the two files without their endings.
    """
    first = methods[0].runs[0]
    bands = {method.label: score_quantiles(method) for method in methods}

    every = len(with_band(list(bands))) == len(bands)
    whose, curve = ("bands", "a method's whole curve") if every else (f"band of {methods[0].label}", "its whole curve")

    def draw() -> Figure:
        figure = new_figure(
            10,
            4.9,
            "Rewards from the worst response up",
            f"{len(first):,} prompts; {whose}: {100 * first.confidence:g} % Dvoretzky-Kiefer-Wolfowitz over prompts, "
            f"for {curve} at once; thin lines: bounded on that side only",
        )
        for number, upto in enumerate((100, _WORST)):
            axes = figure.add_subplot(1, 2, number + 1)
            _draw(axes, bands, upto)
            axes.set_title("all responses" if upto == 100 else f"the worst {upto} %")
            axes.set_xlabel("share of responses with at most this reward (%)")
            axes.set_ylabel("reward")
            tidy(axes)
        figure.subplots_adjust(left=0.06, right=0.98, top=0.79, bottom=0.2, wspace=0.2)
        legend_below(figure, figure.axes[0], columns=5)
        return figure

    return save(draw, stem)


def score_quantiles(method: Method) -> QuantileBand:
    """[200] each, at `LEVELS`, of the responses of all its seeds."""
    scores = np.concatenate([run.columns["score"] for run in method.runs], axis=1)
    return quantile_band(scores, LEVELS, method.runs[0].confidence)


def _draw(axes: Axes, bands: Mapping[str, QuantileBand], upto: int) -> None:
    shown = upto >= 100 * LEVELS
    share = 100 * LEVELS[shown]
    for label, look in looks(list(bands)).items():
        estimate, low, high = (part[shown] for part in bands[label])
        if label in with_band(list(bands)):
            both = np.isfinite(low) & np.isfinite(high)
            axes.fill_between(share, low, high, where=both, step="pre", color=look.colour, alpha=0.15, linewidth=0)
            for end in (low, high):
                axes.step(share, np.where(both, np.nan, end), color=look.colour, linewidth=0.7, alpha=0.8)
        axes.step(share, estimate, color=look.colour, linestyle=look.dash, linewidth=1.8, label=label)
    axes.set_xlim(0, upto)
