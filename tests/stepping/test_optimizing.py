"""A decay over the run asks for the run's length, and so for the data, before anything of a checkpoint is restored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy

from lightning_rarlhf.checkpoints.resume import settings_of
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.stepping.optimizing import go_on, with_linear_decay
from tests.quiet_trainer import quiet_trainer

EPOCH = 5  # batches


class Numbers:
    """A loader of the user's own: 1, 2, ..., 5, and it can tell its place."""

    def __init__(self) -> None:
        self.at = 0

    def __len__(self) -> int:
        return EPOCH

    def __iter__(self) -> Iterator[int]:
        self.at %= EPOCH
        while self.at < EPOCH:
            self.at += 1
            yield self.at

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class RestoresLate(SingleDeviceStrategy):
    """As FSDP's strategies, which restore when the optimizer is there already."""

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True


class Decays(pl.LightningModule):
    """Notes the batches and the learning rates of its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[int] = []
        self.rates: list[float] = []

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.3)
        self.settings = settings_of(optimizer)
        return with_linear_decay(optimizer, self.trainer)

    def on_train_start(self) -> None:
        go_on(self.trainer, self.settings)

    def training_step(self, batch: int, _number: int) -> torch.Tensor:
        self.seen.append(int(batch))
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return self.weight.sum()


def fit(folder: Path, strategy: str, resume: Path | None = None, epochs: int = 3) -> Decays:
    module = Decays()
    trainer = quiet_trainer(
        folder,
        callbacks=[ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)],
        enable_checkpointing=True,
        max_epochs=epochs,
        strategy=RestoresLate() if strategy == "late" else strategy,
    )
    trainer.fit(module, Numbers(), ckpt_path=resume)
    return module


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize("strategy", ["auto", "late"])
@pytest.mark.parametrize("stop", [1, EPOCH - 1, EPOCH, EPOCH + 2])
def test_a_resumed_run_goes_on_in_the_users_own_loader(tmp_path: Path, strategy: str, stop: int) -> None:
    whole = fit(tmp_path / "whole", strategy)
    assert whole.seen == 3 * [1, 2, 3, 4, 5]
    resumed = fit(tmp_path / "rest", strategy, tmp_path / "whole" / f"step={stop}.ckpt")
    assert resumed.seen == whole.seen[stop:]
    assert resumed.rates == pytest.approx(whole.rates[stop:])


def test_a_run_without_an_end_has_no_decay(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs the run's length: set trainer\.max_steps or trainer\.max_epochs"):
        fit(tmp_path, "auto", epochs=-1)
