"""A checkpoint as a folder with a part from each process: written whole or not at all, refused by name if it is not."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_rarlhf.checkpoints.checkpoint_file import read_checkpoint, read_without_optimizers, write_checkpoint
from lightning_rarlhf.checkpoints.trained_weights import require_trained
from lightning_rarlhf.distributed import gather_items, rank, world_size
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.one_move import PARTIAL, discard, move_folder_in, recover_folder
from lightning_rarlhf.records.results_file import file_sha256
from lightning_rarlhf.terminal.plain_text import first_line

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata
    from torch.optim import Optimizer

_WEIGHTS = "state_dict"
_HEADER = "meta.pt"
"""Lightning's name for what is neither weights nor optimizer state"""
_INDEX = ".metadata"
"""torch's name for what says which value lies where; it has no checksum of its own, as the parts have"""
_CHECKSUM = "index_sha256"
"""the header's key"""


class SharedWriteError(OSError):
    """A process could not write its part; every process raises this, so that none waits for another."""


def save_shards(folder: Path, checkpoint: dict[str, Any]) -> None:
    """Write `checkpoint` from all processes together; the folder before it stays until this one is whole.

    Args:
        folder: the same on all processes, on a disk that all of them see.
        checkpoint: as Lightning makes it, its tensors in parts; weights and optimizer states are taken out of it.

    Raises:
        SharedWriteError: on every process, if one of them could not write; nothing is left of the new folder.
    """
    partial = folder.with_name(folder.name + PARTIAL)
    parts = {_WEIGHTS: checkpoint.pop("state_dict")}
    parts |= {f"optimizer_{number}": state for number, state in enumerate(checkpoint.pop("optimizer_states", []))}
    try:
        _on_process_0(lambda: _make_room(partial, folder))
        _write_parts(partial, parts)
        # its folder's list of names reaches the disk with it
        _on_process_0(
            lambda: write_checkpoint(checkpoint | {_CHECKSUM: file_sha256(partial / _INDEX)}, partial / _HEADER)
        )
        _on_process_0(lambda: move_folder_in(partial, folder))
    except BaseException:
        if rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def load_shards(
    folder: Path, module: nn.Module, optimizers: Sequence[Optimizer], *, trains_part: bool
) -> dict[str, Any]:
    """Load a folder that any number of processes wrote into a sharded module.

    Args:
        folder: of `save_shards`.
        module: holds the sharded network.
        optimizers: over its parameters.
        trains_part: of the policy's network, so that its frozen weights are not to be there.

    Returns:
        What of the checkpoint is neither weights nor optimizer state.

    Raises:
        UserError: a part is missing or damaged, or the weights are not those of `module`.
    """
    from torch.distributed.checkpoint.state_dict import (
        get_model_state_dict,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    header = read_checkpoint(folder)
    saved = _saved_weights(_index(folder, header.pop(_CHECKSUM, None)))
    require_trained(module, saved, trains_part=trains_part)
    weights = {name: value for name, value in get_model_state_dict(module).items() if name in saved}
    _read_parts(folder, {_WEIGHTS: weights})
    module.load_state_dict(weights, strict=not trains_part)
    for number, optimizer in enumerate(optimizers):
        state = {f"optimizer_{number}": get_optimizer_state_dict(module, optimizer)}
        _read_parts(folder, state)
        set_optimizer_state_dict(module, optimizer, optim_state_dict=state[f"optimizer_{number}"])
    return header


def whole_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint with its weights, whatever wrote it, for this process alone.

    Args:
        path: a file, whose tensors stay on disk until they are used, or a folder of `save_shards`, whose weights are
            put together in this process's CPU memory.

    Returns:
        All but the optimizers' states, which are not read.

    Raises:
        UserError: a part is missing or damaged, or it is no checkpoint.
    """
    if not path.is_dir():
        return read_without_optimizers(path)
    header = read_checkpoint(path)
    saved = _saved_weights(_index(path, header.pop(_CHECKSUM, None)))
    weights = {name: torch.empty_like(value, device="cpu") for name, value in saved.items()}
    _read_parts(path, {_WEIGHTS: weights}, alone=True)
    return header | {_WEIGHTS: weights}


# writing


def _make_room(partial: Path, folder: Path) -> None:
    recover_folder(folder)
    discard(partial)
    partial.mkdir(parents=True)


def _write_parts(folder: Path, parts: dict[str, Any]) -> None:
    """Let torch write each process's part; it tells all processes of a failure on one."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save

    from lightning_rarlhf.checkpoints.safe_shards import ShardWriter

    try:
        save(parts, storage_writer=ShardWriter(folder))
    except CheckpointException as failure:
        process, (error, _) = min(failure.failures.items())
        if not isinstance(error, OSError | RuntimeError):
            raise
        raise SharedWriteError(_said(process, error)) from failure


def _on_process_0(action: Callable[[], None]) -> None:
    """Act on process 0 while the others wait; a failure there, of the disk or of the program, is one of all."""
    problem, own = None, None
    if rank() == 0:
        try:
            action()
        except Exception as error:
            problem, own = (isinstance(error, OSError | RuntimeError), _said(0, error)), error
    (found, *_) = gather_items([problem])
    if found is None:
        return
    of_disk, said = found
    if of_disk:
        raise SharedWriteError(said) from own
    raise own or RuntimeError(said)


def _said(process: int, error: BaseException) -> str:
    reason = getattr(error, "strerror", None) or first_line(error)
    return f"{reason} (on process {process} of {world_size()})"


# reading


def _index(folder: Path, checksum: str | None) -> Metadata:
    """What the folder should hold; refuses it if a part is missing or too short.

    Args:
        folder: of `save_shards`.
        checksum: of the index; None in folders that were written before it was kept.
    """
    from lightning_rarlhf.checkpoints.safe_shards import SafeShardReader

    try:
        if checksum is not None and file_sha256(folder / _INDEX) != checksum:
            raise UserError(f"checkpoint {folder}: .metadata is damaged (wrong checksum); give another checkpoint")
        metadata = SafeShardReader(folder).read_metadata()
    except FileNotFoundError as error:
        raise UserError(f"checkpoint {folder}: .metadata is missing; give another checkpoint") from error
    try:
        ends = _ends(metadata)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"checkpoint {folder}: .metadata is damaged ({error}); give another checkpoint") from error
    missing = [name for name in sorted(ends) if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"checkpoint {folder}: {len(missing)} of its {len(ends)} parts are missing ({', '.join(missing[:3])}); "
            "copy the parts of every process into one folder, or give another checkpoint"
        )
    for name, end in sorted(ends.items()):
        size = os.path.getsize(folder / name)
        if size < end:
            raise UserError(
                f"checkpoint {folder}: {name} has {size} of its {end} bytes: truncated; give another checkpoint"
            )
    return metadata


