"""Losses of a reward model that is learned from human rankings (paper, Eqs. 1-2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def plackett_luce_nll(scores: Tensor) -> Tensor:
    """−log P(ranking) of K ranked completions: [B, K], the best first → [B].

    P = Π_k exp(r_k) / Σ_{j ≥ k} exp(r_j): the best is drawn among all, the next among the rest, and so on.
    """
    rest = scores.flip(-1).logcumsumexp(dim=-1).flip(-1)
    return (rest - scores).sum(dim=-1)


def bradley_terry_nll(chosen: Tensor, rejected: Tensor) -> Tensor:
    """−log σ(r_chosen − r_rejected), the ranking of two; [B], [B] → [B].

    >>> import torch
    >>> bradley_terry_nll(torch.tensor([0.0]), torch.tensor([0.0]))  # ln 2
    tensor([0.6931])
    """
    return F.softplus(rejected - chosen)
