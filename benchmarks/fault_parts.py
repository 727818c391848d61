"""What the runs of `benchmarks.faults` are made of: a reward that can fail, and a journal that outlives a kill."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

PHASES = ("sampling", "update", "validation", "checkpoint")
_calls = itertools.count(1)


def reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:  # noqa: ARG001 - is given both
    """Kind words minus harsh ones; slow or failing where FAULT_REWARD says so: ``slow`` or ``fail:CALL``."""
    number = next(_calls)
    fault, _, call = os.environ.get("FAULT_REWARD", "").partition(":")
    if fault == "slow" and number % 7 == 0:
        time.sleep(0.5)
    if fault == "fail" and number >= int(call):
        raise ConnectionError("the reward service is gone")
    _enter("update")
    return [len(set(response.split())) + 0.01 * len(response) - response.count("never") for response in responses]


class Journal(Callback):
    """A line of exact numbers for every iteration and validation, and a file that says what is being done now."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        _enter("sampling", trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        done = trainer.global_step
        line = {"iteration": done, **_numbers(trainer, validation=False)}
        self._write(trainer, line | ({"weights": weights_hash(pl_module)} if done % 5 == 0 else {}))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _enter("validation", trainer.global_step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._write(trainer, {"validation": trainer.global_step, **_numbers(trainer, validation=True)})

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        _enter("checkpoint", trainer.global_step)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Also of a run that was killed when its last state was written: it has nothing left to train."""
        self._write(trainer, {"end": trainer.global_step, "weights": weights_hash(pl_module)})

    def _write(self, trainer: pl.Trainer, line: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")


def weights_hash(module: pl.LightningModule) -> str:
    """Of every trained number, to the bit."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        if parameter.requires_grad:
            digest.update(name.encode() + parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _numbers(trainer: pl.Trainer, *, validation: bool) -> dict[str, float]:
    metrics = {k: v for k, v in trainer.callback_metrics.items() if not k.startswith("time/")}
    return {name: float(value) for name, value in metrics.items() if name.startswith("val/") is validation}


def _enter(phase: str, iteration: int | None = None) -> None:
    """Say what this process does now, for those who wait to kill it then."""
    path = os.environ.get("FAULT_PHASE")
    if path is None or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    text = Path(path).read_text() if iteration is None and Path(path).exists() else ""
    number = text.split()[1] if iteration is None and text else str(iteration or 0)
    Path(path).write_text(f"{phase} {number} ")
