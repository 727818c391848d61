"""Reward on the prompts that are hard by themselves: those whose own score, without a response, is low."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_rarlhf.functional.risk import tail_rows, tail_size


def rows_at_most(prompt_scores: Tensor, threshold: float) -> Tensor:
    """Row numbers of the prompts that score at most `threshold`, ascending, i64 [m]; perhaps none."""
    return (prompt_scores <= as_score(threshold)).nonzero().squeeze(1)


def as_score(threshold: float) -> float:
    """The float32 next to a threshold: scores are such, and 0.1 is none, so that none would ever equal it.

    >>> as_score(0.5)
    0.5
    >>> as_score(0.1) == torch.tensor([0.1]).item()
    True
    """
    return torch.tensor(threshold, dtype=torch.float32).item()


def lowest_rows(prompt_scores: Tensor, share: float) -> Tensor:
    """Row numbers of the ⌈share · n⌉ prompts with the lowest scores, ascending, i64 [m]; of ties the first ones."""
    return tail_rows(prompt_scores, tail_size(len(prompt_scores), share))


def tail_reward(scores: Tensor, prompt_scores: Tensor, threshold: float) -> Tensor:
    """Mean reward of the prompts that score at most `threshold`, a scalar; NaN where there is none.

    Args:
        scores: float [n], reward of each prompt with its response.
        prompt_scores: float [n], reward of each prompt alone.
        threshold: −2.5 for IMDB, +5 for the toxicity tasks (paper).

    >>> tail_reward(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([-3.0, -2.5, 0.0]), threshold=-2.5)
    tensor(2.)
    """
    _require_paired(scores, prompt_scores)
    return scores[rows_at_most(prompt_scores, threshold)].mean()


def _require_paired(scores: Tensor, prompt_scores: Tensor) -> None:
    if scores.shape != prompt_scores.shape or scores.dim() != 1 or not torch.is_floating_point(scores):
        raise ValueError(
            f"prompt_scores: got shape {list(prompt_scores.shape)}, expected floats [n] as scores, {list(scores.shape)}"
        )
