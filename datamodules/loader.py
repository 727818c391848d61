"""Batches in an order that depends on seed and epoch alone, with a position that a checkpoint can hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from lightning_rarlhf.errors import DataError

BatchT = TypeVar("BatchT")


class PromptLoader(Generic[BatchT]):
    """Deals the rows of one split to the processes, batch by batch.

    For training (`shuffle=True`) it is an endless stream of epochs: each is a new permutation, an incomplete last
    batch is dropped, and iterating again goes on where delivery stopped, in the next epoch if this one was complete.
    Lightning stops at ``len()`` and never asks for the end of the iterator, so that is decided on entry. For evaluation
    every pass starts at row 0 and covers all rows, in batches whose sizes differ by one at most and that have a row for
    every process.

    A global batch is the same whatever the number of processes; each takes its rows ``rank::world_size``, padded to the
    longest row of the global batch, so that all have the same width.

    Args:
        lengths: i64 [N], tokens of each row.
        collate: makes the batch of the given row numbers, padded to the given width in tokens.
        batch_size: rows of a global batch.
        shuffle: training (True) or evaluation (False), as above.
        seed: of the permutations.
        rank: this process, from 0.
        world_size: number of processes.

    Raises:
        DataError: fewer rows than one batch (training) or than processes (evaluation).
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        collate: Callable[[list[int], int], BatchT],
        *,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check_sizes(len(lengths), batch_size, world_size, shuffle=shuffle)
        self.lengths = lengths
        self.batch_size = int(batch_size)  # a plain number: the command line's own types cannot be read back
        self.shuffle = shuffle
        self.seed = int(seed)
        self.rank = rank
        self.world_size = world_size
        self._collate = collate
        self._epoch = 0
        self._delivered = 0

    def __len__(self) -> int:
        """Batches of an epoch."""
        rows = len(self.lengths)
        if self.shuffle:
            return rows // self.batch_size
        return min(-(-rows // self.batch_size), rows // self.world_size)  # no process is left without a row

    def __iter__(self) -> Iterator[BatchT]:
        if not self.shuffle or self._delivered >= len(self):
            self._epoch += self.shuffle
            self._delivered = 0
        return self._deliver()

    def _deliver(self) -> Iterator[BatchT]:
        for batch in self._epoch_batches()[self._delivered :]:
            self._delivered += 1  # before the yield: a checkpoint is written while this batch is in the training step
            yield self._collate(batch[self.rank :: self.world_size].tolist(), int(self.lengths[batch].max()))

    def _epoch_batches(self) -> list[NDArray[np.int64]]:
        rows = np.arange(len(self.lengths))
        if not self.shuffle:
            return np.array_split(rows, len(self)) if len(rows) else []
        order = np.random.default_rng([self.seed, self._epoch]).permutation(rows)
        return list(order[: len(self) * self.batch_size].reshape(len(self), self.batch_size))

    def state_dict(self) -> dict[str, Any]:
        """Epoch, batches of it delivered, the seed of their order, and what they are counted in."""
        return {"epoch": self._epoch, "delivered": self._delivered, "seed": self.seed, **self._unit()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last delivered batch, in the order of the saved seed.

        Raises:
            DataError: the state was saved with other data or batch size, so that its position means nothing here.
        """
        for name, value in self._unit().items():
            if state[name] != value:
                raise DataError(
                    f"cannot resume in the middle of other data: the checkpoint has {name}={state[name]}, this run "
                    f"{value}; use the same data settings, or start a new run from an exported model"
                )
        self._epoch, self._delivered, self.seed = state["epoch"], state["delivered"], state["seed"]

    def _unit(self) -> dict[str, int]:
        return {"rows": len(self.lengths), "batch_size": self.batch_size}


def _check_sizes(rows: int, batch_size: int, world_size: int, *, shuffle: bool) -> None:
    if shuffle and rows < batch_size:
        raise DataError(
            f"batch_size={batch_size} is larger than the training set of {rows} rows; lower it or give more rows"
        )
    if shuffle and batch_size < world_size:
        raise DataError(f"batch_size={batch_size} cannot be dealt to {world_size} processes; raise it")
    if not shuffle and rows < world_size:
        raise DataError(f"{rows} rows cannot be dealt to {world_size} processes; evaluate on fewer processes")
