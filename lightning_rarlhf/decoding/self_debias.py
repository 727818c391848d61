"""Self-Debias: avoid what the policy would say if asked for the unwanted (Schick et al. 2021, arXiv 2103.00453)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_rarlhf.cached_decoding.cached_decoder import CachedDecoder
from lightning_rarlhf.decoding.method import Host, JointDecoder, StepwiseMethod
from lightning_rarlhf.decoding.prefix import Prefix, PrefixedDecoder, text_prefix
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.functional.decoding import self_debias
from lightning_rarlhf.number_types import Fraction, Weight
from lightning_rarlhf.sampling import Decoder


class SelfDebias(StepwiseMethod):
    """Lowers each token that grows likelier once the policy is told that the text is of the unwanted kind."""

    def __init__(
        self,
        instructions: list[str],
        decay: Weight = 50.0,
        floor: Fraction = 0.01,
        separator: str = "\n\n",
    ) -> None:
        """Remember the settings.

        Args:
            instructions: each says that an unwanted text follows, and is read before the prompt; a token counts by the
                one that lowers it most.
            decay: λ (paper: 50); 0 = the policy alone.
            floor: the least factor on a token's probability (paper: .01).
            separator: stands between instruction and prompt.
        """
        super().__init__()
        if not instructions or not all(text.strip() for text in instructions):
            raise UserError(
                "SelfDebias: model.method.instructions has no text or an empty one; expected at least one sentence, "
                "such as: The following text is rude and hateful:"
            )
        self.instructions, self.separator = instructions, separator
        self.decay, self.floor = decay, floor
        self._prefixes: list[Prefix] = []

    def load(self, host: Host) -> None:
        super().load(host)
        self._prefixes = [text_prefix(host.tokenizer, text + self.separator) for text in self.instructions]

    @property
    def forward_passes_per_token(self) -> float:
        """1 for the prompt + 1 for each instruction before it, all through the policy."""
        return 1.0 + len(self.instructions)

    @property
    def prefix_tokens(self) -> int:
        return max(map(len, self._prefixes))

    def decoder(self) -> Decoder:
        return _SelfDebiasDecoder(self, self._prefixes)

    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("instructions", "decay", "floor", "separator")}


class _SelfDebiasDecoder(JointDecoder):
    def __init__(self, method: SelfDebias, prefixes: list[Prefix]) -> None:
        policy = method.host.policy
        biased = [PrefixedDecoder(CachedDecoder(policy), prefix) for prefix in prefixes]
        super().__init__([CachedDecoder(policy), *biased], method.host)
        self._method = method

    def combine(self, logits: Sequence[Tensor]) -> Tensor:
        base, *biased = logits
        return self_debias(base, biased, self._method.decay, self._method.floor)
