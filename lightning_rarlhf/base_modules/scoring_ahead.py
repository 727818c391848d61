"""A batch drawn in parts: while the next responses are drawn, the reward scores those that are finished.

A slow reward then costs what it takes beyond sampling.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate
from types import TracebackType

import torch
from torch import Tensor

from lightning_rarlhf.base_modules.side_thread import SideThread
from lightning_rarlhf.data_types import PromptBatch, Samples
from lightning_rarlhf.errors import UserError, first_few
from lightning_rarlhf.rollout import Sampler

_log = logging.getLogger(__name__)

_GRACE = 5.0
"""seconds that Ctrl-C waits for the reward's call under way, which nothing can end from outside"""
_PATIENCE = 30.0
"""seconds that an error waits for it: a reward that hangs must not hide what went wrong"""


class ScoringAhead:
    """Samples and scores of a batch that is drawn in parts.

    A context: its end is the end of the thread that scores, if there is one. A batch in one part needs none.
    """

    def __init__(
        self, parts: Sequence[PromptBatch], sample: Sampler, score: Callable[[Samples], Tensor], *, beside: bool
    ) -> None:
        """Do nothing yet.

        Args:
            parts: of one batch, in order.
            sample: draws the responses of a part; in the caller's thread.
            score: f32 [b], the scores of a part's samples; one call at a time, in order, all in one thread.
            beside: score a part while the next one is drawn; false = all parts after sampling, in the caller's thread.
        """
        self._parts = parts
        self._sample = sample
        self._score = score
        self._device = parts[0].input_ids.device
        self._later: list[Callable[[], Tensor]] = []
        self._scores: list[Future[Tensor]] = []
        self._thread = SideThread[Tensor]("reward", self._device) if beside and len(parts) > 1 else None

    def __enter__(self) -> ScoringAhead:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        if error is None:
            self._thread.end()
            return
        patience = _PATIENCE if isinstance(error, Exception) else _GRACE
        if not self._thread.end(patience):
            _log.warning(
                "%s while the reward was scoring; its call has not ended within %g s and is left running",
                type(error).__name__,
                patience,
            )

    def samples(self) -> list[Samples]:
        """Draw the responses of every part.

        Raises:
            UserError: sampling met it, or scoring has by now; its rows are those of the whole batch.
        """
        drawn = []
        for part, start in zip(self._parts, accumulate(map(len, self._parts), initial=0), strict=False):
            with _rows_from(start):
                samples = self._sample(part)
            drawn.append(samples)
            texts = replace(samples, hidden=None, frozen_states=None)  # large, and no reward reads them
            self._have_scored(partial(self._scored, texts, start))
        return drawn

    def _have_scored(self, call: Callable[[], Tensor]) -> None:
        if self._thread is None:
            self._later.append(call)
            return
        self._scores.append(self._thread.do(call))
        for score in self._scores:
            if score.done():
                score.result()  # raises what the reward has raised: the other parts need not be drawn

    def scores(self) -> Tensor:
        """f32 [B], the scores of all parts, on their device; those that are not there yet are waited for.

        Raises:
            UserError: the reward's own; its rows are those of the whole batch.
        """
        scores = [call() for call in self._later] or [score.result() for score in self._scores]
        return torch.cat(scores).to(self._device)

    def _scored(self, samples: Samples, start: int) -> Tensor:
        """On the CPU, so that no stream need wait for another's."""
        with _rows_from(start):
            return self._score(samples).cpu()


@contextmanager
def _rows_from(start: int) -> Iterator[None]:
    """Let an error of the body, which sees a part of the batch, name the batch's rows; `start` = the part's first."""
    try:
        yield
    except UserError as error:
        if start and error.rows:
            error.rows = tuple(start + row for row in error.rows)
            error.args = (f"{error}; rows {first_few(error.rows)} of the iteration's batch",)
        raise
