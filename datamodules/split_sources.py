"""Training, validation and test rows of anyone's own data: a file, a folder of files, or a hub dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from datamodules.labels_beside import SUFFIX, with_labels_beside
from datamodules.sources import find_file, is_data_file, read_file, read_hub
from lightning_rarlhf.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


def read_splits(
    path: str | None,
    hub_id: str | None,
    names: Mapping[str, str],
    *,
    source: str,
    revision: str | None = None,
    config: str | None = None,
    labels: Sequence[str] = (),
) -> dict[str, Dataset]:
    """Rows by split; `all` = the only file there is, or the training file of a source without a test file.

    Args:
        path: file or folder; None = the hub.
        hub_id: dataset on the hub, if there is no path.
        names: what the splits `train`, `val` and `test` are called there.
        source: names the data in errors.
        revision: of the hub dataset.
        config: configuration of a hub dataset that has several.
        labels: columns that a file may lack if they stand in another one beside it (`labels_beside`).

    Raises:
        DataError: neither or both of path and hub_id, nothing there for training or test, or labels that cannot be
            joined.
    """
    if (path is None) == (hub_id is None):
        raise DataError("data come from a file or folder (data.path) or from a hub dataset (data.hub_id): give one")
    if path is None:
        splits = _read_hub(str(hub_id), revision, config, names, source)
    else:
        folder = Path(path).expanduser()
        files = _split_files(folder, names, source) if folder.is_dir() else {"all": folder}
        splits = {split: with_labels_beside(read_file(file), file, labels) for split, file in files.items()}
    if "train" in splits and "test" not in splits:
        splits["all"] = splits.pop("train")
    return splits


def _read_hub(
    hub_id: str, revision: str | None, config: str | None, names: Mapping[str, str], source: str
) -> dict[str, Dataset]:
    hub = read_hub(hub_id, revision, config)
    splits = {split: hub[name] for split, name in names.items() if name in hub}
    if not splits and len(hub) == 1:
        return {"all": next(iter(hub.values()))}
    return splits if splits.keys() & {"train", "test"} else _no_split(hub, names, source)


def _split_files(folder: Path, names: Mapping[str, str], source: str) -> dict[str, Path]:
    found = {split: find_file(folder, name) for split, name in names.items()}
    files = {split: file for split, file in found.items() if file is not None}
    readable = [entry for entry in sorted(folder.iterdir()) if is_data_file(entry)]
    beside = {f"{entry.stem}{SUFFIX}" for entry in readable}
    texts = [entry for entry in readable if entry.stem not in beside]
    if not files and len(texts) == 1:
        return {"all": texts[0]}
    if files.keys() & {"train", "test"}:
        return files
    # where nothing is readable, what there is (train.csv.zip, say) tells what to do
    return _no_split([entry.name for entry in readable or sorted(folder.iterdir())[:10]], names, source)


def _no_split(found: Iterable[str], names: Mapping[str, str], source: str) -> NoReturn:
    wanted = " or ".join(repr(names[split]) for split in ("train", "test"))
    raise DataError(
        f"{source}: no data for training or test: expected {wanted} (train_split, test_split), "
        f"found {', '.join(found) or 'no data file'}"
    )
