"""The checkpoint on disk: written in one move, read without executing anything, refused by name if it is not whole."""

from __future__ import annotations

import pickle
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from lightning_rarlhf.errors import UserError
from lightning_rarlhf.one_move import PARTIAL, in_one_move, move_folder_in
from lightning_rarlhf.terminal.plain_text import first_line

_SHARDED_HEADER = "meta.pt"
"""file of a sharded checkpoint's folder that holds everything but the shards"""
_UNREADABLE = (zipfile.BadZipFile, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, AttributeError)
"""raised for files that are not torch's own, or not whole"""
_CHUNK = 2**20
"""bytes that are read at a time"""


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
    """Raise what the disk said: torch's writer closes its archive on the way out, and complains of that instead.

    Raises:
        OSError: the one behind the writer's complaint.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def read_checkpoint(path: Path, *, map_location: Any = "cpu", header: bool = False) -> dict[str, Any]:
    """What is in a checkpoint file; tensors and plain values only, nothing is executed.

    Args:
        path: file, or folder of a sharded checkpoint (of which only the header can be read).
        map_location: see `torch.load`.
        header: only its settings are wanted: tensors stay on disk until they are used, and checksums are not compared,
            which is quick.

    Raises:
        CheckpointError: the file is truncated, damaged, or something else than a checkpoint, or the system does not
            let it be read.
    """
    file = path / _SHARDED_HEADER if path.is_dir() else path
    with _refused_by_name(path):
        with zipfile.ZipFile(file) as archive:
            if not header:
                _require_whole(archive, archive.infolist())
        checkpoint = torch.load(file, map_location=map_location, weights_only=True, mmap=header or None)
    return _of_this_project(checkpoint, path)


def read_without_optimizers(path: Path) -> dict[str, Any]:
    """What is in a checkpoint file but the optimizers' states, which are most of it and are not read.

    The rest is read from the disk once: tensors are mapped, not copied, and compared with their checksums there.

    Raises:
        CheckpointError: as `read_checkpoint`, of what is read.
    """
    with _refused_by_name(path):
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            _require_whole(archive, [record for record in records if not _is_of_a_tensor(record)])
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if isinstance(checkpoint, dict):
            checkpoint.pop("optimizer_states", None)
        _require_whole_tensors(checkpoint, records)
    return _of_this_project(checkpoint, path)


@contextmanager
def _refused_by_name(path: Path) -> Iterator[None]:
    """Say in one line why a checkpoint cannot be read."""
    try:
        yield
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


def _of_this_project(checkpoint: Any, path: Path) -> dict[str, Any]:
    if not isinstance(checkpoint, dict) or not {"pytorch-lightning_version", "loops"} <= checkpoint.keys():
        raise CheckpointError(
            f"checkpoint {path} was not written by a run of this project: expected a .ckpt file of a run's "
            "checkpoints folder; to start from weights alone give their folder as model.policy.pretrained"
        )
    return checkpoint


def _require_whole(archive: zipfile.ZipFile, records: Sequence[zipfile.ZipInfo]) -> None:
    """Compare each record with its checksum, which torch writes and does not look at again."""
    for record in records:
        try:
            with archive.open(record) as content:
                while content.read(_CHUNK):
                    pass
        except zipfile.BadZipFile as error:  # at its end
            raise zipfile.BadZipFile(f"wrong checksum of {record.filename}") from error


def _is_of_a_tensor(record: zipfile.ZipInfo) -> bool:
    """Whether torch keeps a tensor's content in it: NAME/data/0, NAME/data/1, ..."""
    return PurePosixPath(record.filename).parent.name == "data"


def _require_whole_tensors(checkpoint: Any, records: Sequence[zipfile.ZipInfo]) -> None:
    """See that each tensor's content is that of a record: its size and checksum are among theirs."""
    written = {(record.file_size, record.CRC) for record in records if _is_of_a_tensor(record)}
    seen: set[int] = set()
    for name, tensor in _tensors(checkpoint):
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen:  # tied weights
            continue
        seen.add(storage.data_ptr())
        content = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        if (len(content), zlib.crc32(content.data)) not in written:
            raise zipfile.BadZipFile(f"wrong checksum of {name}")


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dictionaries and lists, with its dotted name."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping | list | tuple):
        for key, each in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _tensors(each, f"{name}.{key}" if name else str(key))