def _ends(metadata: Metadata) -> dict[str, int]:
    """Bytes that each part should have at least, by its name."""
    ends: dict[str, int] = {}
    for entry in (metadata.storage_data or {}).values():
        name, end = entry.relative_path, entry.offset + entry.length
        if not isinstance(name, str) or not isinstance(end, int):
            raise TypeError(f"a part is named {name!r} and ends at {end!r}")
        ends[name] = max(ends.get(name, 0), end)
    return ends


def _saved_weights(metadata: Metadata) -> dict[str, Tensor]:
    """Names, shapes and types of the weights; tensors without contents."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    prefix = f"{_WEIGHTS}."
    return {
        name.removeprefix(prefix): torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for name, entry in metadata.state_dict_metadata.items()
        if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }


def _read_parts(folder: Path, state: dict[str, Any], *, alone: bool = False) -> None:
    """Fill `state`'s tensors from the folder.

    Args:
        folder: of `save_shards`.
        state: nested, with the names under which it was saved.
        alone: this process reads all of it, without the others.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    from lightning_rarlhf.checkpoints.safe_shards import SafeLoadPlanner, SafeShardReader

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load(state, storage_reader=SafeShardReader(folder), planner=SafeLoadPlanner(), no_dist=alone)
    except CheckpointException as failure:
        process, (error, _) = min(failure.failures.items())
        if isinstance(error, UserError):
            raise UserError(str(error)) from failure
        raise UserError(
            f"checkpoint {folder} cannot be read: {_said(process, error)}; it is damaged, or of another policy or "
            "optimizer: give another one"
        ) from failure
