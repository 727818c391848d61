"""The policy: a causal language model's trunk and head, with a scalar critic on the same trunk."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from lightning_rarlhf.config import SamplingConfig
from lightning_rarlhf.data_types import Samples
from lightning_rarlhf.functional.logprobs import chunk_of, token_logprobs_and_entropy
from lightning_rarlhf.language_model import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PolicyOutput(NamedTuple):
    """What the actor and the critic say of each response token."""

    logprobs: Tensor
    """f32 [B, T], log π(a_t | s_t)"""
    values: Tensor
    """f32 [B, T], V(s_t)"""


class PolicyStatistics(NamedTuple):
    """`PolicyOutput` without gradients, with what only the log needs."""

    logprobs: Tensor
    """f32 [B, T], log π(a_t | s_t)"""
    values: Tensor
    """f32 [B, T], V(s_t)"""
    entropy: Tensor
    """f32 [B, T], of π(· | s_t), in nats"""


class ActorCritic(LanguageModel):
    """Actor and critic on one trunk; the critic is a linear layer on the last hidden state (paper, section 4)."""

    def __init__(self, lm: PreTrainedModel, eos_token_ids: list[int], frozen_layers: int = 0) -> None:
        super().__init__(lm, eos_token_ids, frozen_layers)
        self.value_head = nn.Linear(self.hidden_size, 1, dtype=torch.float32)

    def forward(
        self,
        sequences: Tensor,
        attention_mask: Tensor,
        response_mask: Tensor,
        sampling: SamplingConfig,
        frozen_states: Tensor | None = None,
    ) -> PolicyOutput:
        """Log-probabilities and values of the response tokens, with gradients.

        Args:
            sequences: i64 [B, S], left-padded prompts, responses in the last T columns.
            attention_mask: bool [B, S].
            response_mask: bool [B, T].
            sampling: the distribution whose log-probabilities are meant.
            frozen_states: [B, S, H], of these sequences, if they are known.
        """
        width = response_mask.shape[1]
        hidden = self.before_responses(sequences, attention_mask, width, frozen_states)
        tokens = sequences[:, -width:]
        return PolicyOutput(self.token_logprobs(hidden, tokens, response_mask, sampling), self._values(hidden))

    @property
    def samples_exactly(self) -> bool:
        """Whether the cached sampling loop computes what a full forward pass does, up to float32 rounding.

        Of texts within `context_length`: beyond it neither gives one answer.

        Not in bfloat16, by autocast or by weights: log-probabilities differ by 1e-2 there.
        """
        weights = {parameter.dtype for parameter in self.lm.parameters()}
        return weights == {torch.float32} and not torch.is_autocast_enabled(self.device.type)

    @torch.no_grad()
    def statistics(self, samples: Samples, sampling: SamplingConfig) -> PolicyStatistics:
        """Old log-probabilities, values, entropies, from the sampling loop or by the update's forward pass.

        Sampling keeps its hidden states where they are a full forward pass's up to float32 rounding, so ratios start at
        1 within 1e-5; elsewhere the pass is made again, and they start at 1.
        """
        width = samples.response_mask.shape[1]
        hidden = samples.hidden
        if hidden is not None and samples.logprobs is not None and samples.entropy is not None:
            return PolicyStatistics(samples.logprobs, self._values(hidden), samples.entropy)
        if hidden is None:
            hidden = self.before_responses(samples.sequences, samples.attention_mask, width, samples.frozen_states)
        tokens = samples.sequences[:, -width:]
        logprobs, entropy = token_logprobs_and_entropy(
            hidden,
            tokens,
            self.head,
            sampling,
            self.eos_token_ids,
            mask=samples.response_mask,
            chunk=chunk_of(self.vocabulary, with_gradients=False),
        )
        return PolicyStatistics(logprobs, self._values(hidden), entropy)

    def _values(self, hidden: Tensor) -> Tensor:
        values: Tensor = self.value_head(hidden.to(self.value_head.weight.dtype)).squeeze(-1)
        return values.float()
