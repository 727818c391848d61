"""Checkpoints in units of iterations: the last state now and then and at the end, the best by a monitored metric."""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch.callbacks import ModelCheckpoint


class RunCheckpoint(ModelCheckpoint):
    """``last.ckpt`` every few iterations and at the end; ``best-…ckpt`` after validations that beat the others.

    Lightning's own checkpoint callback saves either by steps or by a monitored metric; a run needs both.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        every_n_iterations: PositiveInt = 25,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "max",
        save_top_k: NonNegativeInt = 1,
    ) -> None:
        """Choose what is kept.

        Args:
            dirpath: folder of the checkpoints; the command line sets it to ``checkpoints`` in the run's folder.
            every_n_iterations: iterations (optimizer steps of SFT) between two writes of ``last.ckpt``.
            monitor: metric that chooses the best checkpoints (val/cvar_10, ...); none = only ``last.ckpt``.
            mode: whether a larger or a smaller metric is better.
            save_top_k: best checkpoints kept.
        """
        super().__init__(
            dirpath=dirpath,
            filename="best-{step}",
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k if monitor else 0,
            save_last=True,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self.every_n_iterations = every_n_iterations
        self._last_written_at = -1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write ``last.ckpt`` if it is due, or if this is the run's last iteration.

        A checkpoint written later, when the epoch has ended, could not be trained further than this epoch.
        """
        last = trainer.global_step >= trainer.estimated_stepping_batches
        if last or trainer.global_step % self.every_n_iterations == 0:
            self._write_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the final state of a fit that was stopped early."""
        self._write_last(trainer)

    def _write_last(self, trainer: pl.Trainer) -> None:
        if getattr(trainer, "fast_dev_run", False) or trainer.global_step == self._last_written_at:
            return
        self._last_written_at = trainer.global_step
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
