"""What every decoding-time method offers, and the loop that they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_rarlhf.config import PolicyConfig, SamplingConfig
from lightning_rarlhf.data_types import PromptBatch, Samples
from lightning_rarlhf.decoding.passes import PassCounter
from lightning_rarlhf.functional.logprobs import eos_ban
from lightning_rarlhf.language_model import LanguageModel
from lightning_rarlhf.sampling import Decoder, SamplingSeed, sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Host:
    """The policy that a method draws from, and what goes with it."""

    policy: LanguageModel
    tokenizer: PreTrainedTokenizerBase
    config: PolicyConfig
    """how the policy was loaded; a method's own networks are loaded alike"""
    sampling: SamplingConfig
    """applies to the method's distribution, after whatever the method does"""
    device: torch.device
    score: Callable[[Samples], Tensor]
    """the reward of finished texts, f32 [B]"""


class DecodingMethod(ABC):
    """Draws responses from a policy in another way than the policy alone would.

    The constructor takes settings only; `load` brings in the policy and the method's own networks.

    Attributes:
        passes: counts the forward passes that drawing really takes.
    """

    host: Host

    def __init__(self) -> None:
        self.passes = PassCounter()

    def require_networks(self) -> None:  # noqa: B027  (most methods have none of their own)
        """See that the method's own networks are there; cheap, so that it can be asked before anything is loaded.

        Raises:
            ModelError: a name leads nowhere.
        """

    def load(self, host: Host) -> None:
        """Bind the method to a policy; called once, before the first batch.

        Raises:
            UserError: the settings, or a network of the method, do not fit the policy.
        """
        self.host = host

    @property
    @abstractmethod
    def forward_passes_per_token(self) -> float:
        """Network passes for each response token, whatever the networks' sizes."""

    @property
    def networks(self) -> Sequence[LanguageModel]:
        """Every network that drawing runs, each once."""
        return [self.host.policy]

    @property
    def prefix_tokens(self) -> int:
        """Tokens that are read before each prompt, at most."""
        return 0

    @property
    def kl_excess(self) -> float:
        """Nats to add to Σ_t of the draws' log-ratios for the KL of what comes out; see `kl_meaning`."""
        return 0.0

    @property
    def kl_meaning(self) -> str:
        """What the numbers called KL are, in words for the results file."""
        return "log-probability of the response under the method's own distribution minus the reference's"

    def draw(self, batch: PromptBatch, seed: SamplingSeed) -> Samples:
        """One response a prompt, with the log-probabilities of the distribution that it was drawn from."""
        with self.passes.counting(self.networks):
            samples = self._draw(batch, seed)
        self.passes.responses += len(samples)
        return samples

    @abstractmethod
    def _draw(self, batch: PromptBatch, seed: SamplingSeed) -> Samples: ...

    def identity(self) -> dict[str, Any]:
        """What result files say of the method: its settings, its cost as stated and as measured."""
        return {
            "name": type(self).__name__,
            **self.settings(),
            "forward_passes_per_token": self.forward_passes_per_token,
            "measured_forward_passes_per_token": self.passes.per_token,
            "kl": self.kl_meaning,
        }

    def settings(self) -> dict[str, Any]:
        """The method's own settings, by name."""
        return {}

    def run_loop(self, decoder: Decoder, batch: PromptBatch, seed: SamplingSeed) -> Samples:
        """Sample once, to the end of the responses."""
        host = self.host
        return sample(
            self.passes.watch(decoder),
            batch,
            host.sampling,
            seed,
            host.tokenizer,
            host.policy.eos_token_ids,
            keep_logprobs=True,
        )


class StepwiseMethod(DecodingMethod):
    """A method that changes each next token's distribution."""

    @abstractmethod
    def decoder(self) -> Decoder:
        """A new decoder for one batch."""

    def _draw(self, batch: PromptBatch, seed: SamplingSeed) -> Samples:
        return self.run_loop(self.decoder(), batch, seed)


class JointDecoder(ABC):
    """Several decoders that read the same tokens in one loop; `combine` makes one distribution of what they say."""

    def __init__(self, parts: Sequence[Decoder], host: Host) -> None:
        self._parts = parts
        self._host = host
        self._step = 0

    def start(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        self._step = 0
        return self.combine([part.start(input_ids, attention_mask) for part in self._parts])

    def advance(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        self._step += 1
        return self.combine([part.advance(tokens, attention_mask) for part in self._parts])

    def keep(self, rows: Tensor) -> None:
        for part in self._parts:
            part.keep(rows)

    @abstractmethod
    def combine(self, logits: Sequence[Tensor]) -> Tensor:
        """[B, V] of each part, in their order → [B, V]."""

    def ban(self, logits: Tensor) -> Tensor | None:
        """bool [B, V] or None; True = the sampling settings forbid the token at this step.

        A filter must know: one that kept nothing but forbidden tokens would leave none to draw.
        """
        steps = torch.full((len(logits),), self._step, device=logits.device)
        return eos_ban(steps, logits.shape[-1], self._host.policy.eos_token_ids, self._host.sampling)
