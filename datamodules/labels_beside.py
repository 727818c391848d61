"""Labels that a publisher keeps in a file of their own, beside the texts: ``test_labels.csv`` for ``test.csv``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.rows import Columns, fingerprint
from datamodules.sources import find_file, read_file
from lightning_rarlhf.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


def with_labels_beside(rows: Dataset, path: str, split: str, columns: Sequence[str]) -> Dataset:
    """Add those of `columns` that `rows` lacks, by `id`, from the file ``<split>_labels`` if there is one.

    A row that the file does not have gets missing values.

    Args:
        rows: of `split`.
        path: the folder that they were read from; one that is no folder has no such file.
        split: name of their file, without its ending.
        columns: labels.

    Raises:
        DataError: there is such a file, but without the column to join by, or the labels.
    """
    folder = Path(path).expanduser()
    missing = [name for name in columns if name not in rows.column_names]
    file = find_file(folder, f"{split}_labels") if missing and folder.is_dir() else None
    if file is None:
        return rows
    return _joined(rows, read_file(file), missing, f"{file}: cannot be joined with the texts of {split!r}")


def _joined(rows: Dataset, labels: Dataset, columns: list[str], complaint: str) -> Dataset:
    from datasets import Features

    for table, name in ((rows, "id"), (labels, "id"), *((labels, name) for name in columns)):
        if name not in table.column_names:
            raise DataError(f"{complaint}, no column {name!r}; both need id, and the labels {', '.join(columns)}")
    numbers = {row: number for number, row in enumerate(labels["id"])}
    found = {name: list(labels[name]) for name in columns}
    return rows.map(
        _add_labels,
        batched=True,
        fn_kwargs={"numbers": numbers, "found": found},
        features=Features({**rows.features, **{name: labels.features[name] for name in columns}}),
        new_fingerprint=fingerprint(rows, "labels_beside", labels._fingerprint, *columns),
        desc="Joining texts with their labels",
    )


def _add_labels(batch: Columns, *, numbers: dict[object, int], found: Columns) -> Columns:
    places = [numbers.get(row) for row in batch["id"]]
    return {name: [None if place is None else values[place] for place in places] for name, values in found.items()}
