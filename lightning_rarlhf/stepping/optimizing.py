"""What modules do with their optimizer beyond making it: a decay over the run, and what a resumed run then needs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_rarlhf.checkpoints.resume import Settings, reapply_settings
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.functional.learning_rate import warmup_then_decay


class DecayOverRun(LambdaLR):
    """Learning rates that depend on nothing but the optimizer's own, the run's length, and the place in the run.

    Only the place comes back from a checkpoint, whichever scheduler wrote it: a longer run stretches the decay.
    """

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go to the place of `state_dict`; `set_rates` is for when the optimizer is restored too."""
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]

    def set_rates(self) -> None:
        """Give the optimizer, which has the checkpoint's rates, those of this place."""
        groups = self.optimizer.param_groups
        for group, base, factor in zip(groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = base * factor(self.last_epoch)
        self._last_lr = [group["lr"] for group in groups]


def with_linear_decay(
    optimizer: Optimizer, trainer: pl.Trainer, *, warmup: float = 0.0, steps_per_batch: int = 1
) -> OptimizerLRSchedulerConfig:
    """Lower the learning rate linearly, step by step, to 0 at the run's end.

    Args:
        optimizer: with the highest learning rate.
        trainer: knows the run's length.
        warmup: share of the steps over which the rate rises linearly first.
        steps_per_batch: steps of the optimizer for each one that the trainer counts.

    Raises:
        UserError: the run has no end.
    """
    counted = trainer.estimated_stepping_batches
    if not 0 < counted < float("inf"):
        raise UserError(
            "a decay of the learning rate needs the run's length: set trainer.max_steps or trainer.max_epochs"
        )
    total = int(counted) * steps_per_batch
    scheduler = DecayOverRun(optimizer, partial(warmup_then_decay, warmup=round(warmup * total), total=total))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def go_on(trainer: pl.Trainer, configured: Settings) -> None:
    """In a resumed run go on in the data where the checkpoint stood, by the settings that the user gives now.

    To be called before the first batch; a run that starts afresh is left as it is.

    Args:
        trainer: of the fit.
        configured: `settings_of` the optimizer as it was made.
    """
    if trainer.ckpt_path:
        _take_loader_to_its_place(trainer)
        _keep_users_settings(trainer, configured)


def _take_loader_to_its_place(trainer: pl.Trainer) -> None:
    """Give the training loader its saved state, if it was made before the checkpoint was read.

    Lightning does so when it makes the loader. A decay has it made early, since its length is the run's, and without
    this the epoch that was interrupted would begin anew.
    """
    loop = trainer.fit_loop
    if loop.restarting and loop._combined_loader_states_to_load:
        loop._load_combined_loader_states()
        assert loop._data_fetcher is not None
        iter(loop._data_fetcher)  # the iterator that it has began at the start


def _keep_users_settings(trainer: pl.Trainer, configured: Settings) -> None:
    """Let the user's settings of the optimizer count, not the checkpoint's: also the run's length."""
    optimizer = trainer.optimizers[0]
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    for line in reapply_settings(optimizer, configured, schedulers):
        rank_zero_info(f"optimizer: {line}")
    for scheduler in schedulers:
        if isinstance(scheduler, DecayOverRun):
            scheduler.set_rates()
            rank_zero_info(f"learning rate: goes on at {optimizer.param_groups[0]['lr']:.4g}")
