"""A callback that notes what an iteration takes: see `benchmarks.gptj`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

RESULT = "peak.json"


class Peak(Callback):
    """Writes ``peak.json``: seconds and response tokens of each iteration, and the most bytes held at one time.

    On a GPU these are the bytes that tensors of process 0 held on its device, from the start of the first iteration to
    the end of the last; on a CPU the rise of the process's memory since before the models were loaded.

    Args:
        folder: what to write to.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._iterations: list[dict[str, float]] = []
        self._before = 0
        self._start = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._before = _process_bytes("VmRSS")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._start = _now(pl_module.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        seconds = _now(pl_module.device) - self._start
        tokens = float(outputs["rollout"].response_mask.sum())  # of all processes
        self._iterations.append({"seconds": seconds, "tokens": tokens})

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        device, result = pl_module.device, {"iterations": self._iterations, "device": "cpu"}
        if device.type == "cuda":
            result |= {"peak": torch.cuda.max_memory_allocated(device), "device": torch.cuda.get_device_name(device)}
            result |= {"reserved": torch.cuda.max_memory_reserved(device)}
        else:
            result |= {"peak": _process_bytes("VmHWM") - self._before}
        if trainer.is_global_zero:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / RESULT).write_text(json.dumps(result))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _process_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])
