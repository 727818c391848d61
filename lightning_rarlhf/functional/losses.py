"""PPO's two losses (Schulman et al. 2017) and what is worth logging about them.

Each loss is a mean over the counted tokens. Given a `denominator` it is their sum divided by that instead: parts of a
batch, each divided by the token count of the whole, then add up to the loss of the whole, gradients included, however
the batch was cut.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_rarlhf.functional.kl import k2
from lightning_rarlhf.functional.masked import masked_mean


class PolicyLoss(NamedTuple):
    """The actor's loss and three detached figures, reduced the same way; scalars."""

    loss: Tensor
    approx_kl: Tensor
    """mean ½ (log π - log π_old)², in nats²"""
    clip_fraction: Tensor
    """share of tokens whose clipped objective is the worse one, so that they give no gradient"""
    ratio_mean: Tensor
    """mean π/π_old"""


def _reduce(values: Tensor, mask: Tensor, denominator: Tensor | float | None) -> Tensor:
    if denominator is None:
        return masked_mean(values, mask)
    return torch.where(mask, values, 0.0).sum() / denominator


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    cliprange: float,
    *,
    denominator: Tensor | float | None = None,
) -> PolicyLoss:
    """PPO's clipped objective, negated: mean of max(-A ρ, -A clip(ρ, 1 ± ε)) with ρ = π/π_old.

    A ratio beyond the largest float is infinite. With A ≥ 0 it is clipped, like any other that has risen too far, and
    gives no gradient; with A < 0 the loss itself is infinite.

    Args:
        logprobs: f32 [B, T], log π; carries the gradient.
        old_logprobs: f32 [B, T], log π_old.
        advantages: f32 [B, T].
        mask: bool [B, T]; True = a response token.
        cliprange: ε.
        denominator: divide the sums by this; none = by the number of counted tokens.
    """
    # Masked before the exponential: what overflows in a padding column would turn the gradient into 0·∞.
    logratio = torch.where(mask, logprobs - old_logprobs, 0.0)
    # Where the clipped objective counts for sure, the ratio stays finite: its gradient would be 0·∞, too.
    highest = torch.where(advantages >= 0, math.log(torch.finfo(logratio.dtype).max) - 1, math.inf)
    ratio = logratio.clamp(max=highest).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    with torch.no_grad():
        approx_kl = _reduce(k2(logratio), mask, denominator)
        clip_fraction = _reduce((clipped > unclipped).to(ratio.dtype), mask, denominator)
        ratio_mean = _reduce(logratio.exp(), mask, denominator)
    loss = _reduce(torch.maximum(unclipped, clipped), mask, denominator)
    return PolicyLoss(loss, approx_kl, clip_fraction, ratio_mean)


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    cliprange_value: float,
    *,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Critic's loss: ½ mean of the larger of (V - R)² and (clip(V, V_old ± ε) - R)², a scalar.

    The paper prints the error without its square; this is what its figures were made with.

    Args:
        values: f32 [B, T], V; carries the gradient.
        old_values: f32 [B, T], V at sampling time.
        returns: f32 [B, T], the targets R.
        mask: bool [B, T]; True = a response token.
        cliprange_value: ε, in the unit of the score.
        denominator: divide the sum by this; none = by the number of counted tokens.
    """
    clipped = values.clamp(old_values - cliprange_value, old_values + cliprange_value)
    # Masked before the square, which would turn a NaN or an overflow into a NaN gradient.
    unclipped_error = torch.where(mask, values - returns, 0.0).square()
    clipped_error = torch.where(mask, clipped - returns, 0.0).square()
    return 0.5 * _reduce(torch.maximum(unclipped_error, clipped_error), mask, denominator)
