"""Pictures of a score distribution and its lower tail, one colour per policy, each estimate with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_rarlhf.functional.statistics import Interval, mean_interval
from lightning_rarlhf.functional.tail_intervals import cvar_interval
from lightning_rarlhf.functional.worst_shares import SHARES, worst_share_means
from lightning_rarlhf.one_move import in_one_move

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Scores: TypeAlias = NDArray[np.float64]

PALETTE = ("#5F6B73", "#D55E00", "#0072B2", "#009E73", "#CC79A7")
"""told apart by colour-blind eyes (Okabe and Ito, 2008), after a grey for what came before"""
INK, FAINT = "#222222", "#D9DDE0"
_BINS = 40
STYLE: Any = {
    "text.parse_math": False,  # a dollar sign in a label is one
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "savefig.dpi": 150,
}


def draw_score_distributions(
    scores: Mapping[str, ArrayLike],
    path: Path,
    *,
    title: str,
    subtitle: str = "",
    alpha: float = 0.1,
) -> Path:
    """Write a PNG: a histogram per policy on one scale, and beside them the mean score of the worst q %.

    The mean and the CVaR at `alpha` are marked with 95 % bootstrap intervals over prompts.

    Args:
        scores: [n] of each policy by its name, in the order in which they are to be read; five at most.
        path: the file; its folder is made if need be.
        title: what the picture shows.
        subtitle: a line below the title: how it was measured.
        alpha: risk level of the marked tail, in (0, 1).

    Raises:
        ValueError: no policy or too many, scores that are not finite, or fewer than 1/α of them.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if not 1 <= len(scores) <= len(PALETTE):
        raise ValueError(f"scores: got {len(scores)} policies, expected 1 to {len(PALETTE)}")
    samples = {name: np.asarray(values, dtype=np.float64) for name, values in scores.items()}
    for name, values in samples.items():
        if not np.isfinite(values).all():
            raise ValueError(f"scores: {name} has {int((~np.isfinite(values)).sum())} that are NaN or infinite")
    with rc_context(STYLE):
        figure = _compose(samples, title, subtitle, alpha)
        FigureCanvasAgg(figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        with in_one_move(path) as partial:
            figure.savefig(partial, format="png")
    return path


def _compose(samples: dict[str, Scores], title: str, subtitle: str, alpha: float) -> Figure:
    from matplotlib.figure import Figure

    height = 2.3 + 1.2 * max(2, len(samples))  # inches, of which a fixed part is for the title and the lowest axis
    figure = Figure(figsize=(11, height))
    figure.text(0.06, 1 - 0.38 / height, title, fontsize=14, weight="bold", va="center")
    figure.text(0.06, 1 - 0.70 / height, subtitle, fontsize=9.5, color="#555555", va="center")
    grid = figure.add_gridspec(len(samples), 2, width_ratios=(1.35, 1))
    grid.update(left=0.06, right=0.97, top=1 - 1.2 / height, bottom=0.62 / height, wspace=0.16, hspace=0.2)
    rows = [figure.add_subplot(grid[row, 0]) for row in range(len(samples))]
    curves = figure.add_subplot(grid[:, 1])

    edges = np.histogram_bin_edges(np.concatenate(list(samples.values())), bins=_BINS)
    for axes, (name, values), colour in zip(rows, samples.items(), PALETTE, strict=False):
        marks = {"v": cvar_interval(values, alpha), "D": mean_interval(values)}
        _draw_histogram(axes, values, edges, alpha, colour)
        _mark_histogram(axes, marks, _shares(values, edges).max(), colour)
        axes.set_title(name, loc="right", y=0.72, fontsize=11, weight="bold", color=colour)
        curves.plot(SHARES, worst_share_means(values), color=colour, linewidth=2, label=name)
        _mark_curve(curves, marks, alpha, colour)
    _label_rows(rows, alpha)
    _label_curves(curves, alpha)
    return figure


def _shares(values: Scores, edges: Scores) -> Scores:
    """Share of the values in each bin, in per cent."""
    return 100 * np.histogram(values, edges)[0] / len(values)


def _draw_histogram(axes: Axes, values: Scores, edges: Scores, alpha: float, colour: str) -> None:
    """Shares per bin; what lies at or below the quantile α is the darker part."""
    from matplotlib.patches import Rectangle

    share = _shares(values, edges)
    quantile = float(np.quantile(values, alpha, method="inverted_cdf"))
    axes.stairs(share, edges, fill=True, color=colour, alpha=0.3)
    tail = axes.stairs(share, edges, fill=True, color=colour, alpha=0.75)
    low = float(edges[0])
    tail.set_clip_path(Rectangle((low, 0), quantile - low, 100, transform=axes.transData))
    axes.stairs(share, edges, color=colour, linewidth=1.1)


def _mark_histogram(axes: Axes, marks: dict[str, Interval], tallest: float, colour: str) -> None:
    """Estimate and interval above the histogram; numbers to the outer sides, where they cannot meet."""
    height = 1.25 * tallest
    for (marker, interval), side in zip(marks.items(), (-1, 1), strict=True):
        at = interval.estimate
        axes.plot([at, at], [0, height], color=colour, linewidth=0.9, linestyle=(0, (3, 2)))
        axes.errorbar(at, height, xerr=_reach(interval), fmt=marker, color=colour, markersize=6.5, capsize=3)
        axes.annotate(
            f"{at:+.1f}".replace("-", "−"),
            (interval.low if side < 0 else interval.high, height),
            xytext=(6 * side, 0),
            textcoords="offset points",
            ha="right" if side < 0 else "left",
            va="center",
            color=colour,
        )
    axes.set_ylim(0, 1.5 * tallest)


def _mark_curve(axes: Axes, marks: dict[str, Interval], alpha: float, colour: str) -> None:
    for level, (marker, interval) in zip((100 * alpha, 100), marks.items(), strict=True):
        axes.errorbar(
            level,
            interval.estimate,
            yerr=_reach(interval),
            fmt=marker,
            color=colour,
            markersize=6.5,
            capsize=3,
            clip_on=False,
        )


def _reach(interval: Interval) -> list[list[float]]:
    """Lengths of an error bar's two arms."""
    return [[max(0.0, interval.estimate - interval.low)], [max(0.0, interval.high - interval.estimate)]]


def _label_rows(rows: list[Axes], alpha: float) -> None:
    low, high = rows[0].dataLim.intervalx
    room = 0.08 * (high - low)  # for the number to the left of a tail at the very end
    for axes in rows:
        axes.set_xlim(low - room, high + room)
        axes.tick_params(length=0, labelbottom=axes is rows[-1])
        axes.grid(axis="x", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
    rows[0].set_title(
        f"share of outputs per bin (%), each to its own scale; darker: the worst {100 * alpha:g} %",
        loc="left",
        fontsize=10,
    )
    rows[-1].set_xlabel("score (points)")


def _label_curves(axes: Axes, alpha: float) -> None:
    from matplotlib.lines import Line2D

    axes.set_xlim(0, 100)
    axes.set_xticks([10, 25, 50, 75, 100])
    axes.set_xlabel("q, share of outputs from the worst up (%)")
    axes.set_title("mean score of the worst q % (points)", fontsize=10, loc="left")
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    key = [
        Line2D([], [], color=INK, marker=marker, linestyle="none", label=label)
        for marker, label in (("v", f"mean of the worst {100 * alpha:g} %"), ("D", "mean of all"))
    ]
    lines = axes.get_legend_handles_labels()[0]
    # Curves rise from the left: the lower right corner is the one that they leave free.
    legend = axes.legend(handles=[*lines, *key], loc="lower right", labelcolor="linecolor", handlelength=1.4)
    legend.get_frame().set(facecolor="white", edgecolor="none", alpha=0.9)
