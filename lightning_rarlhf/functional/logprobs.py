"""Log-probabilities of given tokens under the distribution that sampling draws from, without a [B, T, V] tensor.

The sampler and the losses call the same `warp`, so that the log-probability of a token is that of the distribution it
was drawn from, whatever the temperature, top-k, top-p or minimum length.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_rarlhf.config import SamplingConfig

Head = Callable[[Tensor], Tensor]
"""Maps hidden states [N, H] to logits [N, V]."""

_CHUNK = 1024  # tokens whose logits exist at one time: 1024 × 50,257 × 4 bytes = 206 MB for GPT-2


def warp(logits: Tensor, sampling: SamplingConfig, *, ban: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
    """Turn a model's logits into those of the distribution that is sampled from.

    Args:
        logits: [N, V] in any float type; computed on in float32.
        sampling: temperature, top-k, top-p.
        ban: bool [N, V] or None; True = a token that may not be drawn here (EOS before the minimum length).
        keep: i64 [N] or None; a token that is never removed. A token that was drawn is inside the filters up to
            rounding, and its log-probability must stay finite.

    Returns:
        f32 [N, V], −inf where a token cannot be drawn.
    """
    logits = logits.float()
    if sampling.temperature != 1.0:
        logits = logits / sampling.temperature
    removed = ban
    if sampling.top_k or sampling.top_p < 1.0:
        allowed = logits.detach() if ban is None else logits.detach().masked_fill(ban, -torch.inf)
        filtered = _filtered(allowed, sampling.top_k, sampling.top_p)
        removed = filtered if ban is None else filtered | ban
    if removed is None:
        return logits
    if keep is not None:
        removed = removed.scatter(1, keep[:, None], False)
    return logits.masked_fill(removed, -torch.inf)


def _filtered(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """bool [N, V]; True = outside the k likeliest tokens, or outside the likeliest tokens that hold mass `top_p`.

    Of equally likely tokens those with the lower ids count as likelier.
    """
    ordered = _descending(logits)
    size = torch.full_like(ordered[:, :1], min(top_k or ordered.shape[1], ordered.shape[1]), dtype=torch.int64)
    if top_p < 1.0:
        beyond = torch.arange(ordered.shape[1], device=logits.device) >= size
        probs = ordered.masked_fill(beyond, -torch.inf).softmax(dim=-1)
        # a token is out when the mass before it already reaches top_p, so the likeliest is always in
        size = size.minimum((probs.cumsum(dim=-1) - probs < top_p).sum(dim=-1, keepdim=True))
    least = ordered.gather(1, size - 1)
    above, tied = logits > least, logits == least
    spare = size - above.sum(dim=-1, keepdim=True)
    return ~(above | (tied & (tied.cumsum(dim=-1) <= spare)))


def _descending(logits: Tensor) -> Tensor:
    """Each row's values, largest first; numpy's sort is several times as fast as torch's on a CPU."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        return torch.from_numpy(np.sort(logits.numpy(), axis=-1)).flip(-1)
    return logits.sort(dim=-1, descending=True).values


def eos_ban(steps: Tensor, width: int, eos_token_ids: Tensor, sampling: SamplingConfig) -> Tensor | None:
    """bool [N, V = `width`]; True = EOS at a step (i64 [N], from 0) before `min_new_tokens`. None = nothing banned."""
    if sampling.min_new_tokens == 0:
        return None
    ban = torch.zeros(len(steps), width, dtype=torch.bool, device=steps.device)
    ban[:, eos_token_ids] = (steps < sampling.min_new_tokens)[:, None]
    return ban


def token_logprobs(
    hidden: Tensor,
    tokens: Tensor,
    head: Head,
    sampling: SamplingConfig,
    eos_token_ids: Tensor,
    *,
    chunk: int = _CHUNK,
) -> Tensor:
    """Log-probability of each response token. [B, T, H], [B, T] → f32 [B, T].

    Only `chunk` tokens' logits exist at a time; with gradients they are computed again in the backward pass, so memory
    does not grow with B·T·V.
    """
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or tokens.numel() > chunk)

    def one(part: Tensor, picked: Tensor, steps: Tensor) -> Tensor:
        return _gathered(_warped(part, picked, steps, head, sampling, eos_token_ids), picked)

    parts = [
        checkpoint(one, *piece, use_reentrant=False, preserve_rng_state=False) if needs_grad else one(*piece)
        for piece in _pieces(hidden, tokens, chunk)
    ]
    return torch.cat(parts).view(tokens.shape)


@torch.no_grad()
def token_logprobs_and_entropy(
    hidden: Tensor,
    tokens: Tensor,
    head: Head,
    sampling: SamplingConfig,
    eos_token_ids: Tensor,
    *,
    chunk: int = _CHUNK,
) -> tuple[Tensor, Tensor]:
    """As `token_logprobs`, without gradients and with the entropy −Σ_a π(a) log π(a) in nats of each step."""
    logprobs, entropy = [], []
    for part, picked, steps in _pieces(hidden, tokens, chunk):
        logits = _warped(part, picked, steps, head, sampling, eos_token_ids)
        logprobs.append(_gathered(logits, picked))
        entropy.append(torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1))
    return torch.cat(logprobs).view(tokens.shape), torch.cat(entropy).view(tokens.shape)


def _pieces(hidden: Tensor, tokens: Tensor, chunk: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Flatten [B, T] and cut it into pieces of at most `chunk` tokens, each with its tokens' steps in the response."""
    rows, width = tokens.shape
    steps = torch.arange(width, device=tokens.device).repeat(rows)
    flat = (hidden.flatten(0, 1), tokens.flatten(), steps)
    return list(zip(*(part.split(chunk) for part in flat), strict=True))


def _warped(
    hidden: Tensor, tokens: Tensor, steps: Tensor, head: Head, sampling: SamplingConfig, eos_token_ids: Tensor
) -> Tensor:
    logits = head(hidden)
    ban = eos_ban(steps, logits.shape[-1], eos_token_ids, sampling)
    return warp(logits, sampling, ban=ban, keep=tokens)


def _gathered(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax at the given tokens: [N, V], [N] → [N]."""
    return logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(dim=-1)
