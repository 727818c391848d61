"""A disk that one of two processes cannot write to any more; see test_two_process_checkpoints."""

from __future__ import annotations

import os
import resource
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback


class FullDisk(Callback):
    """From an iteration to another, the system refuses process `rank` files of more than `limit` bytes.

    `ballast` numbers are added to every checkpoint beside its weights, so that the limit may lie between the two.
    """

    def __init__(self, rank: int, first: int, last: int, limit: int, ballast: int = 1) -> None:
        self.rank, self.first, self.last, self.limit, self.ballast = rank, first, last, limit, ballast

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if os.environ["RANK"] == str(self.rank):
            full = self.first <= trainer.global_step + 1 <= self.last
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit if full else most, most))

    def teardown(self, trainer: Any, module: Any, stage: str) -> None:
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["ballast"] = torch.zeros(self.ballast)
