"""From a publisher's columns to the project's: text, class label, score and row number, filtered and cached.

Every step names its own fingerprint from its input's and its parameters. `datasets` would otherwise hash the live
objects, which changes between processes for tokenizers, and does not change with a function that is imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info

from lightning_rarlhf.errors import DataError
from lightning_rarlhf.terminal.plain_text import visible

if TYPE_CHECKING:
    from datasets import Dataset

Columns = dict[str, list[Any]]

_SHOWN_VALUES, _SHOWN_CHARACTERS = 10, 24
_VERSION = "1"  # raise it when a step's output changes: caches of earlier versions are then left alone


@dataclass(frozen=True, kw_only=True)
class ValueRule:
    """Tells the class by a column's value; numbers, strings and booleans compare by what they say: 1 = "1" = 1.0."""

    column: str
    wanted: str
    """value of the wanted class"""
    unwanted: str | None = None
    """value of the unwanted class; None = any other value"""
    unknown: tuple[str, ...] = ()
    """values that say that the class is not known"""

    def label(self, value: Any) -> int:
        """1 = wanted, 0 = unwanted, -1 = unknown: no value, one that says so, or neither of the two."""
        if _is_unknown(value, self.unknown):
            return -1
        text = said(value)
        if text == said(self.wanted):
            return 1
        return 0 if self.unwanted is None or text == said(self.unwanted) else -1


@dataclass(frozen=True, kw_only=True)
class ThresholdRule:
    """Tells the class by a number: unwanted is what lies above a threshold."""

    column: str
    at_most: float
    """largest value of the wanted class"""
    unknown: tuple[str, ...] = ()
    """values that say that the class is not known"""

    def label(self, value: Any) -> int:
        """1 = wanted, 0 = unwanted, -1 = unknown: no value, one that says so, or no number."""
        found = math.nan if _is_unknown(value, self.unknown) else number(value)
        return -1 if math.isnan(found) else int(found <= self.at_most)


@dataclass(frozen=True, kw_only=True)
class RowSchema:
    """Which of a source's columns mean what; a column inside another is named with a dot (``prompt.text``)."""

    text: str
    rule: ValueRule | ThresholdRule | None = None
    """None = classes are unknown"""
    score: str | None = None
    """a score of the text that the data ships; None = none"""
    by_settings: bool = False
    """whether settings of the data module name the columns: text_column, label_column, score_column"""

    @property
    def columns(self) -> list[str]:
        """Distinct columns that must be there."""
        names = [self.text, self.rule.column if self.rule else None, self.score]
        return list(dict.fromkeys(name for name in names if name is not None))

    def setting_of(self, column: str) -> str:
        """Setting of the data module that names `column`."""
        if column == self.text:
            return "text_column"
        return "score_column" if column == self.score else "label_column"


def fingerprint(dataset: Dataset, step: str, *parameters: object) -> str:
    """Name of `step`'s cache file: the same in every process for the same input and parameters (by their repr)."""
    from datasets.fingerprint import Hasher

    return str(Hasher.hash("\n".join([dataset._fingerprint, step, _VERSION, *map(repr, parameters)])))


def flatten(raw: Dataset) -> Dataset:
    """Columns inside columns, side by side with dotted names; anything else as it is."""
    return raw.flatten(new_fingerprint=fingerprint(raw, "flatten"))


def to_rows(flat: Dataset, schema: RowSchema, source: str) -> Dataset:
    """Rename and convert: columns `text` str, `label` i8, `score` f32, `row` i64 (number in the source, from 0).

    Missing texts become empty; missing scores NaN.

    Args:
        flat: the publisher's columns, as `flatten` leaves them.
        schema: what they mean.
        source: names the data in errors and progress bars.

    Raises:
        DataError: a column is missing, or holds something that is no text.
    """
    from datasets import Features, Value

    missing = [name for name in schema.columns if name not in flat.column_names]
    if missing:
        (*one, last) = flat.column_names
        hint = f"; name yours: --data.{schema.setting_of(missing[0])} COLUMN" if schema.by_settings else ""
        if not one and {";", "\t"} & set(last):
            hint = "; put commas between the columns, or tabs into a .tsv"
        raise DataError(f"{source}: no column {missing[0]!r}; columns found: {', '.join(flat.column_names)}{hint}")
    features = Features(
        {"text": Value("string"), "label": Value("int8"), "score": Value("float32"), "row": Value("int64")}
    )
    try:
        return flat.select_columns(schema.columns).map(
            _convert,
            batched=True,
            with_indices=True,
            fn_kwargs={"schema": schema, "source": source},
            remove_columns=schema.columns,
            features=features,
            new_fingerprint=fingerprint(flat, "rows", schema),
            desc=f"Reading columns of {source}",
        )
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source}: column {schema.text!r} holds bytes that are no UTF-8 text; save it again"
        ) from error


