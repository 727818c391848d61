"""Training, validation and test rows of any data: a file, a folder of files, a hub dataset or a local copy of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from datamodules.hub_layout import has_shards, has_splits_below, is_about_data, is_hub_layout
from datamodules.labels_beside import SUFFIX, with_labels_beside
from datamodules.sources import find_file, is_table, read_file, read_hub, read_hub_folder
from lightning_rarlhf.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


class SplitNames(NamedTuple):
    """What the splits are called at their source; one without a name is not read."""

    train: str = "train"
    test: str = "test"
    val: str | None = None
    settings: str = ""
    """those that name them, for errors"""

    @property
    def given(self) -> dict[str, str]:
        """Names by split."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {split: name for split, name in named.items() if name is not None}


def read_splits(
    path: str | None,
    hub_id: str | None,
    names: SplitNames,
    *,
    source: str,
    revision: str | None = None,
    config: str | None = None,
    labels: Sequence[str] = (),
    both: bool = False,
) -> dict[str, Dataset]:
    """Rows by split; `all` = the only file there is, or the training file of a source without a test file.

    Args:
        path: file or folder; None = the hub.
        hub_id: dataset on the hub, read if there is no path.
        names: what the splits `train`, `val` and `test` are called there.
        source: names the data in errors.
        revision: of the hub dataset.
        config: configuration of a hub dataset that has several, or of a local copy of one.
        labels: columns that a file may lack if they stand in another one beside it (`labels_beside`).
        both: training and test rows must be there, as their publisher divided them.

    Raises:
        DataError: nothing there for training or test, or labels that cannot be joined.
    """
    if path is None:
        splits = _of_hub(read_hub(str(hub_id), revision, config), names, source)
    else:
        splits = _read_path(path, names, source, config, labels)
    if both and not {"train", "test"} <= splits.keys():
        there = " and ".join(repr(names.given[split]) if split in names.given else "one file" for split in splits)
        raise DataError(
            f"{source}: got {there}, expected {names.train!r} and {names.test!r}: two files of rows (.csv, .jsonl, "
            ".parquet, ...) or a copy of the hub's folder; give a folder that has both"
        )
    if "train" in splits and "test" not in splits:
        splits["all"] = splits.pop("train")
    return splits


def require_one_source(path: str | None, hub_id: str | None) -> None:
    """Refuse data from nowhere, and from two places.

    Raises:
        DataError: neither or both are given.
    """
    if (path is None) == (hub_id is None):
        raise DataError("data come from a file or folder (data.path) or from a hub dataset (data.hub_id): give one")


def _read_path(
    path: str, names: SplitNames, source: str, config: str | None, labels: Sequence[str]
) -> dict[str, Dataset]:
    if not path.strip():
        raise DataError("data.path is empty; expected a file or a folder of data")
    folder = Path(path).expanduser()
    files = _split_files(folder, names, source) if folder.is_dir() else {"all": folder}
    if files is None:
        return _of_hub(read_hub_folder(folder, config), names, source)
    if config is not None:
        raise DataError(f"{source}: plain files have no configuration, got data.hub_config {config!r}; leave it out")
    return {split: with_labels_beside(read_file(file), file, labels) for split, file in files.items()}


def _of_hub(hub: Mapping[str, Dataset], names: SplitNames, source: str) -> dict[str, Dataset]:
    splits = {split: hub[name] for split, name in names.given.items() if name in hub}
    if not splits and len(hub) == 1:
        return {"all": next(iter(hub.values()))}
    return splits if splits.keys() & {"train", "test"} else _no_split(hub, names, source)


def _split_files(folder: Path, names: SplitNames, source: str) -> dict[str, Path] | None:
    """The plain files of a folder; None = it is laid out as on the hub. A file per split, which is both, is plain."""
    found = {split: find_file(folder, name) for split, name in names.given.items()}
    files = {split: file for split, file in found.items() if file is not None}
    if files.keys() & {"train", "test"} and not has_shards(folder):
        return files
    if is_hub_layout(folder):
        return None
    readable = [entry for entry in sorted(folder.iterdir()) if is_table(entry) and not is_about_data(entry)]
    beside = {f"{entry.stem}{SUFFIX}" for entry in readable}
    texts = [entry for entry in readable if entry.stem not in beside]
    if not files and len(texts) == 1:
        return {"all": texts[0]}
    if not files and not texts and has_splits_below(folder, names.given.values()):
        return None
    # where nothing is readable, what there is (train.csv.zip, say) tells what to do
    return _no_split([entry.name for entry in readable or sorted(folder.iterdir())[:10]], names, source)


def _no_split(found: Iterable[str], names: SplitNames, source: str) -> NoReturn:
    settings = f" ({names.settings})" if names.settings else ""
    raise DataError(
        f"{source}: no data for training or test: expected {names.train!r} or {names.test!r}{settings}, "
        f"found {', '.join(found) or 'no data file'}"
    )
