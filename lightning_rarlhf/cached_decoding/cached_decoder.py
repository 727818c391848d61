"""A language model read a token a row at a time, over transformers' key-value cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import LongTensor, Tensor

from lightning_rarlhf.cached_decoding.kv_cache import PromptStates, prompt_states, roomy_cache
from lightning_rarlhf.functional.sequences import position_ids, spread_rows
from lightning_rarlhf.language_model import LanguageModel

if TYPE_CHECKING:
    from transformers import DynamicCache


class CachedTrunk:
    """A language model's trunk with its key-value cache: reads prompts, then a token a row at a time."""

    def __init__(self, model: LanguageModel, *, keep_prompts: bool = False) -> None:
        """Begin with an empty cache.

        Args:
            model: whose trunk it is.
            keep_prompts: keep what the prompts left, also when their rows are read no longer.
        """
        self.prompts: PromptStates | None = None
        self._model = model
        self._keep_prompts = keep_prompts
        self._cache: DynamicCache | None = None
        self._padded = True

    def start(self, input_ids: Tensor, attention_mask: Tensor, *, read: int | None = None) -> Tensor:
        """Read left-padded prompts [B, P]; return the last hidden state of every token, [B, P, H].

        Only the last `read` columns need be right; None = all.
        """
        self._cache = roomy_cache(self._model.lm.config)
        self._padded = not bool(attention_mask.all())
        with self._model.reading(read):
            hidden = self._forward(input_ids, attention_mask, position_ids(attention_mask))
        if self._keep_prompts:
            self.prompts = prompt_states(self._cache, input_ids.shape[1])
        return hidden

    def advance(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """Read one more token a row, [B]; the mask [B, P + t] now covers it. Return its hidden state, [B, H]."""
        return self._forward(tokens[:, None], attention_mask, attention_mask.sum(dim=1, keepdim=True) - 1)[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Go on with these of the rows alone, i64 [b]."""
        assert self._cache is not None
        self._cache.reorder_cache(cast(LongTensor, rows))  # every kind of layer has it, and it takes fewer rows too

    def _forward(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        # without padding only rows that have ended are masked, whose states nobody reads; and a mask makes transformers
        # look whether it is all ones, which waits for the device
        output = self._model.lm.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask.long() if self._padded else None,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden


class CachedDecoder:
    """A language model with its key-value cache."""

    def __init__(self, model: LanguageModel, *, keep_hidden: bool = False, keep_prompts: bool = False) -> None:
        """Begin with an empty cache.

        Args:
            model: whose logits are asked for.
            keep_hidden: remember the hidden state behind each step's logits.
            keep_prompts: keep the prompts' keys and values.
        """
        self._model = model
        self._trunk = CachedTrunk(model, keep_prompts=keep_prompts)
        self._hidden: list[Tensor] | None = [] if keep_hidden else None
        self._rows: Tensor | None = None

    def start(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self._logits(self._trunk.start(input_ids, attention_mask, read=1)[:, -1])

    def advance(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        return self._logits(self._trunk.advance(tokens, attention_mask))

    def keep(self, rows: Tensor) -> None:
        self._trunk.keep(rows)
        self._rows = rows if self._rows is None else self._rows[rows]

    def hidden(self, columns: int) -> Tensor | None:
        """[B, T, H], the hidden states that predicted the first T = `columns` tokens drawn; None if they are not kept.

        0 for rows that were no longer read.
        """
        return None if self._hidden is None else torch.stack(self._hidden[:columns], dim=1)

    def prompts(self) -> PromptStates | None:
        """The prompts' keys and values; None if they are not kept, or the model keeps something else."""
        return self._trunk.prompts

    def _logits(self, hidden: Tensor) -> Tensor:
        if self._hidden is not None:
            first = self._hidden[0] if self._hidden else hidden
            self._hidden.append(spread_rows(hidden, self._rows, len(first), empty=0.0))
        return self._model.head(hidden)
