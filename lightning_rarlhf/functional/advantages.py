"""From scores to rewards, returns and advantages (paper, Eq. 5; Schulman et al. 2016 for GAE).

Response columns only: [B, T], row b's tokens in its first columns, `mask` True on them. What lies beyond a row's end is
never read and comes out as 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_rarlhf.functional.masked import is_rounding, masked_var
from lightning_rarlhf.functional.sequences import last_token_index


def token_rewards(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """KL-penalised reward of each token (Eq. 5): r̄_t = r_t - β (log π(a_t|s_t) - log π_ref(a_t|s_t)).

    r_t is 0 except at the last counted token, which receives the score.

    Args:
        scores: f32 [B], score of each finished text.
        logprobs: f32 [B, T], log π(a_t|s_t).
        ref_logprobs: f32 [B, T], log π_ref(a_t|s_t).
        mask: bool [B, T]; True = a response token.
        kl_coef: β.

    Returns:
        f32 [B, T]; 0 outside the mask, and all 0 in a row without tokens.
    """
    penalty = torch.where(mask, kl_coef * (logprobs - ref_logprobs), 0.0)
    columns = torch.arange(mask.shape[1], device=mask.device)
    is_last = mask & (columns == last_token_index(mask).unsqueeze(1))
    return torch.where(is_last, scores.unsqueeze(1), 0.0) - penalty


def episode_returns(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Return of each episode, R = Σ_t γ^t r̄_t with t = 0 at the first response token, f32 [B].

    Args:
        rewards: f32 [B, T], as made by `token_rewards`.
        mask: bool [B, T]; True = a response token.
        gamma: discount per token.
    """
    discounts = gamma ** torch.arange(mask.shape[1], dtype=rewards.dtype, device=rewards.device)
    return torch.where(mask, rewards * discounts, 0.0).sum(dim=1)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and the λ-returns that the critic learns.

    δ_t = r̄_t + γ V_{t+1} - V_t,  A_t = δ_t + γλ A_{t+1},  return_t = A_t + V_t; V and A are 0 after a row's last token,
    because the text is finished there, also where it was cut at T.

    Args:
        rewards: f32 [B, T].
        values: f32 [B, T], V(s_t) before the token a_t.
        mask: bool [B, T]; True = a response token.
        gamma: discount per token.
        lam: λ; 1 = Monte Carlo, 0 = one-step temporal difference.

    Returns:
        advantages and returns, f32 [B, T] each; 0 outside the mask.
    """
    rewards = torch.where(mask, rewards, 0.0)
    values = torch.where(mask, values, 0.0)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = rewards + gamma * next_values - values
    advantages = torch.zeros_like(deltas)
    running = deltas.new_zeros(deltas.shape[0])
    for t in reversed(range(deltas.shape[1])):
        running = deltas[:, t] + gamma * lam * running
        advantages[:, t] = running
    return advantages, advantages + values


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Share of the returns' variance that the critic foresaw, 1 - Var(returns - V) / Var(returns), a scalar.

    1 = a perfect critic, 0 = no better than a constant, negative = worse; NaN where the returns do not vary.

    Args:
        values: f32 [B, T].
        returns: f32 [B, T].
        mask: bool [B, T]; True = a response token.
    """
    variance = masked_var(returns, mask)
    share = 1 - masked_var(returns - values, mask) / variance
    return torch.where(is_rounding(variance, returns, mask), torch.nan, share)