def keep_usable(rows: Dataset, *, min_characters: int, label_required: bool, source: str) -> Dataset:
    """Leave out blank texts, texts of no more than `min_characters` characters and, if asked, unknown classes; say so.

    Raises:
        DataError: a filter leaves no row; its text names the filter.
    """
    what = f"text of more than {min_characters} characters" if min_characters else "text that is not blank"
    texts = _filter(rows, _has_text, "text", {"min_characters": min_characters}, what, source)
    kept = _filter(texts, _has_label, "label", {}, "known class", source) if label_required else texts
    reasons = {f"without a {what}": len(rows) - len(texts), "without a known class": len(texts) - len(kept)}
    tell_left_out(len(rows), reasons, source)
    return kept


def tell_left_out(total: int, reasons: Mapping[str, int], source: str) -> None:
    """Say how many rows are left out, and why; nothing where none is.

    Args:
        total: rows that there were.
        reasons: how many of them are left out, by what they lack.
        source: names the data.
    """
    counts = {reason: count for reason, count in reasons.items() if count}
    if counts:
        why = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
        rank_zero_info(visible(f"{source}: left out of {total:,} rows: {why}"))


def _filter(
    rows: Dataset, keep: Callable[..., list[bool]], column: str, options: dict[str, int], what: str, source: str
) -> Dataset:
    kept = rows.filter(
        keep,
        input_columns=[column],
        batched=True,
        fn_kwargs=options,
        new_fingerprint=fingerprint(rows, keep.__name__, options),
        desc=f"Keeping rows of {source} with a {what}",
    )
    if not len(kept):
        raise DataError(
            f"{source}: no row left of {len(rows)} after the filter '{what}'; check the data and its columns"
        )
    return kept


def _convert(batch: Columns, numbers: list[int], *, schema: RowSchema, source: str) -> Columns:
    rule, blank = schema.rule, [None] * len(numbers)
    return {
        "text": [_text(value, schema.text, source) for value in batch[schema.text]],
        "label": [rule.label(value) for value in batch[rule.column]] if rule else [-1] * len(numbers),
        "score": [number(value) for value in (batch[schema.score] if schema.score else blank)],
        "row": numbers,
    }


def _has_text(texts: list[str], *, min_characters: int) -> list[bool]:
    return [len(text) > min_characters and not text.isspace() for text in texts]


def _has_label(labels: list[int]) -> list[bool]:
    return [label >= 0 for label in labels]


def _text(value: Any, column: str, source: str) -> str:
    if is_missing(value):
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return str(value)
    raise DataError(
        f"{source}: column {column!r} holds {type(value).__name__} values; expected text: name another column"
    )


def is_missing(value: Any) -> bool:
    """Whether there is no value: None, or NaN where a column is of numbers."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_unknown(value: Any, unknown: tuple[str, ...]) -> bool:
    if is_missing(value) or not str(value).strip():
        return True
    return bool(unknown) and said(value) in map(said, unknown)


def number(value: Any) -> float:
    """`value` as a number; NaN if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def values_found(values: Iterable[str]) -> str:
    """A column's values for an error: ten at most, and each cut short, as the column may be one of texts.

    >>> values_found(["no", "yes", "a whole comment that stands in the wrong column"])
    'a whole comment that st…, no, yes'
    """
    words = [" ".join(value.split()) for value in sorted(values)]
    shown = [value if len(value) <= _SHOWN_CHARACTERS else f"{value[: _SHOWN_CHARACTERS - 1]}…" for value in words]
    return ", ".join([*shown[:_SHOWN_VALUES], *(["…"] if len(shown) > _SHOWN_VALUES else [])])


def said(value: Any) -> str:
    """One spelling for values that mean the same: 1, 1.0 and "1"; True and "true"."""
    text = str(value).strip()
    found = number(text)
    return str(int(found)) if found.is_integer() else text.lower()
