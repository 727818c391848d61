"""The checkpoint on disk: written in one move, read without executing anything, refused by name if it is not whole."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lightning_rarlhf.errors import UserError
from lightning_rarlhf.one_move import PARTIAL, in_one_move, move_folder_in
from lightning_rarlhf.plain_text import first_line

_SHARDED_HEADER = "meta.pt"
"""file of a sharded checkpoint's folder that holds everything but the shards"""
_UNREADABLE = (zipfile.BadZipFile, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, AttributeError)
"""raised for files that are not torch's own, or not whole"""


class CheckpointError(UserError):
    """A checkpoint that is not whole, not this project's, or not of this run."""


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write `checkpoint` straight to disk (no copy of it in memory); the file before it stays until this one is whole.

    Raises:
        OSError: it could not be written (disk full, no permission, ...).
    """
    folder = (path / _SHARDED_HEADER).is_file()  # which a file cannot replace in one step
    place = path.with_name(f"{path.name}.file{PARTIAL}") if folder else path
    with in_one_move(place) as partial, disk_errors(), partial.open("wb") as file:
        torch.save(checkpoint, file)
    if folder:
        move_folder_in(place, path)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raise what the disk said: torch's writer closes its archive on the way out, and complains of that instead."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def read_checkpoint(
    path: Path, *, map_location: Any = "cpu", header: bool = False, mapped: bool = False
) -> dict[str, Any]:
    """What is in a checkpoint file; tensors and plain values only, nothing is executed.

    Args:
        path: file, or folder of a sharded checkpoint (of which only the header can be read).
        map_location: see `torch.load`.
        header: only its settings are wanted: `mapped`, and checksums are not compared, which is quick.
        mapped: leave the tensors on disk until they are used, as where most of them, the optimizer's, never are.

    Raises:
        CheckpointError: the file is truncated, damaged, or something else than a checkpoint, or the system does not
            let it be read.
    """
    file = path / _SHARDED_HEADER if path.is_dir() else path
    try:
        _require_whole(file, header=header)
        checkpoint = torch.load(file, map_location=map_location, weights_only=True, mmap=header or mapped or None)
    except FileNotFoundError as error:
        lacks = f"{_SHARDED_HEADER} is missing; copy the whole folder, or give another one" if path.is_dir() else ""
        raise CheckpointError(f"checkpoint {path}: {lacks or 'no such file'}") from error
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read: {error.strerror or error}; mend that, or give another one"
        ) from error
    except _UNREADABLE as error:
        reason = first_line(error).partition(". ")[0]
        raise CheckpointError(
            f"checkpoint {path} cannot be read: truncated, damaged, or not a checkpoint ({reason}); "
            "give another one of its folder, or, to start a run afresh, no ckpt_path"
        ) from error
    if not isinstance(checkpoint, dict) or not {"pytorch-lightning_version", "loops"} <= checkpoint.keys():
        raise CheckpointError(
            f"checkpoint {path} was not written by a run of this project: expected a .ckpt file of a run's "
            "checkpoints folder; to start from weights alone give their folder as model.policy.pretrained"
        )
    return checkpoint


def _require_whole(file: Path, *, header: bool) -> None:
    """Compare each record with its checksum, which torch writes and does not look at again."""
    with zipfile.ZipFile(file) as archive:
        damaged = None if header else archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
