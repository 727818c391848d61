"""The next token's distribution: drawing from it, and the log-probability and entropy of what was drawn.

All three read one softmax. Exponentials over the vocabulary are what a step costs beside the network.
"""

from __future__ import annotations

import torch
from torch import Tensor


class NextToken:
    """One distribution a row.

    Args:
        logits: f32 [B, V], −inf where a token cannot be drawn.
    """

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits
        self._probabilities = logits.softmax(dim=-1)

    def draw(self, uniform: Tensor) -> Tensor:
        """Invert the distribution function at `uniform`: [B] → i64 [B]. A token of probability 0 is never drawn.

        −1 where the logits are no distribution: NaN, +inf, or −inf throughout.
        """
        # in float64: a parallel sum in float32 may rise at a token of probability 0
        cumulative = self._probabilities.cumsum(dim=-1, dtype=torch.float64)
        total = cumulative[:, -1:]
        # rounding may lift u·total to the total itself, beyond the last token
        threshold = (uniform[:, None].double() * total).minimum(torch.nextafter(total, torch.zeros_like(total)))
        token = torch.searchsorted(cumulative, threshold, right=True).squeeze(1)
        return token.where(total.squeeze(1).isfinite(), -1)

    def statistics(self, token: Tensor) -> tuple[Tensor, Tensor]:
        """log π of the tokens, i64 [B], and the entropy −Σ_a π(a) log π(a) in nats: f32 [B] each."""
        # the likeliest token's logit less itself is 0, so its probability is 1 / Σ_a exp(logit(a) − largest)
        log_sum = -self._probabilities.amax(dim=-1).log()
        below = self._logits - self._logits.amax(dim=-1, keepdim=True)
        logprob = below.gather(1, token[:, None]).squeeze(1) - log_sum
        # the bound stands for −inf: its exponential is 0 too, and 0 times it is no NaN
        below = below.clamp_(min=_NEVER)
        return logprob, log_sum - (self._probabilities * below).sum(dim=-1)


_NEVER = -200.0
"""a logit this far below the largest has probability 0 in float32"""
