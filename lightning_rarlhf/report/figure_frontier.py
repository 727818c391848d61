"""Picture: mean and tail reward of every run against its KL from the reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightning_rarlhf.functional.statistics import Interval, mean_interval
from lightning_rarlhf.records.results import Run
from lightning_rarlhf.report.figure_style import Look, legend_below, looks, new_figure, save, tidy
from lightning_rarlhf.report.measures import Measure, seed_average
from lightning_rarlhf.report.methods import Method

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def has_kl(method: Method) -> bool:
    """Whether every run of the method has a KL for every response."""
    return all(np.isfinite(run.columns["kl"]).all() for run in method.runs)


def draw_frontier(
    methods: Sequence[Method], stem: Path, *, alpha: float, resamples: int = 1000, seed: int = 0
) -> list[Path]:
    """Write a point per run, with intervals over prompts both ways.

    Args:
        methods: comparable ones with KL from one reference.
        stem: path of the two files without their endings.
        alpha: risk level of the tail; αn ≥ 1.
        resamples: bootstrap samples of each interval.
        seed: of the resampling.
    """
    confidence = methods[0].runs[0].confidence

    def points(run: Run) -> tuple[Interval, Interval, Interval]:
        """KL, mean reward, tail reward."""
        kl, score = run.columns["kl"], run.columns["score"]
        means = (
            mean_interval(values.mean(axis=1), confidence=confidence, resamples=resamples, seed=seed)
            for values in (kl, score)
        )
        tail = Measure(values=score, alpha=alpha)
        return *means, seed_average([tail], confidence=confidence, resamples=resamples, seed=seed)  # type: ignore[return-value]

    found = {method.label: [points(run) for run in method.runs] for method in methods}

    def draw() -> Figure:
        figure = new_figure(
            10,
            4.9,
            "Reward against distance from the reference",
            f"a point per run; bars: {100 * confidence:g} % bootstrap over prompts. To compare: equal KL, or higher "
            "reward at lower KL",
        )
        for number, title in ((1, "mean reward"), (2, f"mean of the worst {100 * alpha:g} % of responses")):
            axes = figure.add_subplot(1, 2, number)
            for label, look in looks(list(found)).items():
                _scatter(axes, label, [(point[0], point[number]) for point in found[label]], look)
            axes.set_title(title)
            axes.set_xlabel("KL from the reference (nats per response)")
            axes.set_ylabel("reward")
            axes.margins(0.08)
            tidy(axes)
        figure.subplots_adjust(left=0.06, right=0.98, top=0.79, bottom=0.2, wspace=0.16)
        legend_below(figure, figure.axes[0], columns=5)
        return figure

    return save(draw, stem)


def _scatter(axes: Axes, label: str, points: Sequence[tuple[Interval, Interval]], look: Look) -> None:
    axes.errorbar(
        [kl.estimate for kl, _ in points],
        [reward.estimate for _, reward in points],
        xerr=_reaches([kl for kl, _ in points]),
        yerr=_reaches([reward for _, reward in points]),
        fmt=look.marker,
        color=look.colour,
        markersize=6,
        capsize=2.5,
        linewidth=1.1,
        label=label,
    )


def _reaches(intervals: Sequence[Interval]) -> list[list[float]]:
    """Lengths of the bars' arms, [2][points]; NaN, hence no arm, where an end is not known."""
    arms = [[max(0.0, i.estimate - i.low), max(0.0, i.high - i.estimate)] for i in intervals]
    known = [[arm if np.isfinite(arm) else np.nan for arm in pair] for pair in arms]
    return [list(side) for side in zip(*known, strict=True)]
