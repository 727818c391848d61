"""Picture: methods at equal KL, their interpolated rewards and the difference with its simultaneous band."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightning_rarlhf.figures import INK
from lightning_rarlhf.functional.statistics import LEAST_TAIL
from lightning_rarlhf.report.figure_style import Look, legend_below, looks, new_figure, save, tidy
from lightning_rarlhf.report.matched_kl import STATISTICS, Curve, Match, MatchedKL, square_root

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_LINE = 200
"""points of an interpolated line"""


def draw_matched_kl(result: MatchedKL, stem: Path, *, among: Sequence[str] = ()) -> list[Path]:
    """Write four panels: mean and tail reward against KL, and below each the difference to the first method.

    Args:
        result: of `match_kl`.
        stem: path of the two files without their endings.
        among: all labels of the report, so that a method has its colour of the other pictures.
    """
    style = looks(list(dict.fromkeys([*among, *(points.label for points in result.points)])))
    return save(lambda: _compose(result, style), stem)


def _compose(result: MatchedKL, style: dict[str, Look]) -> Figure:
    figure = new_figure(
        10,
        7.6,
        "Reward at equal KL from the reference",
        f"lines: interpolated; bands: {100 * result.confidence:g} %, above at each KL, below at all KL at once; "
        f"thin dots: no claim, {_why_no_claim(result)}",
    )
    titles = {"mean": "mean reward", "tail": f"mean of the worst {100 * result.alpha:g} % of responses"}
    for column, statistic in enumerate(STATISTICS, start=1):
        above = figure.add_subplot(2, 2, column)
        _draw_rewards(above, result, statistic, style)
        above.set_title(titles[statistic])
        above.set_ylabel("reward")
        below = figure.add_subplot(2, 2, column + 2, sharex=above)
        _draw_differences(below, result, statistic, style)
        below.set_title(f"difference to {result.points[0].label} at equal KL")
        below.set_ylabel("reward difference")
        below.set_xlabel("KL from the reference (nats per response)")
        tidy(above)
        tidy(below)
    figure.subplots_adjust(left=0.075, right=0.98, top=0.865, bottom=0.125, wspace=0.18, hspace=0.22)
    legend_below(figure, figure.axes[0], columns=5)
    return figure


def _why_no_claim(result: MatchedKL) -> str:
    why = "runs too far apart"
    return f"{why} or < {LEAST_TAIL} prompts {' or '.join(result.few.values())}" if result.few else why


def _draw_rewards(axes: Axes, result: MatchedKL, statistic: str, style: dict[str, Look]) -> None:
    for points in result.points:
        look = style[points.label]
        kl = np.linspace(points.kl[0], points.kl[-1], _LINE)
        reward = np.interp(square_root(kl), square_root(points.kl), points.reward[statistic])
        axes.plot(kl, reward, color=look.colour, linestyle=look.dash, linewidth=1.6)
        axes.plot(points.kl, points.reward[statistic], look.marker, color=look.colour, markersize=5.5)
        axes.plot(
            [],
            [],
            color=look.colour,
            linestyle=look.dash,
            marker=look.marker,
            markersize=5.5,
            linewidth=1.6,
            label=points.label,
        )
    drawn: set[str] = set()
    for match in result.matches:
        for label, curve in zip((match.first, match.second), match.curves.get(statistic, ()), strict=False):
            if label not in drawn:
                _fill(axes, match, curve, style[label])
            drawn.add(label)


def _draw_differences(axes: Axes, result: MatchedKL, statistic: str, style: dict[str, Look]) -> None:
    axes.axhline(0, color=INK, linewidth=0.9)
    for match in result.matches:
        if statistic in match.difference:
            curve, look = match.difference[statistic], style[match.second]
            _fill(axes, match, curve, look)
            claimed = match.supported & _is_bounded(curve)
            near = np.where(claimed, curve.estimate, np.nan)
            axes.plot(match.kl, near, color=look.colour, linestyle=look.dash, linewidth=1.9)
            unclaimed = np.where(claimed, np.nan, curve.estimate)
            axes.plot(match.kl, unclaimed, color=look.colour, linestyle=":", linewidth=1, alpha=0.6)
    apart = [match.second for match in result.matches if not len(match.kl)]
    if apart:
        axes.text(
            0.5,
            0.04,
            f"no common KL: {', '.join(apart)}",
            transform=axes.transAxes,
            ha="center",
            va="bottom",
            fontsize=9,
        )


def _is_bounded(curve: Curve) -> bool:
    return bool(np.isfinite(curve.low).all() and np.isfinite(curve.high).all())


def _fill(axes: Axes, match: Match, curve: Curve, look: Look) -> None:
    if _is_bounded(curve):
        axes.fill_between(
            match.kl, curve.low, curve.high, where=match.supported, color=look.colour, alpha=0.18, linewidth=0
        )
