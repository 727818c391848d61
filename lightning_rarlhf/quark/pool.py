"""The growing pool of (prompt, response, score) on disk: append-only, exact to resume, small in memory.

Two files of fixed-size items. ``tokens.i32`` holds the tokens of every prompt and response, one after the other;
``index.bin`` holds 24 bytes a response: its score, and where its tokens are. Tokens are written first, so whatever the
index names is there. What a crash leaves beyond the last checkpoint is cut off when the run goes on.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_rarlhf.errors import UserError

_RECORD = np.dtype([("score", "<f8"), ("start", "<i8"), ("prompt", "<i4"), ("response", "<i4")])
_TOKEN = np.dtype("<i4")
_BLOCK = 1 << 20


class QuarkPool:
    """Responses and their scores, in the order in which they came; only the index is in memory.

    Args:
        folder: of the two files; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._records: NDArray[Any] = np.empty(0, dtype=_RECORD)
        self._tokens = 0
        self._crcs = (0, 0)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def scores(self) -> NDArray[np.float64]:
        """[N], of all responses."""
        scores: NDArray[np.float64] = self._records["score"]
        return scores

    def start(self, *, replace: bool = False) -> None:
        """Begin with nothing.

        Args:
            replace: empty a pool that holds responses.

        Raises:
            UserError: it holds responses, and is not to be emptied.
        """
        if not replace and self._data.is_file() and self._data.stat().st_size:
            held = self._index.stat().st_size // _RECORD.itemsize if self._index.is_file() else 0
            raise UserError(
                f"{self.folder}: holds another run's {held} responses; go on with --ckpt_path last, or choose another "
                "--model.quark.pool"
            )
        self.resume({"responses": 0, "tokens": 0, "crc_tokens": 0, "crc_index": 0})

    def resume(self, state: dict[str, int]) -> None:
        """Go back to what `state_dict` said: cut off what came after it.

        Raises:
            UserError: the pool holds less than that, or something else.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        sizes = {self._index: state["responses"] * _RECORD.itemsize, self._data: state["tokens"] * _TOKEN.itemsize}
        for path, size in sizes.items():
            path.touch()
            if path.stat().st_size < size:
                raise UserError(
                    f"{path}: the pool has {path.stat().st_size} bytes, the checkpoint was written with {size}; go on "
                    "in the folder of the run that wrote it, or start a new run"
                )
        crcs = _crc_of(self._data, sizes[self._data]), _crc_of(self._index, sizes[self._index])
        if crcs != (state["crc_tokens"], state["crc_index"]):
            raise UserError(
                f"{self.folder}: is not the pool that the checkpoint was written with; go on in the folder of the run "
                "that wrote it, or start a new run"
            )
        for path, size in sizes.items():
            os.truncate(path, size)
        self._records = np.fromfile(self._index, dtype=_RECORD)
        self._tokens, self._crcs = state["tokens"], crcs

    def append(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], scores: Sequence[float]
    ) -> None:
        """Add responses: all of them, or none.

        Args:
            prompts: token ids, without padding and without a reward token.
            responses: token ids, without padding.
            scores: one per response.

        Raises:
            UserError: the disk is full or fails; the pool is as it was.
        """
        lengths = np.array([[len(a), len(b)] for a, b in zip(prompts, responses, strict=True)], dtype=np.int64)
        records = np.empty(len(scores), dtype=_RECORD)
        records["score"], records["prompt"], records["response"] = scores, lengths[:, 0], lengths[:, 1]
        ends = self._tokens + lengths.sum(axis=1).cumsum()
        records["start"] = ends - lengths.sum(axis=1)
        flat = [token for a, b in zip(prompts, responses, strict=True) for token in (*a, *b)]
        added = np.array(flat, dtype=_TOKEN).tobytes(), records.tobytes()
        try:
            _write(self._data, added[0])
            _write(self._index, added[1])
        except OSError as error:
            self._cut_back()
            raise UserError(
                f"{self.folder}: the pool cannot grow ({error.strerror}); its {len(self)} responses are intact: make "
                "room, then go on with --ckpt_path last, or begin anew if the run has no checkpoint yet"
            ) from error
        self._records = np.concatenate([self._records, records])
        self._tokens += len(flat)
        self._crcs = zlib.crc32(added[0], self._crcs[0]), zlib.crc32(added[1], self._crcs[1])

    def read(self, rows: Sequence[int] | NDArray[np.int64]) -> list[tuple[list[int], list[int]]]:
        """Prompt and response tokens of some responses, by their numbers."""
        with self._data.open("rb") as file:
            return [_split(file.fileno(), self._records[row]) for row in rows]

    def state_dict(self) -> dict[str, int]:
        """How long the pool is and its checksums; what it names has been handed to the disk by `append`."""
        return {
            "responses": len(self),
            "tokens": self._tokens,
            "crc_tokens": self._crcs[0],
            "crc_index": self._crcs[1],
        }

    @property
    def _index(self) -> Path:
        return self.folder / "index.bin"

    @property
    def _data(self) -> Path:
        return self.folder / "tokens.i32"

    def _cut_back(self) -> None:
        """Take off what a failed append left."""
        os.truncate(self._data, self._tokens * _TOKEN.itemsize)
        os.truncate(self._index, len(self) * _RECORD.itemsize)


def _write(path: Path, content: bytes) -> None:
    """Append, and have the disk take it now: a full one is to be found out here."""
    with path.open("ab", buffering=0) as file:
        written = 0
        while written < len(content):
            written += file.write(content[written:])
        os.fsync(file.fileno())


def _crc_of(path: Path, size: int) -> int:
    crc = 0
    with path.open("rb") as file:
        while size:
            block = file.read(min(size, _BLOCK))
            crc, size = zlib.crc32(block, crc), size - len(block)
    return crc


def _split(file: int, record: Any) -> tuple[list[int], list[int]]:
    count = int(record["prompt"]) + int(record["response"])
    tokens = np.frombuffer(
        os.pread(file, count * _TOKEN.itemsize, int(record["start"]) * _TOKEN.itemsize), dtype=_TOKEN
    ).tolist()
    return tokens[: record["prompt"]], tokens[record["prompt"] :]
