"""A run that is refused before it has begun leaves the folders of its loggers as they were; any other keeps all."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import lightning.pytorch as pl
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lightning_rarlhf.errors import UserError
from lightning_rarlhf.trainer.run_start import CONFIG, taken_back_if_refused

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Refuses(BoringModel):
    """Fails at a point of its fit."""

    def __init__(self, error: BaseException, after_batches: int) -> None:
        super().__init__()
        self.save_hyperparameters({"lr": 2})  # which a logger writes
        self.error, self.after_batches = error, after_batches

    def training_step(self, batch, batch_idx):
        if batch_idx == self.after_batches:
            raise self.error
        return super().training_step(batch, batch_idx)


class WritesConfig(pl.Callback):
    """As the command line does."""

    def setup(self, trainer, pl_module, stage):
        (Path(trainer.log_dir) / CONFIG).write_text("the new run's")


def fit(folder: Path, logger: Logger | bool, error: BaseException, after_batches: int = 0) -> None:
    trainer = pl.Trainer(
        default_root_dir=folder,
        logger=logger,
        accelerator="cpu",
        max_epochs=1,
        limit_val_batches=0,
        callbacks=[WritesConfig()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(type(error)), taken_back_if_refused(trainer):
        trainer.fit(Refuses(error, after_batches))


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("kind", [TensorBoardLogger, CSVLogger])
def test_nothing_of_a_refused_run_is_left(tmp_path, kind):
    fit(tmp_path / "run", kind(tmp_path / "run" / "deep"), UserError("no"))
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("kind", [TensorBoardLogger, CSVLogger])
def test_what_was_there_before_stays_as_it_was(tmp_path, kind):
    """A version that the user names again, and files of others beside it."""
    there = tmp_path / "lightning_logs" / "version_3"
    there.mkdir(parents=True)
    for name in (CONFIG, "hparams.yaml", "metrics.csv", "events.out.tfevents.1.host.1.0", "notes.txt"):
        (there / name).write_text(f"the former {name}")
    before = contents(tmp_path)
    fit(tmp_path, kind(tmp_path, name="lightning_logs", version=3), UserError("no"))
    assert contents(tmp_path) == before


def test_what_a_run_beside_it_wrote_is_not_undone(tmp_path):
    """Two runs of one folder: the second starts after the first has looked at it, and goes on when that is refused."""
    (tmp_path / CONFIG).write_text("the former")

    def begin() -> AbstractContextManager[None]:
        trainer = pl.Trainer(default_root_dir=tmp_path, logger=False, accelerator="cpu", enable_checkpointing=False)
        return taken_back_if_refused(trainer)

    def write_and_be_refused(text: str, *beside: AbstractContextManager[None]) -> None:
        for run in beside:
            run.__enter__()
        (tmp_path / CONFIG).write_text(text)
        raise UserError("no")

    second = begin()
    with pytest.raises(UserError), begin():
        write_and_be_refused("the second's", second)
    assert (tmp_path / CONFIG).read_text() == "the second's"
    second.__exit__(None, None, None)
    with pytest.raises(UserError), begin():  # alone again
        write_and_be_refused("a third's")
    assert (tmp_path / CONFIG).read_text() == "the second's"


def test_without_a_logger_the_former_configuration_is_put_back(tmp_path):
    (tmp_path / CONFIG).write_text("the former")
    fit(tmp_path, False, UserError("no"))
    assert contents(tmp_path) == {CONFIG: b"the former"}


def test_a_folder_in_which_somebody_else_wrote_stays(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    trainer = pl.Trainer(logger=logger, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False)
    theirs = Path(logger.log_dir) / "theirs.txt"

    def run() -> None:
        (theirs.parent / CONFIG).touch()
        theirs.touch()
        raise UserError("no")

    with pytest.raises(UserError), taken_back_if_refused(trainer):
        run()
    assert list(theirs.parent.iterdir()) == [theirs]


@pytest.mark.parametrize(("error", "after_batches"), [(UserError("no"), 1), (RuntimeError("a bug"), 0)])
def test_a_run_that_had_begun_and_one_that_broke_keep_their_logs(tmp_path, error, after_batches):
    fit(tmp_path, TensorBoardLogger(tmp_path), error, after_batches)
    names = {path.name.partition(".")[0] for path in (tmp_path / "lightning_logs" / "version_0").iterdir()}
    assert {"config", "events"} <= names


def test_the_logs_stay_beside_a_crash_bundle(tmp_path):
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        logger=CSVLogger(tmp_path),
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[WritesConfig()],
    )
    module = Refuses(UserError("the score is NaN"), 0)
    module.wrote_evidence = True
    with pytest.raises(UserError), taken_back_if_refused(trainer):
        trainer.fit(module)
    assert (tmp_path / "lightning_logs" / "version_0" / CONFIG).is_file()


def test_a_folder_that_cannot_be_made_is_said_before_the_run(tmp_path):
    (tmp_path / "file").touch()
    trainer = pl.Trainer(default_root_dir=tmp_path / "file" / "run", logger=False, accelerator="cpu")
    told = pytest.raises(UserError, match=r"file/run: it could not be written \(Not a directory\)")
    with told, taken_back_if_refused(trainer):
        pytest.fail("the run was begun")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
