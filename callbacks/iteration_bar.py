"""Lightning's progress bar, which ends where the run ends."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar


class IterationBar(RichProgressBar):
    """Counts an epoch's batches, but none beyond `max_steps`, of which Lightning's own bar knows without epochs only.

    The command line takes it in place of that one.
    """

    @property
    def total_train_batches(self) -> int | float:
        """Batches that this epoch will have had when it, or the run, ends."""
        trainer = self.trainer
        batches = trainer.num_training_batches
        if trainer.max_steps < 0 or math.isinf(batches):
            return batches
        steps_an_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
        taken = trainer.global_step % steps_an_epoch  # of this epoch, where a run goes on within one
        return min(batches, (taken + trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Show an epoch that is gone on with; Lightning does so after a batch of it, which may have been its last."""
        if not self.is_disabled and self.train_progress_bar_id is None:
            self._initialize_train_progress_bar_id()

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What the module shows, without the number of the log folder."""
        items: dict[str, Any] = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        return items
