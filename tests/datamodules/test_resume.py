"""Interrupted and resumed, a run sees the prompts that it would have seen: tried with Lightning's own trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy

from datamodules import PromptDataModule
from datamodules.rows import RowSchema
from lightning_rarlhf.data_types import PromptBatch
from lightning_rarlhf.errors import DataError
from tests.datamodules.data_files import text
from tests.quiet_trainer import quiet_trainer

EPOCH = 5  # batches


class Texts(PromptDataModule):
    label_required = False

    def read(self) -> dict[str, datasets.Dataset]:
        train = [text(number) for number in range(4 * EPOCH + 3)]
        return {
            "train": datasets.Dataset.from_dict({"text": train}),
            "test": datasets.Dataset.from_dict({"text": [text(number) for number in range(100, 110)]}),
        }

    def schema(self, columns: Any) -> RowSchema:
        return RowSchema(text="text")


class Recorder(pl.LightningModule):
    """Writes down the prompts of each training step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []
        self.validated: list[list[int]] = []

    def training_step(self, batch: PromptBatch, _number: int) -> torch.Tensor:
        self.seen.append(batch.index.tolist())
        return self.weight.sum()

    def validation_step(self, batch: PromptBatch, _number: int) -> None:
        self.validated.append(batch.index.tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    folder: Path,
    tokenizer: str,
    *,
    every: int = 1,
    resume: Path | None = None,
    data: dict[str, Any] | None = None,
    **limits: Any,
) -> Recorder:
    module = Recorder()
    trainer = quiet_trainer(
        folder,
        callbacks=[ModelCheckpoint(folder, filename="{step}", every_n_train_steps=every, save_top_k=-1)],
        **limits,
        enable_checkpointing=True,
    )
    options = {"tokenizer": tokenizer, "batch_size": 4, "val_size": 4, "test_size": 4} | (data or {})
    trainer.fit(module, datamodule=Texts(**options), ckpt_path=resume)
    return module


pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"
)


@pytest.mark.parametrize("limits", [{"max_steps": 14, "max_epochs": -1}, {"max_epochs": 3}])
@pytest.mark.parametrize("stop", [1, 3, EPOCH - 1, EPOCH, EPOCH + 1, 2 * EPOCH])
def test_resumed_run_sees_the_same_prompts(
    tmp_path: Path, tokenizer_folder: str, limits: dict[str, int], stop: int
) -> None:
    whole = fit(tmp_path / "whole", tokenizer_folder, **limits)
    resumed = fit(tmp_path / "rest", tokenizer_folder, resume=tmp_path / "whole" / f"step={stop}.ckpt", **limits)
    assert resumed.seen == whole.seen[stop:]
    assert len(whole.seen) == (14 if "max_steps" in limits else 3 * EPOCH)


class RestoresLate(SingleDeviceStrategy):
    """As FSDP's strategies, which restore when the optimizer is there already."""

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True


@pytest.mark.parametrize("stop", [3, EPOCH + 1])
def test_so_it_does_where_the_optimizer_asks_for_the_runs_length_before_anything_is_restored(
    tmp_path: Path, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """As a decay of the learning rate does: the loader is there before its position."""
    configure = Recorder.configure_optimizers

    def asks(module: Recorder) -> torch.optim.Optimizer:
        assert module.trainer.estimated_stepping_batches == 3 * EPOCH
        return configure(module)

    monkeypatch.setattr(Recorder, "configure_optimizers", asks)
    whole = fit(tmp_path / "whole", tokenizer_folder, max_epochs=3)
    saved = tmp_path / "whole" / f"step={stop}.ckpt"
    resumed = fit(tmp_path / "rest", tokenizer_folder, resume=saved, strategy=RestoresLate(), max_epochs=3)
    assert resumed.seen == whole.seen[stop:]


def test_epochs_differ(tmp_path: Path, tokenizer_folder: str) -> None:
    seen = fit(tmp_path, tokenizer_folder, max_epochs=2).seen
    assert seen[:EPOCH] != seen[EPOCH:]
    assert len({number for batch in seen[:EPOCH] for number in batch}) == 4 * EPOCH


def test_a_run_that_was_complete_is_continued_with_the_next_epoch(tmp_path: Path, tokenizer_folder: str) -> None:
    """Lightning does not restore a loader's position then: the data module does."""
    whole = fit(tmp_path / "whole", tokenizer_folder, max_epochs=3)
    module = Recorder()
    trainer = quiet_trainer(
        tmp_path,
        max_epochs=1,
    )
    trainer.fit(module, datamodule=Texts(tokenizer=tokenizer_folder, batch_size=4, val_size=4, test_size=4))
    trainer.save_checkpoint(tmp_path / "one-epoch.ckpt")
    resumed = fit(tmp_path / "rest", tokenizer_folder, resume=tmp_path / "one-epoch.ckpt", max_epochs=3)
    assert resumed.seen == whole.seen[EPOCH:]


@pytest.mark.parametrize("stop", [2, 4, 6])
def test_validation_in_between_moves_nothing(tmp_path: Path, tokenizer_folder: str, stop: int) -> None:
    plain = fit(tmp_path / "plain", tokenizer_folder, max_epochs=2, limit_val_batches=0)
    often = fit(tmp_path / "often", tokenizer_folder, max_epochs=2, val_check_interval=2)
    assert often.seen == plain.seen
    assert all(batch == often.validated[0] for batch in often.validated)
    checkpoint = tmp_path / "often" / f"step={stop}.ckpt"
    resumed = fit(tmp_path / "rest", tokenizer_folder, resume=checkpoint, max_epochs=2, val_check_interval=2)
    assert resumed.seen == plain.seen[stop:]


def test_limited_epochs_go_through_all_the_data(tmp_path: Path, tokenizer_folder: str) -> None:
    whole = fit(tmp_path / "whole", tokenizer_folder, max_epochs=1)
    parts = fit(tmp_path / "parts", tokenizer_folder, max_epochs=3, limit_train_batches=2)
    assert parts.seen[:EPOCH] == whole.seen


def test_resuming_on_other_data_is_refused(tmp_path: Path, tokenizer_folder: str) -> None:
    fit(tmp_path, tokenizer_folder, max_steps=2, max_epochs=-1)
    with pytest.raises(DataError, match="the checkpoint has batch_size=4, this run 5"):
        fit(
            tmp_path / "rest",
            tokenizer_folder,
            resume=tmp_path / "step=2.ckpt",
            data={"batch_size": 5},
            max_steps=4,
            max_epochs=-1,
        )


def test_a_second_fit_starts_from_the_first_epoch(tmp_path: Path, tokenizer_folder: str) -> None:
    data = Texts(tokenizer=tokenizer_folder, batch_size=4, val_size=0)
    seen = []
    for _ in range(2):
        module = Recorder()
        quiet_trainer(
            tmp_path,
            max_epochs=1,
        ).fit(module, datamodule=data)
        seen.append(module.seen)
    assert seen[0] == seen[1]
