"""Texts that a model trains on and is measured on: what is measured on them says nothing of new texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_info

from lightning_rarlhf.terminal.plain_text import visible

if TYPE_CHECKING:
    from datasets import Dataset

_AT_ONCE = 10_000


def tell_overlap(train: Dataset, measured: Dataset, columns: Sequence[str], source: str, split: str) -> None:
    """Say how many rows of `measured` are training rows too, to the letter; nothing where none is.

    They stay: a publisher's test set is to be measured as it was published.

    Args:
        train: training rows.
        measured: rows of `split`.
        columns: those that make a row's text.
        source: names the data.
        split: val or test.
    """
    trained = set(_hashes(train, columns))
    count = sum(each in trained for each in _hashes(measured, columns))
    if count:
        said = f"{source}: {count:,} of {len(measured):,} {split} texts are training texts, too"
        rank_zero_info(visible(f"{said}; what is measured on these says nothing of new texts"))


def _hashes(rows: Dataset, columns: Sequence[str]) -> Iterator[int]:
    """Of each row's text; 64 bits, so that the texts of a large dataset need not all be in memory."""
    for part in rows.select_columns(list(columns)).iter(batch_size=_AT_ONCE):
        yield from map(hash, zip(*(map(str, part[name]) for name in columns), strict=True))
