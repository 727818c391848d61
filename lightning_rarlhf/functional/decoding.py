"""How decoding-time methods turn several models' next-token logits into one distribution's. Logits in, logits out.

Symbols: B rows, V tokens, C classes. Everything is computed in float32. docs/baselines has a page for each method.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_rarlhf.config import SamplingConfig
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.functional.best_share import best_share
from lightning_rarlhf.functional.logprobs import warp


def nucleus(logits: Tensor, mass: float, ban: Tensor | None = None) -> Tensor:
    """bool [B, V]; True = among the likeliest tokens that hold `mass`, the banned ones (bool [B, V]) left aside.

    At least one token of each row is in that is not banned.
    """
    return warp(logits, SamplingConfig(top_p=mass), ban=ban) > -torch.inf


def dexperts(base: Tensor, expert: Tensor, anti_expert: Tensor, alpha: float, inside: Tensor) -> Tensor:
    """z_base + α (z_expert − z_anti) where `inside` (bool [B, V]) is True, −∞ elsewhere (Liu et al. 2021, Eq. 2).

    All logits are [B, V]; where experts agree, or α is 0, the result is the filtered base to the bit.
    """
    combined = base.float() + alpha * (expert.float() - anti_expert.float())
    return combined.masked_fill(~inside, -torch.inf)


def wanted_logposterior(wanted: Tensor, unwanted: Tensor, tokens: int | Tensor) -> Tensor:
    """log p(wanted class | text) from each class's log p(text | class), normalised by length (Krause 2021, Eq. 5).

    The classes are equally likely beforehand. The likelihood counts with the power 1 / `tokens`: longer texts would
    otherwise be all but certain.

    Args:
        wanted: f32 [...], log p(text | the wanted class).
        unwanted: f32 [...], log p(text | the other).
        tokens: of each text; broadcasts against the two.
    """
    return torch.nn.functional.logsigmoid(wanted / tokens - unwanted / tokens)


def gedi(base: Tensor, wanted: Tensor, omega: float, rho: float, tau: float, ban: Tensor | None = None) -> Tensor:
    """z_base + ω log p(wanted class | text, token), then GeDi's filter (Krause et al. 2021, Eqs. 6 to 9).

    A token stays if its posterior exceeds τ, or if it is among those of the highest posteriors that hold the share ρ of
    the weighted distribution's mass. ρ = 1 keeps every token.

    Args:
        base: [B, V] logits of the policy.
        wanted: [B, V], log-posterior of the wanted class after each token.
        omega: ω, weight of the posterior.
        rho: ρ, in (0, 1].
        tau: τ, in [0, 1].
        ban: bool [B, V] or None; tokens that may not be drawn here, and hold no mass.
    """
    weighted = base.float() + omega * wanted
    if rho >= 1:
        return weighted
    allowed = weighted if ban is None else weighted.masked_fill(ban, -torch.inf)
    # banned tokens hold no mass, so one that may be drawn stays
    best = best_share(wanted, allowed.softmax(dim=-1), rho)
    return weighted.masked_fill(~best & (wanted <= math.log(max(tau, 1e-45))), -torch.inf)


def self_debias(base: Tensor, biased: list[Tensor], decay: float, floor: float) -> Tensor:
    """p̃ ∝ p · max(floor, exp(λ · min(0, p − p_bias))), the lowest factor of several biases (Schick 2021, Eqs. 2-3).

    Args:
        base: [B, V] logits of the policy after the prompt; p is their softmax.
        biased: [B, V] each, after a prompt that asks for what is not wanted; p_bias.
        decay: λ.
        floor: the least factor, in (0, 1]; keeps every token possible.
    """
    base = base.float()
    probabilities = base.softmax(dim=-1)
    gaps = torch.stack([probabilities - other.float().softmax(dim=-1) for other in biased])
    return base + (decay * gaps.amin(dim=0).clamp(max=0)).clamp(min=math.log(floor))


def rectify(base: Tensor, log_safety: Tensor) -> Tensor:
    """log min(p, safety): no token keeps more probability than the chance that the text still ends well (Cao 2023).

    The result is not normalised: as a weight it never exceeds the token's probability under the policy. Where every
    token is hopeless (all weights 0) the policy's own distribution is left as it is.

    Args:
        base: [B, V] logits of the policy.
        log_safety: [B, V], log of the probability that the text ends well after each token.
    """
    logprobs = base.float().log_softmax(dim=-1)
    capped = logprobs.minimum(log_safety.float())
    hopeless = capped.amax(dim=-1, keepdim=True) == -torch.inf
    return torch.where(hopeless, logprobs, capped)


def best_of_k_kl(k: int) -> float:
    """log k − (k − 1)/k, in nats: KL of the best of k draws from the distribution they are drawn from, at most.

    Equality holds where no two draws tie (Beirami et al. 2024 show that it is a bound in general).

    Raises:
        UserError: k < 1.

    >>> round(best_of_k_kl(4), 4)
    0.6363
    """
    if k < 1:
        raise UserError(f"k={k}: expected 1 or more draws a response")
    return math.log(k) - (k - 1) / k
