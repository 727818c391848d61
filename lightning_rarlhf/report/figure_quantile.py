"""Picture: mean reward of the prompts with the lowest scores, against their share (paper, quantile plots)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lightning_rarlhf.figures import INK
from lightning_rarlhf.functional.worst_shares import SHARES, first_share_means
from lightning_rarlhf.report.figure_style import legend_below, looks, new_figure, save, tidy, with_band
from lightning_rarlhf.report.methods import Method
from lightning_rarlhf.report.quantile_curve import QuantileCurve, quantile_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array: TypeAlias = NDArray[np.float64]


def draw_quantile_curves(methods: Sequence[Method], stem: Path, *, resamples: int = 1000, seed: int = 0) -> list[Path]:
    """Write the curve of every method and, from two methods on, its difference to the first.

    Lines are means over training seeds with a bootstrap band over prompts; thin lines are single seeds. Of more than
    six methods only the first has its band, and no difference has one.

    Args:
        methods: comparable ones.
        stem: path of the two files without their endings.
        resamples: bootstrap samples of each band.
        seed: of the resampling.
    """
    confidence = methods[0].runs[0].confidence
    prompt_score = methods[0].runs[0].columns["prompt_score"][:, 0]
    rewards = {method.label: seed_rewards(method) for method in methods}
    means = {label: table.mean(axis=1) for label, table in rewards.items()}
    first = methods[0].label

    def curve(reward: Array) -> QuantileCurve:
        return quantile_curve(prompt_score, reward, confidence=confidence, resamples=resamples, seed=seed)

    curves = {label: curve(reward) for label, reward in means.items()}
    gains = {label: curve(reward - means[first]) for label, reward in means.items() if label != first}

    whose = "bands" if len(with_band(list(curves))) == len(curves) else f"band of {first}"

    def draw() -> Figure:
        figure = new_figure(
            10 if gains else 6.5,
            4.9,
            "Reward on the prompts that score lowest",
            f"{len(prompt_score):,} prompts; {whose}: {100 * confidence:g} % bootstrap over prompts at each q",
        )
        left = figure.add_subplot(1, 2 if gains else 1, 1)
        _draw(left, curves)
        ordered = {label: table[np.argsort(prompt_score, kind="stable")] for label, table in rewards.items()}
        _draw_seeds(left, ordered)
        left.set_title("mean reward of the lowest q % of prompts")
        if gains:
            right = figure.add_subplot(1, 2, 2)
            _draw(right, gains, among=list(curves))
            right.axhline(0, color=INK, linewidth=0.9)
            right.set_title(f"difference to {first}, on the same prompts")
        for axes in figure.axes:
            axes.set_xlabel("q, share of prompts from the lowest prompt score up (%)")
            axes.set_ylabel("reward")
            axes.set_xlim(0, 100)
            tidy(axes)
        figure.subplots_adjust(left=0.6 / figure.get_figwidth(), right=0.98, top=0.79, bottom=0.2, wspace=0.2)
        legend_below(figure, left, columns=5)
        return figure

    return save(draw, stem)


def seed_rewards(method: Method) -> Array:
    """[n, seeds], the reward of each prompt, mean over its responses."""
    return np.stack([run.columns["score"].mean(axis=1) for run in method.runs], axis=1)


def _draw(axes: Axes, curves: Mapping[str, QuantileCurve], among: Sequence[str] = ()) -> None:
    for label, look in looks(list(among or curves)).items():
        if label in curves:
            curve = curves[label]
            if label in with_band(list(among or curves)):
                axes.fill_between(SHARES, curve.low, curve.high, color=look.colour, alpha=0.18, linewidth=0)
            axes.plot(SHARES, curve.estimate, color=look.colour, linestyle=look.dash, linewidth=2, label=label)


def _draw_seeds(axes: Axes, rewards: Mapping[str, Array]) -> None:
    """Rewards [n, seeds] in the order of the prompts' scores."""
    for label, look in looks(list(rewards)).items():
        if rewards[label].shape[1] > 1:
            for line in first_share_means(rewards[label].T):
                axes.plot(SHARES, line, color=look.colour, linewidth=0.6, alpha=0.7)
