"""What a run writes when it starts, before there is anything to tell; a refused one takes it back."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback

from lightning_rarlhf.errors import mistake_behind
from lightning_rarlhf.one_move import or_say_why

if sys.platform != "win32":
    import fcntl

CONFIG = "config.yaml"
_WRITTEN_AGAIN = (CONFIG, "hparams.yaml", "metrics.csv")
"""files of one name in every run"""
_OF_A_START = (*_WRITTEN_AGAIN, "events.out.tfevents.*.{process}.*")


@contextmanager
def taken_back_if_refused(trainer: pl.Trainer) -> Iterator[None]:
    """Around a run: the folders of its loggers are again as they were if it ends in a mistake of the user's.

    A run that has finished a batch keeps everything, and so does one that ends in any other way, or that has left a
    crash bundle. A folder that another run is using at that time is left as it is: what lies there may be the other's.
    Loggers make their folders before anybody else is asked, so that it cannot be left until then.

    Raises:
        WriteError: such a folder cannot be written to.
    """
    logged = _log_folders(trainer)  # asked on every process: where they already work together, they agree on it
    if not trainer.is_global_zero:  # it writes for all
        yield
        return
    begun = _Begun()
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by its connector
    callbacks.insert(0, begun)
    folders = [_Former(folder) for folder in logged]
    try:
        for folder in folders:
            folder.make()
        yield
    except Exception as error:
        refused = isinstance(error, MisconfigurationException) or mistake_behind(error) is not None
        left = begun.anything or getattr(trainer.lightning_module, "wrote_evidence", False)
        if refused and not left:
            for folder in folders:
                folder.restore()
        raise
    finally:
        for folder in folders:
            folder.let_go()


class _Begun(Callback):
    """Sees whether any batch was finished."""

    anything = False

    def on_train_batch_end(self, *_: Any) -> None:
        self.anything = True

    def on_validation_batch_end(self, *_: Any) -> None:
        self.anything = True

    def on_test_batch_end(self, *_: Any) -> None:
        self.anything = True

    def on_predict_batch_end(self, *_: Any) -> None:
        self.anything = True


class _Former:
    """A folder as it was, in what a start changes."""

    def __init__(self, folder: Path) -> None:
        """Look at it.

        Raises:
            WriteError: it lies where nobody may look.
        """
        self._folder = folder
        self._hold: int | None = None
        with or_say_why(folder):
            self._missing = [path for path in (folder, *folder.parents) if not path.exists()]
            self._there = set(self._of_a_start())
            again = (path for path in self._there if path.name in _WRITTEN_AGAIN and path.is_file())
            self._former = {path: path.read_bytes() for path in again}

    def make(self) -> None:
        """Make it now, so that a disk or a permission that does not allow it ends the run in one line.

        Raises:
            WriteError: it cannot be made, or not be written to.
        """
        with or_say_why(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self._folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            self._hold = _held_with_others(self._folder)

    def let_go(self) -> None:
        """End the hold of it."""
        if self._hold is not None:
            os.close(self._hold)
            self._hold = None

    def restore(self) -> None:
        """Undo what this process's start has changed, unless another run is there."""
        if self._hold is not None and not _is_held_alone(self._hold):
            return
        for path in set(self._of_a_start()) - self._there:
            path.unlink(missing_ok=True)
        for path, content in self._former.items():
            path.write_bytes(content)
        for folder in self._missing:  # the deepest first; one that holds something else stays, and all above it
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _of_a_start(self) -> Iterator[Path]:
        patterns = (pattern.format(process=os.getpid()) for pattern in _OF_A_START)
        return (path for pattern in patterns for path in self._folder.glob(pattern))


def _held_with_others(folder: Path) -> int | None:
    """The folder opened with a lock that others may share, gone with the process; None = no such locks here."""
    if sys.platform == "win32":
        return None
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # a folder that may only be written to, some network file systems
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor


def _is_held_alone(descriptor: int) -> bool:
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _log_folders(trainer: pl.Trainer) -> set[Path]:
    """Where the configuration and the loggers that write to files will write."""
    folders = (trainer.log_dir, *(getattr(logger, "log_dir", None) for logger in trainer.loggers))
    return {Path(folder).absolute() for folder in folders if folder is not None}
