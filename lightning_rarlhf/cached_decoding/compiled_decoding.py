"""Decoding whose every step is one compiled function over tensors of one size at one address.

A step of the plain loop is some hundred small kernels that Python starts one by one; a GPU waits for it. Here trunk,
head, masks and positions are one function, compiled by `torch.compile`, on a GPU as a CUDA graph that is replayed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lightning_rarlhf.cached_decoding.compilable import require_compilable
from lightning_rarlhf.cached_decoding.compiled_step import CompiledStep, require_steps
from lightning_rarlhf.cached_decoding.fixed_cache import columns_for
from lightning_rarlhf.cached_decoding.kv_cache import PromptStates
from lightning_rarlhf.cached_decoding.twin import Twin
from lightning_rarlhf.language_model import LanguageModel

_SIZES = 3
"""of batches whose tensors are kept: training's, validation's, and validation's last"""


class CompiledDecoding:
    """The compiled steps of each network that a run draws from; they go with their network.

    A copy of it, and what a pickle gives back, is empty: all that it holds can be made again.
    """

    def __init__(self) -> None:
        self._of: WeakKeyDictionary[LanguageModel, _Compiled] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return CompiledDecoding, ()

    def decoder(self, model: LanguageModel, max_new_tokens: int, *, keep_hidden: bool = False) -> CompiledDecoder:
        """A decoder for one batch, which uses what earlier ones have compiled and allocated."""
        found = self._of.get(model)
        if found is None or not found.twin.serves(model):
            found = self._of[model] = _Compiled(model)
        return CompiledDecoder(found, max_new_tokens, keep_hidden=keep_hidden)

    def clear(self) -> None:
        """Give the memory back."""
        self._of.clear()


class CompiledDecoder:
    """A language model with a key-value cache of fixed size: `sampling.Decoder`, for one batch.

    Rows that have ended stay in the step, whose size is fixed; what it says of them is dropped. Logits hold until the
    next call only, and the batch until another one of its size begins.
    """

    def __init__(self, compiled: _Compiled, max_new_tokens: int, *, keep_hidden: bool = False) -> None:
        """Begin a batch.

        Args:
            compiled: the network's.
            max_new_tokens: there will be no more calls of `advance`.
            keep_hidden: remember the hidden state behind each step's logits.
        """
        self._compiled = compiled
        self._max_new_tokens = max_new_tokens
        self._hidden: list[Tensor] | None = [] if keep_hidden else None
        self._rows: Tensor | None = None

    def start(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        rows, width = input_ids.shape
        self._step = self._compiled.step_for(rows, width + self._max_new_tokens)
        self._count, self._width = rows, width
        with _ordinary_tensors():
            self._compiled.twin.refresh()
            first = self._kept(*self._step.begin(input_ids, attention_mask))
        self._batch = self._step.batches
        return first

    def advance(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        if self._step.batches != self._batch:
            raise RuntimeError(
                "another batch of this size has begun, and took this one's place; draw one after the other"
            )
        with _ordinary_tensors():
            hidden, logits = self._step.take(tokens, attention_mask[:, -1], self._rows)
            logits = self._kept(hidden[: self._count], logits[: self._count])
            return logits if self._rows is None else logits[self._rows]

    def keep(self, rows: Tensor) -> None:
        self._rows = rows if self._rows is None else self._rows[rows]
        self._step.end_all()  # those that are left come alive with their next token

    def hidden(self, columns: int) -> Tensor | None:
        """[B, T, H], the hidden states that predicted the first T = `columns` tokens drawn; None if they are not kept.

        They mean nothing where a row had ended.
        """
        return None if self._hidden is None else torch.stack(self._hidden[:columns], dim=1)

    def prompts(self) -> PromptStates | None:
        """The prompts' keys and values, until another batch of this size begins."""
        return self._step.prompts(self._count, self._width)

    def _kept(self, hidden: Tensor, logits: Tensor) -> Tensor:
        if self._hidden is not None:
            self._hidden.append(hidden.clone())  # the next replay of a CUDA graph overwrites it
        return logits


class _Compiled:
    """One network's steps: a twin of it, and a step for each size of batch."""

    def __init__(self, model: LanguageModel) -> None:
        require_compilable(model)
        with _ordinary_tensors():
            self.twin = Twin(model)
            require_steps(self.twin.model)
            self.twin.copy_weights()
        self.steps: list[CompiledStep] = []

    def step_for(self, rows: int, columns: int) -> CompiledStep:
        """The smallest step that a batch fits in; a new one where it would leave half of the rows or columns empty.

        Only the few steps that were used last are kept.
        """
        wide = columns_for(columns)
        fitting = [step for step in self.steps if rows <= step.rows < 2 * rows and columns <= step.columns < 2 * wide]
        if fitting:
            found = min(fitting, key=lambda step: (step.rows, step.columns))
        else:
            with _ordinary_tensors():
                found = CompiledStep(self.twin.model, rows, wide)
        others = [step for step in self.steps if step is not found]
        self.steps = [*others, found][-_SIZES:]
        return found


@contextmanager
def _ordinary_tensors() -> Iterator[None]:
    """Without gradients, but not in inference mode, as validation is: what it allocates, training could not write."""
    with torch.inference_mode(False), torch.no_grad():
        yield
