"""A real fit, seconds short, whose validations log what a script says: iteration → metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from tests.quiet_trainer import quiet_trainer

Script = Mapping[int, Mapping[str, float]]


class ScriptedModule(pl.LightningModule):
    """Optimises by hand, as `RiskAversePPOModule` does; `weight` counts the iterations."""

    def __init__(self, script: Script) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.script = script
        self.validated: list[int] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=1.0)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(-self.weight)
        optimizer.step()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Everything is logged at the end, as by `LanguageModule`."""

    def on_validation_epoch_end(self) -> None:
        step = round(self.weight.item())
        self.validated.append(step)
        self.log_dict(dict(self.script[step]))


class EqualBatches(torch.utils.data.DataLoader):
    """Goes on anywhere, for its batches are all equal; Lightning warns of a loader that does not say so."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


class MemoryLogger(Logger):
    """Keeps what was logged, as (step, name, value)."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int | None, str, float]] = []

    @property
    def name(self) -> str:
        return "memory"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing of interest."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.logged += [(step, name, value) for name, value in metrics.items()]


def fit(
    script: Script,
    callbacks: list[Callback],
    folder: Path,
    *,
    every: int = 1,
    steps: int = 6,
    logger: Logger | None = None,
    ckpt_path: Path | None = None,
) -> tuple[pl.Trainer, ScriptedModule]:
    """`steps` iterations in epochs of four, validated after each `every`."""
    data = EqualBatches(torch.zeros(4))
    module = ScriptedModule(script)
    trainer = quiet_trainer(
        folder,
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=every,
        check_val_every_n_epoch=None,
        callbacks=callbacks,
        logger=logger or False,
        enable_checkpointing=any(isinstance(callback, pl.callbacks.ModelCheckpoint) for callback in callbacks),
    )
    trainer.fit(module, data, data, ckpt_path=ckpt_path and str(ckpt_path))
    return trainer, module
