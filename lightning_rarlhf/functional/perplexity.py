"""Perplexity of single texts, from the log-probabilities of their tokens."""

from __future__ import annotations

from torch import Tensor

from lightning_rarlhf.functional.masked import masked_mean


def text_perplexity(logprobs: Tensor, mask: Tensor) -> Tensor:
    """exp(mean negative log-likelihood) of each text's own tokens, f64 [B]; NaN where a text has none.

    In float64: a policy that has gone astray gives tokens 90 nats, whose exponential is infinite in float32.

    Their arithmetic mean over texts is what the paper reports, and what Hugging Face's `evaluate` calls
    mean_perplexity. It is not the perplexity of a corpus, exp(mean over all tokens), which long texts dominate.

    Args:
        logprobs: f32 [B, S], log π(x_t | x_<t) in nats.
        mask: bool [B, S]; True = a token that counts.

    >>> import torch
    >>> text_perplexity(torch.tensor([[0.25, 0.25, 0.5]]).log(), torch.tensor([[True, True, False]]))
    tensor([4.0000], dtype=torch.float64)
    """
    return (-masked_mean(logprobs.double(), mask, dim=1)).exp()
