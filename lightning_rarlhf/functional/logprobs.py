"""Log-probabilities of given tokens under the distribution that sampling draws from, without a [B, T, V] tensor.

The sampler and the losses call the same `warp`, so that the log-probability of a token is that of the distribution it
was drawn from, whatever the temperature, top-k, top-p or minimum length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_rarlhf.config import SamplingConfig
from lightning_rarlhf.functional.next_token import NextToken

Head = Callable[[Tensor], Tensor]
"""Maps hidden states [N, H] to logits [N, V], which are the caller's to overwrite."""

_CHUNK_BYTES = 128 * 2**20  # of logits that exist at one time: 667 tokens of GPT-2
_CHUNK_BYTES_WITHOUT_GRADIENTS = 32 * 2**20  # small chunks cost nothing where nothing is computed twice
_TOKENS_WITHOUT_GRADIENTS = 256


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


def chunk_of(vocabulary: int, *, with_gradients: bool) -> int:
    """Tokens whose float32 logits fit into one chunk; without gradients no more than a product wants."""
    if with_gradients:
        return max(1, _CHUNK_BYTES // (4 * vocabulary))
    return max(1, min(_TOKENS_WITHOUT_GRADIENTS, _CHUNK_BYTES_WITHOUT_GRADIENTS // (4 * vocabulary)))


def token_logprobs(
    hidden: Tensor,
    tokens: Tensor,
    head: Head,
    sampling: SamplingConfig,
    eos_token_ids: Tensor,
    *,
    mask: Tensor | None = None,
    chunk: int = 1024,
) -> Tensor:
    """Log-probability of each response token. [B, T, H], [B, T] → f32 [B, T].

    Only `chunk` tokens' logits exist at a time; with gradients those of all chunks but one are computed again in the
    backward pass, so memory does not grow with B·T·V.

    Args:
        hidden: [B, T, H], what `head` turns into logits.
        tokens: i64 [B, T].
        head: the output layer.
        sampling: the distribution that is meant.
        eos_token_ids: i64 [n].
        mask: bool [B, T]; only where it is True are logits made, the result is 0 elsewhere. None = everywhere.
        chunk: tokens at a time.
    """
    needs_grad = torch.is_grad_enabled()

    def one(part: Tensor, picked: Tensor, steps: Tensor) -> Tensor:
        logits = _warped(part, picked, steps, head, sampling, eos_token_ids)
        logprobs: Tensor = _LogSoftmaxAt.apply(logits, picked)  # type: ignore[no-untyped-call]
        return logprobs

    where, pieces = _pieces(hidden, tokens, mask, chunk)
    # the last chunk's backward pass comes first, while what it needs is still there
    parts = [
        checkpoint(one, *piece, use_reentrant=False, preserve_rng_state=False)
        if needs_grad and number < len(pieces)
        else one(*piece)
        for number, piece in enumerate(pieces, start=1)
    ]
    return _put_back(torch.cat(parts), where, tokens)


@torch.no_grad()
def token_logprobs_and_entropy(
    hidden: Tensor,
    tokens: Tensor,
    head: Head,
    sampling: SamplingConfig,
    eos_token_ids: Tensor,
    *,
    mask: Tensor | None = None,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:
    """As `token_logprobs`, without gradients and with the entropy −Σ_a π(a) log π(a) in nats of each step."""
    logprobs, entropy = [], []
    where, pieces = _pieces(hidden, tokens, mask, chunk)
    for part, picked, steps in pieces:
        following = NextToken(_warped(part, picked, steps, head, sampling, eos_token_ids))
        of_piece = following.statistics(picked)
        logprobs.append(of_piece[0])
        entropy.append(of_piece[1])
    return _put_back(torch.cat(logprobs), where, tokens), _put_back(torch.cat(entropy), where, tokens)


def _pieces(
    hidden: Tensor, tokens: Tensor, mask: Tensor | None, chunk: int
) -> tuple[Tensor | None, list[tuple[Tensor, Tensor, Tensor]]]:
    """Flatten [B, T], keep what counts and cut it into pieces of at most `chunk` tokens, each with its tokens' steps.

    Also says where what counts was, i64 [n] into the flattened [B·T]; None = everywhere.
    """
    rows, width = tokens.shape
    steps = torch.arange(width, device=tokens.device).repeat(rows)
    flat = (hidden.flatten(0, 1), tokens.flatten(), steps)
    where = None
    if mask is not None and not mask.all():
        where = mask.flatten().nonzero().squeeze(1)
        flat = (flat[0][where], flat[1][where], steps[where])
    return where, list(zip(*(part.split(chunk) for part in flat), strict=True))


def _put_back(values: Tensor, where: Tensor | None, tokens: Tensor) -> Tensor:
    """What `_pieces` took out of [B, T], there again; 0 elsewhere."""
    if where is not None:
        values = values.new_zeros(tokens.numel()).index_put((where,), values)
    return values.view(tokens.shape)


def _warped(
    hidden: Tensor, tokens: Tensor, steps: Tensor, head: Head, sampling: SamplingConfig, eos_token_ids: Tensor
) -> Tensor:
    logits = head(hidden)
    ban = eos_ban(steps, logits.shape[-1], eos_token_ids, sampling)
    return warp(logits, sampling, ban=ban, keep=tokens)


class _LogSoftmaxAt(torch.autograd.Function):
    """log softmax at the given tokens: f32 [N, V], i64 [N] → f32 [N]. With gradients, the logits are overwritten.

    Autograd's own way, a gather of a log softmax, writes the log softmax beside the logits, takes its exponential
    again, and also makes and adds up a [N, V] tensor of zeros and ones.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor) -> Tensor:
        rows = _rows_in_cache(logits)
        logprobs = []
        for part, picked in zip(logits.split(rows), tokens.split(rows), strict=True):
            probabilities = part.softmax(dim=-1)
            # to the bit as `NextToken` has it
            below = part.gather(1, picked[:, None]).squeeze(1) - part.amax(dim=-1)
            logprobs.append(below + probabilities.amax(dim=-1).log())
            if ctx.needs_input_grad[0]:
                part.copy_(probabilities)
        ctx.save_for_backward(logits, tokens)
        return torch.cat(logprobs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        probabilities, tokens = ctx.saved_tensors
        grad: Tensor = grads[0][:, None]
        # d log π(a) / d logit(b) = [a = b] − π(b); in place: nothing else reads it, a second backward pass is refused
        of_logits: Tensor = probabilities.mul_(-grad).scatter_add_(1, tokens[:, None], grad)
        return of_logits, None


def _rows_in_cache(logits: Tensor) -> int:
    """Rows of [N, V] that are softened while they lie in a CPU's cache; all of them elsewhere."""
    if logits.device.type != "cpu":
        return max(1, len(logits))
    return max(1, _CACHE_BYTES * torch.get_num_threads() // (4 * logits.shape[1]))


_CACHE_BYTES = 2**20  # of each core
