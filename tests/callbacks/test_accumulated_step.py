"""A step whose gradient is gathered over several batches is not cut in two by a checkpoint."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from callbacks import RunCheckpoint, StopOnSignal
from tests.quiet_trainer import quiet_trainer

ROWS = torch.tensor([1.0, -2.0, 3.0, 5.0, -1.0, 4.0, 2.0, -3.0, 7.0, 6.0, -5.0, 8.0])


class Regression(pl.LightningModule):
    """Optimised by Lightning, as `SFTModule` is; what it learns tells which rows it has had."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return ((self.weight - batch) ** 2).mean()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.weight.detach())


class Rows(torch.utils.data.DataLoader):
    """Goes on where it was."""

    def __init__(self) -> None:
        super().__init__(ROWS)
        self.given = self.start = 0

    def __iter__(self):
        start, self.start = self.start, 0
        self.given = start
        for row in ROWS[start:]:
            self.given += 1
            yield row

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given % len(ROWS)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.start = state_dict["given"]


class At(Callback):
    """Does something before one batch."""

    def __init__(self, batch: int, action) -> None:
        self.batch, self.action = batch, action

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if batch_idx == self.batch:
            self.action()


def fit(folder: Path, *callbacks: Callback, ckpt_path: Path | None = None, validate: int = 12, **settings):
    checkpoint = RunCheckpoint(dirpath=str(folder), **{"every_n_iterations": 100} | settings)
    module = Regression()
    trainer = quiet_trainer(
        folder,
        max_epochs=2,
        accumulate_grad_batches=4,
        val_check_interval=validate,
        callbacks=[*callbacks, StopOnSignal(), checkpoint],
        enable_checkpointing=True,
    )
    trainer.fit(module, Rows(), torch.utils.data.DataLoader(ROWS[:1]), ckpt_path=ckpt_path and str(ckpt_path))
    return module.weight.item()


def delivered(path: Path) -> tuple[int, int]:
    """Steps, and batches of the epoch, of a checkpoint."""
    state = torch.load(path, weights_only=True)
    return state["global_step"], state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> float:
    return fit(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("batch", [4, 5, 7])
def test_a_signal_lets_the_step_finish(tmp_path, whole, batch):
    with pytest.raises(SystemExit):
        fit(tmp_path, At(batch, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert delivered(tmp_path / "last.ckpt") == (2, 8)
    assert fit(tmp_path, ckpt_path=tmp_path / "last.ckpt") == whole


@pytest.mark.parametrize(
    "settings", [{"every_n_minutes": 1e-9}, {"validate": 3}, {"validate": 6, "monitor": "val/loss"}]
)
def test_what_is_due_within_a_step_is_written_at_its_end(tmp_path, whole, settings):
    """Of two batches that stop the run without a word, one is in a step and one begins another."""
    for batch in (6, 8):
        folder = tmp_path / str(batch)

        def fail() -> None:
            raise ConnectionError

        with pytest.raises(ConnectionError):
            fit(folder, At(batch, fail), every_n_iterations=1, **settings)
        assert delivered(folder / "last.ckpt") == (batch // 4, batch // 4 * 4)
        assert fit(folder, ckpt_path=folder / "last.ckpt", **settings) == whole
