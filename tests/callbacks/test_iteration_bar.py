"""The bar's total is the batches that an epoch really has: with epochs, with max_steps, with both, on going on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar, TQDMProgressBar

from callbacks.iteration_bar import IterationBar
from lightning_rarlhf.command_line.cli import TrainCLI
from tests.callbacks.scripted import EqualBatches, ScriptedModule
from tests.quiet_trainer import quiet_trainer


class Automatic(ScriptedModule):
    """Lets Lightning step, so that batches can be gathered."""

    def __init__(self) -> None:
        super().__init__({})
        self.automatic_optimization = True

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return -self.weight


class Counts(Callback):
    """Each epoch's total as the bar has it before every batch, and the number of the last batch that it had."""

    def __init__(self) -> None:
        self._said: dict[int, set[float]] = {}
        self._had: dict[int, int] = {}
        self.batches = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._said.setdefault(trainer.current_epoch, set()).add(trainer.progress_bar_callback.total_train_batches)
        self._had[trainer.current_epoch] = batch_idx + 1
        self.batches += 1

    @property
    def said(self) -> list[float]:
        return [total for totals in self._said.values() for total in totals]

    @property
    def had(self) -> list[int]:
        return list(self._had.values())


def counted(folder: Any, module: Any, *callbacks: Callback, ckpt_path: Any = None, **settings: Any) -> Counts:
    counts = Counts()
    bar = {"enable_progress_bar": True, "limit_val_batches": 0, "enable_checkpointing": bool(callbacks)}
    trainer = quiet_trainer(folder, callbacks=[IterationBar(), counts, *callbacks], **bar, **settings)
    trainer.fit(module, EqualBatches([0] * 5, batch_size=1), EqualBatches([0]), ckpt_path=ckpt_path)
    return counts


@pytest.mark.parametrize(
    ("settings", "batches"),
    [
        ({"max_epochs": 2}, [5, 5]),
        ({"max_epochs": 1, "max_steps": 3}, [3]),
        ({"max_epochs": -1, "max_steps": 7}, [5, 2]),
        ({"max_epochs": 3, "max_steps": 99}, [5, 5, 5]),
    ],
)
def test_the_total_is_what_the_run_has(tmp_path, settings, batches):
    counts = counted(tmp_path, ScriptedModule({}), **settings)
    assert counts.said == counts.had == batches


def test_steps_may_take_several_batches(tmp_path):
    counts = counted(tmp_path, Automatic(), max_epochs=3, max_steps=4, accumulate_grad_batches=2)
    assert counts.said == counts.had == [5, 2]


def test_a_run_that_goes_on_within_an_epoch_counts_from_its_start(tmp_path):
    def saves() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)

    counted(tmp_path, Automatic(), saves(), max_epochs=1, max_steps=3)
    begun = tmp_path / "step=2.ckpt"
    counts = counted(tmp_path, Automatic(), saves(), max_epochs=1, max_steps=4, ckpt_path=begun)
    assert counts.said == counts.had == [4]
    assert counts.batches == 2


class Shown(Callback):
    """Batches done and batches in all, as the bar shows them after every batch."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, float | None]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        (task,) = trainer.progress_bar_callback.progress.tasks
        self.rows.append((task.completed, task.total))


def test_an_epoch_that_is_gone_on_with_for_its_last_batch_is_shown_with_all_of_them(tmp_path):
    def saves() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4)

    counted(tmp_path, Automatic(), saves(), max_epochs=1, max_steps=4)
    shown = Shown()
    counted(tmp_path, Automatic(), saves(), shown, max_epochs=2, max_steps=7, ckpt_path=tmp_path / "step=4.ckpt")
    assert shown.rows == [(5, 5), (1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("config", "bars"),
    [
        ({"enable_progress_bar": None}, [IterationBar]),
        ({"enable_progress_bar": True}, [IterationBar]),
        ({"enable_progress_bar": False}, []),
        ({"enable_progress_bar": None, "callbacks": [TQDMProgressBar()]}, [TQDMProgressBar]),
    ],
)
def test_the_command_line_takes_it_unless_the_user_has_a_bar_or_wants_none(config, bars):
    class Cli(TrainCLI):
        def __init__(self) -> None:
            self.trainer_defaults, self.save_config_callback = {}, None
            self.trainer_class = lambda **settings: settings

    callbacks = Cli()._instantiate_trainer({"callbacks": None} | config, [])["callbacks"]
    assert [type(callback) for callback in callbacks] == bars


def test_the_log_folders_number_is_not_shown(tmp_path):
    trainer = quiet_trainer(tmp_path, enable_progress_bar=True, logger=True, callbacks=[IterationBar()])
    assert "v_num" in RichProgressBar().get_metrics(trainer, ScriptedModule({}))
    assert IterationBar().get_metrics(trainer, ScriptedModule({})) == {}
