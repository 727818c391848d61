"""Loss of a reward model that is learned from human preferences (paper, Eqs. 1-2, for two completions)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bradley_terry_nll(chosen: Tensor, rejected: Tensor) -> Tensor:
    """−log σ(r_chosen − r_rejected), the ranking of two; [B], [B] → [B].

    >>> import torch
    >>> bradley_terry_nll(torch.tensor([0.0]), torch.tensor([0.0]))  # ln 2
    tensor([0.6931])
    """
    return F.softplus(rejected - chosen)
