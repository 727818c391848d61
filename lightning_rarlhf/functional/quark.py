"""Quark's arithmetic (Lu et al. 2022, "Quark: Controllable Text Generation with Reinforced Unlearning").

Responses are sorted by score into K quantiles, and the policy learns to write like each when told which.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_rarlhf.functional.logprobs import Head

_CHUNK = 256  # tokens whose logits exist at one time, of the policy and of the reference: what a cache can hold


class TokenTerms(NamedTuple):
    """What the loss is made of, for each response token."""

    nll: Tensor
    """f32, −log π(a_t | token, s_t)"""
    kl: Tensor
    """f32, Σ_a π(a) (log π(a | token, s_t) − log π_ref(a | s_t)), in nats"""
    entropy: Tensor
    """f32, −Σ_a π(a) log π(a), in nats"""


def quantile_numbers(scores: ArrayLike, quantiles: int) -> NDArray[np.int64]:
    """Quantile of each score: 0 = the lowest K-th of them, K − 1 = the highest.

    The score of rank r of N (from 0, equal scores in their order) is in quantile ⌊rK/N⌋, so that sizes differ by one at
    most. (The authors' code gives the remainder N mod K to the lowest quantile.)

    Args:
        scores: [N].
        quantiles: K.

    >>> quantile_numbers([0.5, -1.0, 3.0, 0.5, 2.0], 2).tolist()
    [0, 0, 1, 0, 1]
    """
    table = np.asarray(scores, dtype=np.float64)
    ranks = np.empty(len(table), dtype=np.int64)
    ranks[np.argsort(table, kind="stable")] = np.arange(len(table))
    return ranks * quantiles // max(len(table), 1)


def token_terms(logits: Tensor, ref_logits: Tensor, tokens: Tensor) -> TokenTerms:
    """The three terms of the loss from the logits of both models.

    Args:
        logits: [N, V], of the policy that was told the quantile.
        ref_logits: [N, V], of the reference, which was not.
        tokens: i64 [N], what the response says.
    """
    logits, ref_logits = logits.float(), ref_logits.float()
    probs, total, ref_total = logits.softmax(dim=-1), logits.logsumexp(dim=-1), ref_logits.logsumexp(dim=-1)
    # H = log Z − Σ p z, and the cross entropy likewise: no table of log-probabilities is made
    entropy = total - torch.linalg.vecdot(probs, logits)
    return TokenTerms(
        nll=total - logits.gather(1, tokens[:, None]).squeeze(1),
        kl=ref_total - torch.linalg.vecdot(probs, ref_logits) - entropy,
        entropy=entropy,
    )


def response_terms(
    hidden: Tensor, ref_hidden: Tensor, tokens: Tensor, head: Head, ref_head: Head, *, chunk: int = _CHUNK
) -> TokenTerms:
    """As `token_terms`, of [B, T] response tokens, without a [B, T, V] tensor; padding is computed and left to masks.

    Args:
        hidden: [B, T, H], of the policy; carries the gradient.
        ref_hidden: [B, T, H′], of the reference.
        tokens: i64 [B, T].
        head: the policy's, to logits.
        ref_head: the reference's.
        chunk: tokens whose logits exist at a time; the backward pass computes them again.
    """

    def terms(part: Tensor, ref_part: Tensor, picked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(token_terms(head(part), ref_head(ref_part), picked))  # type: ignore[return-value]

    pieces = zip(
        hidden.flatten(0, 1).split(chunk),
        ref_hidden.flatten(0, 1).split(chunk),
        tokens.flatten().split(chunk),
        strict=True,
    )
    found = [checkpoint(terms, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    return TokenTerms(*(torch.cat(part).view(tokens.shape) for part in zip(*found, strict=True)))
