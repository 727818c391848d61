"""Files that appear whole or not at all, also when the machine loses power right after."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_rarlhf.errors import UserError, WriteError

PARTIAL = ".partial"
"""ending of what is being written"""
_REPLACED = ".replaced"
"""ending of a folder whose successor is moving in; folders cannot be exchanged in one step"""


@contextmanager
def in_one_move(path: Path) -> Iterator[Path]:
    """Give a file beside `path` to write; it takes the place of `path` when the body ends, or is gone if that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        flush_to_disk(partial)
        os.replace(partial, path)
        flush_to_disk(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def or_say_why(path: Path) -> Iterator[None]:
    """Around either of the two: a disk that is full, a missing permission and the like end in one line.

    Raises:
        WriteError: `path` could not be written, and why.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # safetensors and tokenizers hand on what the system said in words only, the latter as a bare Exception
        if not isinstance(error, OSError) and "(os error " not in str(error):
            raise
        reason = getattr(error, "strerror", None) or error
        raise WriteError(f"{path}: it could not be written ({reason}); nothing was replaced") from error


@contextmanager
def folder_in_one_move(path: Path) -> Iterator[Path]:
    """As `in_one_move`, of an empty folder to fill; if killed while it moves in, see `recover_folder`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        partial = Path(scratch) / path.name
        partial.mkdir()
        yield partial
        for made in (*partial.rglob("*"), partial):
            flush_to_disk(made)
        move_folder_in(partial, path)


def flush_to_disk(path: Path) -> None:
    """Wait until the file's content (the folder's list of names) has reached the disk.

    Raises:
        OSError: naming the file; a folder that the file system cannot wait for is passed over.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir():  # some network file systems have no such thing for folders
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


def move_folder_in(partial: Path, path: Path) -> None:
    """Let the finished folder `partial` take the place of the folder `path`; if killed, see `recover_folder`."""
    replaced = path.with_name(path.name + _REPLACED)
    discard(replaced)
    try:
        if path.exists():
            os.rename(path, replaced)
        os.rename(partial, path)
    except BaseException:
        recover_folder(path)
        raise
    flush_to_disk(path.parent)
    discard(replaced)


def recover_folder(path: Path) -> None:
    """Put back what `move_folder_in` had moved away, if it was killed before the successor was in place.

    Several processes may call it at the same time: one of them does it.
    """
    replaced = path.with_name(path.name + _REPLACED)
    if replaced.exists() and not path.exists():
        try:
            os.rename(replaced, path)
        except FileNotFoundError:
            if not path.exists():
                raise


def discard(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
