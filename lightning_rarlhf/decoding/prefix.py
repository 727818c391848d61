"""Tokens that a model reads before every prompt: an instruction, or a class's control code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.loading.tokenizer import opening_ids
from lightning_rarlhf.sampling import Decoder
from lightning_rarlhf.terminal.plain_text import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Prefix:
    """Token ids that go before each prompt, and how many of the prompt's own opening tokens they replace."""

    def __init__(self, ids: list[int], opening: int) -> None:
        self.ids = ids
        self.opening = opening

    def __len__(self) -> int:
        return len(self.ids)

    def before(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Left-padded prompts [B, P] and their mask → [B, L + P] each.

        The padding then lies between prefix and prompt; it is masked, and positions do not count it. Tokens that the
        tokenizer opens every text with stand before the prefix only: the prompt's own are masked.
        """
        ids = torch.tensor(self.ids, dtype=input_ids.dtype, device=input_ids.device).expand(len(input_ids), -1)
        return torch.cat([ids, input_ids], dim=1), self.over(attention_mask)

    def over(self, attention_mask: Tensor) -> Tensor:
        """The mask [B, S] of a prompt and its response so far → [B, L + S]."""
        ones = attention_mask.new_ones(len(attention_mask), len(self.ids))
        opens = attention_mask.long().cumsum(dim=1) <= self.opening
        return torch.cat([ones, attention_mask & ~opens], dim=1)


class PrefixedDecoder:
    """A decoder that reads a prefix before every prompt; the caller, and the text that is scored, never see it."""

    def __init__(self, decoder: Decoder, prefix: Prefix) -> None:
        self._decoder, self._prefix = decoder, prefix

    def start(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self._decoder.start(*self._prefix.before(input_ids, attention_mask))

    def advance(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        return self._decoder.advance(tokens, self._prefix.over(attention_mask))

    def keep(self, rows: Tensor) -> None:
        self._decoder.keep(rows)


def text_prefix(tokenizer: PreTrainedTokenizerBase, text: str) -> Prefix:
    """`text` before the prompt, as a plain language model reads it."""
    opening = opening_ids(tokenizer)
    ids = [*opening, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    return Prefix(ids, opening=len(opening))


def chat_prefix(tokenizer: PreTrainedTokenizerBase, name: str, instruction: str) -> Prefix:
    """`instruction` as the user's message in the tokenizer's chat template; the answer opens with the prompt.

    Raises:
        ModelError: the tokenizer has no chat template, or it cannot hold a lone user message.
    """
    if tokenizer.chat_template is None:
        raise ModelError(
            f"{name}: its tokenizer has no chat template; set model.method.chat: never for a plain instruction, or use "
            "an instruction-tuned model"
        )
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": instruction}], add_generation_prompt=True, tokenize=False
        )
    except Exception as error:  # the template is the model's own program and raises what it likes
        raise ModelError(
            f"{name}: its chat template fails ({type(error).__name__}: {first_line(error)}); "
            "set model.method.chat: never"
        ) from None
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return Prefix(list(ids), opening=len(opening_ids(tokenizer)))
