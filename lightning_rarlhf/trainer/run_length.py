"""A fit trains something: one that is asked for nothing would end well, and export what it was given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_rarlhf.errors import UserError

if TYPE_CHECKING:
    import lightning.pytorch as pl


def require_steps(trainer: pl.Trainer) -> None:
    """Refuse a fit of no step; cheap, so that it can be asked before anything is loaded.

    Raises:
        UserError: with the setting that says so.
    """
    for name in ("max_steps", "max_epochs", "limit_train_batches"):
        if getattr(trainer, name) == 0:
            raise UserError(
                f"trainer.{name}=0: fit would train nothing; give a number above 0, or leave it out; `test` measures "
                "the model as it is"
            )
