"""Prompting: ask for what is wanted before the prompt (the cheapest baseline of the paper's reviews)."""

from __future__ import annotations

from typing import Any, Literal

from lightning_rarlhf.cached_decoding.cached_decoder import CachedDecoder
from lightning_rarlhf.decoding.method import Host, StepwiseMethod
from lightning_rarlhf.decoding.prefix import Prefix, PrefixedDecoder, chat_prefix, text_prefix
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.sampling import Decoder

Chat = Literal["auto", "always", "never"]


class Prompted(StepwiseMethod):
    """The policy reads an instruction before the prompt and continues the prompt.

    Prompt + response is scored, the instruction is no part of it. KL is that of the policy with the instruction from
    the reference without.
    """

    def __init__(self, instruction: str, separator: str = "\n", chat: Chat = "auto") -> None:
        """Remember the instruction.

        Args:
            instruction: what to ask for (paper: "Generate positive sentiment", "Generate non-toxic text").
            separator: stands between instruction and prompt, unless a chat template parts them.
            chat: whether the instruction becomes a user's message in the tokenizer's chat template, and the prompt the
                beginning of the answer to it: auto = if the tokenizer has a template, as some of models that were never
                tuned to one have; always = refuse a tokenizer without one; never = as plain text before the prompt.

        Raises:
            UserError: no instruction.
        """
        super().__init__()
        if not instruction.strip():
            raise UserError("Prompted: model.method.instruction is empty; say what to ask for, or use the method Plain")
        self.instruction, self.separator, self.chat = instruction, separator, chat
        self._prefix = Prefix([], opening=0)
        self._templated = False

    def load(self, host: Host) -> None:
        super().load(host)
        self._templated = self.chat == "always" or (self.chat == "auto" and host.tokenizer.chat_template is not None)
        if self._templated:
            self._prefix = chat_prefix(host.tokenizer, host.config.pretrained, self.instruction)
        else:
            self._prefix = text_prefix(host.tokenizer, self.instruction + self.separator)

    @property
    def forward_passes_per_token(self) -> float:
        return 1.0

    @property
    def prefix_tokens(self) -> int:
        return len(self._prefix)

    def decoder(self) -> Decoder:
        return PrefixedDecoder(CachedDecoder(self.host.policy), self._prefix)

    def settings(self) -> dict[str, Any]:
        """The settings, and what `chat` came to."""
        given = {name: getattr(self, name) for name in ("instruction", "separator", "chat")}
        return {**given, "chat_template_used": self._templated}
