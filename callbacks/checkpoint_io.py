"""Lightning's access to checkpoint files, made safe: see `lightning_rarlhf.checkpoints.checkpoint_file`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lightning_rarlhf.checkpoints.checkpoint_file import read_checkpoint, write_checkpoint


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes in one move on the disk that the checkpoint belongs to, and reads tensors and plain values only.

    Lightning's own writes to the machine's temporary folder first: that may be another disk, and a small one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._failures: list[OSError] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            write_checkpoint(checkpoint, Path(path))
        except OSError as error:
            if self._failures is None:
                raise
            self._failures.append(error)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(Path(path), map_location=map_location)

    @contextmanager
    def collected_failures(self) -> Iterator[list[OSError]]:
        """Note write errors instead of raising: other processes wait for this one at the end of the save."""
        self._failures = []
        try:
            yield self._failures
        finally:
            self._failures = None
