"""Breaks numbers on one of two processes, and notes on each what became of the weights; see test_two_process_guards."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from lightning_rarlhf.trainer.sharding import whole

_now: str | None = None
"""what is broken in the iteration under way, on this process"""


def scores(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Lengths, the first of which is NaN where that is asked for."""
    found = [0.1 * len(response) for response in responses]
    return [float("nan"), *found[1:]] if _now == "scores" else found


class PoisonOneProcess(Callback):
    """On process 1, breaks `plan[iteration]`; every process writes ``rank<r>.jsonl`` with a line an iteration."""

    def __init__(self, plan: dict[int, str], folder: str) -> None:
        self.plan = {int(iteration): where for iteration, where in plan.items()}
        self.folder = Path(folder)

    def _digest(self, module: Any) -> str:
        sha = hashlib.sha256()
        for _, parameter in sorted(module.actor.named_parameters()):
            sha.update(whole(parameter.detach()).contiguous().numpy().tobytes())
        return sha.hexdigest()

    def on_train_start(self, trainer: Any, module: Any) -> None:
        actor = module.actor
        actor.lm.get_output_embeddings().register_forward_hook(lambda m, a, out: out * _nan_if("logits"))
        actor.value_head.register_forward_hook(self._poison_gradient)
        self.before = self._digest(module)

    def _poison_gradient(self, layer: Any, args: Any, out: torch.Tensor) -> None:
        if out.requires_grad and _now == "gradient":
            out.register_hook(lambda gradient: gradient * torch.nan)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        global _now
        _now = self.plan.get(trainer.global_step) if os.environ["RANK"] == "1" else None
        self.iteration = trainer.global_step

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        global _now
        _now = None
        after = self._digest(module)
        line = {"iteration": self.iteration, "moved": after != self.before, "weights": after, "skipped": module.skipped}
        with (self.folder / f"rank{os.environ['RANK']}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.before = after


def _nan_if(where: str) -> float:
    return float("nan") if _now == where else 1.0
