"""Checkpoints that are whole or not there, and what happens when one cannot be written."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal, cast

import lightning.pytorch as pl
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.checkpoint_io import SafeCheckpointIO
from lightning_rarlhf.checkpoints.sharded_checkpoint import SharedWriteError
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.one_move import PARTIAL, discard

OnWriteError = Literal["stop", "continue"]


class NotWrittenError(UserError):
    """A checkpoint that could not be written; those before it are as they were."""


class SafeCheckpoint(ModelCheckpoint):
    """Base of `RunCheckpoint`: each file, or folder of a sharded checkpoint, takes its predecessor's place when whole.

    A better state is written before the one that it displaces is removed, so there is a valid checkpoint at all times.
    """

    on_write_error: OnWriteError = "stop"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take over from Lightning's own writing; clear away what a killed process left half-written."""
        super().setup(trainer, pl_module, stage)
        strategy = trainer.strategy
        if type(strategy.checkpoint_io) is TorchCheckpointIO:  # not one of the user's own
            strategy.checkpoint_io = SafeCheckpointIO()
        if stage == "fit" and trainer.is_global_zero and self.dirpath is not None:
            for partial in Path(self.dirpath).glob(f"*{self.FILE_EXTENSION}{PARTIAL}"):
                discard(partial)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        """Write on all processes together.

        Raises:
            NotWrittenError: the disk is full, permission is missing, ...; on every process, though one alone writes.
        """
        failure = trainer.strategy.broadcast(self._write(trainer, Path(filepath)))
        if failure is not None:
            raise NotWrittenError(self._explain(trainer, Path(filepath), failure))

    def _write(self, trainer: pl.Trainer, path: Path) -> str | None:
        """Why this process could not write; None = it could."""
        io = trainer.strategy.checkpoint_io
        collected = io.collected_failures() if isinstance(io, SafeCheckpointIO) else nullcontext([])
        with cast("AbstractContextManager[list[OSError]]", collected) as failures:
            try:
                super()._save_checkpoint(trainer, str(path))
            except SharedWriteError as error:  # on every process alike
                failures.append(error)
        return f"{failures[0].strerror or failures[0]}" if failures else None

    def _or_go_on(self, error: NotWrittenError) -> None:
        """Do with a failed write what the configuration says."""
        if self.on_write_error == "stop":
            raise error
        rank_zero_warn(str(error))

    def _explain(self, trainer: pl.Trainer, path: Path, reason: str) -> str:
        before = "the one before it is intact" if path.exists() else "there was none before it"
        after = (
            "go on with --ckpt_path last"
            if self.on_write_error == "stop"
            else "training goes on and tries again when the next one is due"
        )
        return (
            f"iteration {trainer.global_step}: checkpoint {path} could not be written: {reason}; {before}; free the "
            f"disk or mend its permissions, {after}"
        )
