"""What a reward returned, as one finite number a response, or refused with what is wrong with it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_rarlhf.errors import RewardError, ScoreError, first_few


def checked_scores(scores: object, expected: int, name: str) -> Tensor:
    """Turn what a reward returned into f32 [B], or refuse it.

    Raises:
        RewardError: not numbers, or the wrong count.
        ScoreError: a score that is not finite, with its row.
    """
    if isinstance(scores, str | bytes):
        raise RewardError(f"reward {name}: returned a string; expected {expected} numbers, one per response")
    try:
        # via float64, so that numbers of any kind are read before they are rounded
        tensor = torch.as_tensor(scores, dtype=torch.float64).detach().cpu().float()
    except (TypeError, ValueError, RuntimeError):
        raise RewardError(
            f"reward {name}: returned {type(scores).__name__} that is no list of numbers; "
            f"expected {expected} numbers, one per response"
        ) from None
    if tuple(tensor.shape) != (expected,):
        raise RewardError(
            f"reward {name}: returned shape {list(tensor.shape)}; expected [{expected}], one score per response"
        )
    bad = [row for row, score in enumerate(tensor.tolist()) if not math.isfinite(score)]
    if bad:
        raise ScoreError(
            f"reward {name}: {len(bad)} of {expected} scores are not finite (responses {first_few(bad)}); "
            "fix the reward",
            rows=bad,
        )
    return tensor
