"""Metrics over all processes' responses; the pure functions they call are in `functional`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_rarlhf.functional.risk import cvar


class ScoreSummary(Metric):
    """Mean, standard deviation and lower tails of the scores of a prompt set, and the responses' mean length.

    `compute` gives ``score_mean``, ``score_std``, ``response_length_mean`` and ``cvar_<100 α>`` for each level α.
    """

    full_state_update = False
    higher_is_better = True
    scores: list[Tensor]
    lengths: list[Tensor]

    def __init__(self, tail_levels: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tail_levels = tuple(tail_levels)
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("lengths", default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, lengths: Tensor) -> None:
        """Add one batch: scores f32 [B], response lengths i64 [B]."""
        self.scores.append(scores.detach())
        self.lengths.append(lengths.detach())

    def compute(self) -> dict[str, Tensor]:
        """The summary of everything added since the last reset."""
        scores = dim_zero_cat(self.scores)
        tails = {level_name(level): cvar(scores, level) for level in self.tail_levels}
        return {
            "score_mean": scores.mean(),
            "score_std": scores.std() if len(scores) > 1 else torch.zeros_like(scores.sum()),
            "response_length_mean": dim_zero_cat(self.lengths).float().mean(),
            **tails,
        }


def level_name(level: float) -> str:
    """``cvar_10`` for α = 0.1, ``cvar_2.5`` for α = 0.025."""
    return f"cvar_{100 * level:g}"
