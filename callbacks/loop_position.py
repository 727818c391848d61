"""Where a fit stands when an iteration ends, as Lightning's loops know it; a validation out of turn."""

from __future__ import annotations

import lightning.pytorch as pl


def is_last_iteration(trainer: pl.Trainer) -> bool:
    """Whether the iteration that is ending is the run's last."""
    return bool(trainer.global_step >= trainer.estimated_stepping_batches)


def in_accumulated_step(trainer: pl.Trainer) -> bool:
    """Whether the batch that has just ended was not the last one of an optimizer step (accumulate_grad_batches)."""
    return trainer.lightning_module.automatic_optimization and trainer.fit_loop.epoch_loop._should_accumulate()


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether the trainer validates right after the iteration that is ending."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def validate_now(trainer: pl.Trainer) -> None:
    """Validate before the first iteration of a resumed run, as Lightning does between two."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False
    trainer.validating = True
    loop.run()
    trainer.training = True
