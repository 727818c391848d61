"""Folders as the hub has them, and as `datasets` writes them: shards, a dataset card, the files of ``save_to_disk``."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from lightning_rarlhf.errors import DataError

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=[.])")
_ENDINGS = {".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow"}
"""of data, packed or not"""
_DEPTH = 3
"""folders down to a shard: ``data/train-00000-of-00001.parquet``, ``default/train/0000.parquet``"""
_SPLITS, _STATE = "dataset_dict.json", "state.json"
_ABOUT = (_SPLITS, _STATE, "config.json", "dataset_info.json", "dataset_infos.json")
"""what lies beside data and tells of them; `datasets` passes over these, too"""


def is_hub_layout(folder: Path) -> bool:
    """Whether `folder` is surely no folder of plain files: a card lists what is in it, or there are shards."""
    return (
        any((folder / name).is_file() for name in (_SPLITS, _STATE))
        or _card_lists_files(folder)
        or has_shards(folder)
        or any(_SHARD.search(path.name) for path in _below(folder, _DEPTH))
    )


def has_splits_below(folder: Path, splits: Collection[str]) -> bool:
    """Whether data files or folders below `folder` are called after one of `splits`."""
    return any(
        part == name or part.startswith((f"{name}-", f"{name}."))
        for path in _below(folder, _DEPTH)
        if _ENDINGS & set(path.suffixes) and not is_about_data(path)
        for part in path.relative_to(folder).parts
        for name in splits
    )


def has_shards(folder: Path) -> bool:
    """Whether files in `folder` itself are numbered parts of a split."""
    return any(_SHARD.search(path.name) for path in folder.iterdir())


def is_about_data(path: Path) -> bool:
    """Whether the file tells of the data beside it, and holds none."""
    return path.name in _ABOUT


def saved_files(folder: Path) -> dict[str, list[Path]] | None:
    """Files of each split of what ``save_to_disk`` wrote; None = it did not write this folder.

    They are listed in ``state.json``: others, as what `datasets` computed later, may lie beside them. A table without
    splits is called train.

    Raises:
        OSError, ValueError, KeyError: a list cannot be read.
    """
    splits = folder / _SPLITS
    if splits.is_file():
        names = json.loads(splits.read_text(encoding="utf-8"))["splits"]
        return {name: _listed(folder.absolute() / name) for name in names}
    return {"train": _listed(folder.absolute())} if (folder / _STATE).is_file() else None


def require_all_shards(files: Mapping[str, Iterable[str | Path]], source: str) -> None:
    """Refuse a split of which a numbered part is missing: it would be read as if it were whole.

    Raises:
        DataError: naming the part.
    """
    for split, listed in files.items():
        names = {Path(file).as_posix() for file in listed}
        for name in sorted(names):
            shard = _SHARD.search(name)
            parts = [f"-{number:05d}-of-{shard[2]}" for number in range(int(shard[2]))] if shard else []
            for part in parts:
                missing = _SHARD.sub(part, name)
                if missing not in names:
                    raise DataError(
                        f"{source} ({split}): {Path(missing).name} is missing, expected {len(parts)} such files; copy "
                        "the dataset's folder whole, or give a single file by its path"
                    )


def _listed(folder: Path) -> list[Path]:
    state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    return [folder / file["filename"] for file in state["_data_files"]]


def _card_lists_files(folder: Path) -> bool:
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    card = folder / "README.md"
    try:
        return bool(card.is_file() and (metadata_load(card) or {}).get("configs"))
    except (ValueError, YAMLError):  # a README of another kind
        return False


def _below(folder: Path, depth: int) -> Iterator[Path]:
    """Files in the folders below `folder`, hidden ones left out."""
    for entry in sorted(folder.iterdir()):
        if depth and entry.is_dir() and not entry.name.startswith("."):
            yield from (path for path in entry.iterdir() if path.is_file() and not path.name.startswith("."))
            yield from _below(entry, depth - 1)
