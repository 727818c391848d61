"""Labels that a publisher keeps in a file of their own, beside the texts: ``test_labels.csv`` for ``test.csv``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info

from datamodules.rows import Columns, fingerprint, flatten, number, said
from datamodules.sources import find_file, read_file
from lightning_rarlhf.errors import DataError
from lightning_rarlhf.terminal.plain_text import visible

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIX = "_labels"
"""of the file's name, before its ending"""
_KEY = "id"
_NEVER = "-1"
"""what Kaggle's test_labels.csv says of a text that was never labelled"""


def with_labels_beside(rows: Dataset, file: Path, columns: Sequence[str]) -> Dataset:
    """Add those of `columns` that `rows` lacks, by `id`, from the file ``<stem>_labels`` if there is one.

    The two may be of different kinds: an id is compared by how it is written, 7 = "7". A text whose id the other
    file does not have gets missing values; how many these are is said.

    Args:
        rows: of `file`.
        file: that they were read from.
        columns: labels; one inside another column is named with a dot.

    Raises:
        DataError: there is such a file, but without the column to join by or the labels, it has one id with unlike
            labels, or none of the texts' ids.
    """
    missing = [name for name in columns if name not in flatten(rows).column_names]
    labels_file = find_file(file.parent, f"{file.stem}{SUFFIX}") if missing else None
    if labels_file is None:
        return rows
    return _joined(rows, flatten(read_file(labels_file)), missing, labels_file, file.name)


def require_never_labelled_is_told(no: Collection[str], column: str, source: str) -> None:
    """Refuse −1 that counts as no beside other values of no: Kaggle's mark of a text that was never labelled?

    Where −1 is the only value that means no, or not the only negative number, it is a value like any other.

    Args:
        no: the values of one file's column that count as no, as text.
        column: its name.
        source: names the file.

    Raises:
        DataError: with the two ways to say what is meant.
    """
    others = [value for value in no if said(value) != _NEVER]
    if len(others) < len(no) and others and not any(number(value) < 0 for value in others):
        raise DataError(
            f"{source}: {column} has {_NEVER} beside other values, which in Kaggle's files marks texts that were never "
            f"labelled; set data.unknown_labels to [{_NEVER}] if it does here, to [] if it is a label"
        )


def _joined(rows: Dataset, labels: Dataset, columns: list[str], labels_file: Path, of: str) -> Dataset:
    from datasets import Features

    complaint = f"{labels_file}: cannot be joined with {of}"
    for table, name in ((rows, _KEY), (labels, _KEY), *((labels, name) for name in columns)):
        if name not in table.column_names:
            raise DataError(f"{complaint}, no column {name!r}; both need {_KEY}, and the labels {', '.join(columns)}")
    found: Columns = labels.select_columns(columns)[:]  # at once: a column is read in batches, ten times as slow
    keys: list[Any] = labels.select_columns([_KEY])[:][_KEY]
    numbers = _numbers(keys, found, complaint)
    known = sum(_place(key, numbers) is not None for key in rows[_KEY])
    if not known:
        raise DataError(
            f"{complaint}, none of its ids ({keys[0]!r}, ...) is one of the texts' ({rows[_KEY][0]!r}, ...); "
            "expected the labels of these texts"
        )
    if known < len(rows):
        rank_zero_info(
            visible(f"{labels_file}: has the labels of {known:,} of the {len(rows):,} texts; the others have none")
        )
    return rows.map(
        _add_labels,
        batched=True,
        fn_kwargs={"numbers": numbers, "found": found},
        features=Features({**rows.features, **{name: labels.features[name] for name in columns}}),
        new_fingerprint=fingerprint(rows, "labels_beside", labels._fingerprint, *columns),
        desc="Joining texts with their labels",
    )


def _numbers(keys: Iterable[Any], found: Columns, complaint: str) -> dict[str, int]:
    """Row number of each id that is there."""
    numbers: dict[str, int] = {}
    for row, key in enumerate(keys):
        if key is None:
            continue
        first = numbers.setdefault(_written(key), row)
        if first != row and any(repr(values[first]) != repr(values[row]) for values in found.values()):
            raise DataError(f"{complaint}, it has id {key!r} twice, with unlike labels; keep one")
    return numbers


def _written(key: Any) -> str:
    """An id as text; a whole number that went through floats (where others are missing) without its point.

    Text stays as it is: Kaggle's ids are hexadecimal, and 0000000000000e12 is no number.
    """
    return str(int(key)) if isinstance(key, float) and key.is_integer() else str(key)


def _place(key: Any, numbers: Mapping[str, int]) -> int | None:
    """Row number of an id; None = it is not there, or there is no id."""
    return None if key is None else numbers.get(_written(key))


def _add_labels(batch: Columns, *, numbers: dict[str, int], found: Columns) -> Columns:
    places = [_place(key, numbers) for key in batch[_KEY]]
    return {name: [None if place is None else values[place] for place in places] for name, values in found.items()}
