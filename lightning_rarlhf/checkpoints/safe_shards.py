"""Reads FSDP2's folders of shards without running what they hold, and notices damage; torch's reader does neither."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from lightning_rarlhf.checkpoints.checkpoint_file import disk_errors
from lightning_rarlhf.errors import UserError

_INDEX = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath"},
}
"""everything that torch puts into a checkpoint's index, by module"""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _INDEX.get(module, ()):
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no part of a checkpoint's index")
        return super().find_class(module, name)


class SafeShardReader(FileSystemReader):
    """Torch's reader of a folder, whose index may hold sizes, types and file names only."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The folder's index.

        Raises:
            UserError: it is damaged, or holds anything else.
        """
        path = Path(self._get_metadata_path(kwargs.get("rank")))
        with path.open("rb") as file:
            metadata = _plain(file, path)
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def _slice_file(self, file: Any, sinfo: Any) -> IO[bytes]:
        """One saved value of a part, once its checksums, which torch writes and does not look at again, are right."""
        file.seek(sinfo.offset)
        part = io.BytesIO(file.read(sinfo.length))
        try:
            with zipfile.ZipFile(part) as archive:
                wrong = archive.testzip()
        except (zipfile.BadZipFile, ValueError, EOFError) as error:
            wrong = str(error)
        if wrong is not None:
            raise UserError(
                f"checkpoint {self.path}: {sinfo.relative_path} is damaged ({wrong}); give another checkpoint"
            )
        part.seek(0)
        return part


class ShardWriter(FileSystemWriter):
    """Torch's writer of a folder, which says why the disk did not take a part."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        with disk_errors():
            return super().write_data(plan, planner)


def _plain(file: IO[bytes], path: Path) -> Metadata:
    try:
        found = _PlainUnpickler(file).load()
    except Exception as error:  # a damaged pickle asks for anything: other types, sizes beyond all memory, ...
        raise UserError(
            f"checkpoint {path.parent}: its {path.name} cannot be read: damaged, or not a checkpoint's ({error}); "
            "go on from another one"
        ) from error
    if not isinstance(found, Metadata):
        raise UserError(f"checkpoint {path.parent}: its {path.name} is no checkpoint's index; go on from another one")
    return found


class SafeLoadPlanner(DefaultLoadPlanner):
    """Torch's planner, which reads what is no tensor (an optimizer's settings) as plain values only."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        plain = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)
