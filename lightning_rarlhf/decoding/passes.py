"""Counts the forward passes that a method really takes, so that its stated cost can be held against them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lightning_rarlhf.language_model import LanguageModel
from lightning_rarlhf.sampling import Decoder


class PassCounter:
    """Rows that networks read, against rows that the sampling loop asked for.

    Attributes:
        responses: finished responses that were handed out, which may be fewer than were drawn.
    """

    def __init__(self) -> None:
        self.responses = 0
        self._read = 0  # rows through any network
        self._asked = 0  # rows whose next token was asked for
        self._started = 0  # responses that were begun

    @property
    def per_token(self) -> float | None:
        """Network passes for each token of a response that was handed out; None before the first."""
        if not self.responses:
            return None
        return self._read / self._asked * self._started / self.responses

    @contextmanager
    def counting(self, networks: Sequence[LanguageModel]) -> Iterator[None]:
        """Count what these networks read inside the block."""
        handles = [
            network.lm.base_model.register_forward_pre_hook(self._count, with_kwargs=True) for network in networks
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _count(self, _module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        self._read += len(kwargs["input_ids"])

    def watch(self, decoder: Decoder) -> Decoder:
        """The same decoder; rows that it is asked for are counted."""
        return _Watched(decoder, self)

    def asked(self, rows: int, *, first: bool) -> None:
        """Note that the loop asked for the next token of `rows` responses."""
        self._asked += rows
        self._started += rows if first else 0


class _Watched:
    def __init__(self, decoder: Decoder, counter: PassCounter) -> None:
        self._decoder, self._counter = decoder, counter

    def start(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        self._counter.asked(len(input_ids), first=True)
        return self._decoder.start(input_ids, attention_mask)

    def advance(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        self._counter.asked(len(tokens), first=False)
        return self._decoder.advance(tokens, attention_mask)

    def keep(self, rows: Tensor) -> None:
        self._decoder.keep(rows)
