"""What modules do with their optimizer beyond making it: the paper's decay, and a resumed run's own settings."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR

from lightning_rarlhf.errors import UserError
from lightning_rarlhf.resume import Settings, reapply_settings


def with_linear_decay(optimizer: Optimizer, trainer: pl.Trainer) -> OptimizerLRSchedulerConfig:
    """Lower the learning rate linearly, step by step, to 0 at the run's end.

    Raises:
        UserError: the run has no end.
    """
    steps = trainer.estimated_stepping_batches
    if not 0 < steps < float("inf"):
        raise UserError("linear_decay needs the run's length: set trainer.max_steps or trainer.max_epochs")
    scheduler = LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=int(steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def keep_users_settings(trainer: pl.Trainer, configured: Settings) -> None:
    """In a resumed run let the hyperparameters that the user gives count, not those in the checkpoint."""
    if not trainer.ckpt_path:
        return
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    for line in reapply_settings(trainer.optimizers[0], configured, schedulers):
        rank_zero_info(f"optimizer: {line}")
