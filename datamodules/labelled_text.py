"""Texts that humans put labels on: one label or several, each yes or no."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from datamodules.human_labels import HumanLabelsDataModule, Rows, batches
from datamodules.labels_beside import require_never_labelled_is_told
from datamodules.rows import ThresholdRule, ValueRule, tell_left_out, values_found
from lightning_rarlhf.data_types import LabelledBatch
from lightning_rarlhf.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


class LabelledTextDataModule(HumanLabelsDataModule):
    """One logit a label column; a text may carry several labels, and a missing value is unknown, not no.

    Labels that a file lacks may stand beside it, joined by the column id: those of test.csv in test_labels.csv, as
    Kaggle gives them. Kaggle's −1 (never labelled) is unknown where labels are 0 and 1; with positive_label or
    threshold, say so by unknown_labels.

    Args:
        text_column: holds the text; a column inside another is named with a dot, as prompt.text
        label_columns: each holds one label of every text
        label_names: what the classifier is to call them; none = as the columns
        positive_label: value that means yes, any other means no; none = 1 is yes, 0 is no and anything else unknown
        threshold: numbers above it mean yes, instead of positive_label
        unknown_labels: values that mean never labelled; none = a missing value does, and with positive_label or
            threshold a −1 that would count as no beside other values is refused, for Kaggle means that by it
        **kwargs: as in HumanLabelsDataModule
    """

    column_settings = ("text_column", "label_columns")

    def __init__(
        self,
        *,
        text_column: str = "text",
        label_columns: list[str] = ["label"],  # noqa: B006 (jsonargparse copies it)
        label_names: list[str] | None = None,
        positive_label: str | int | float | bool | None = None,
        threshold: float | None = None,
        unknown_labels: list[str | int | float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        names = label_columns if label_names is None else label_names
        if not label_columns or len(names) != len(label_columns) or len(set(names)) != len(names):
            raise DataError(
                f"label_columns {label_columns}, label_names {names}: expected one or more, a name of its own for each"
            )
        if positive_label is not None and threshold is not None:
            raise DataError("positive_label and threshold exclude each other: give one, or neither for 0 and 1")
        self.text_column, self.label_columns, self._names = text_column, list(label_columns), list(names)
        self.positive_label, self.threshold = positive_label, threshold
        self.unknown_labels = None if unknown_labels is None else tuple(map(str, unknown_labels))

    @property
    def label_names(self) -> list[str]:
        return self._names

    @property
    def columns(self) -> list[str]:
        return [self.text_column, *self.label_columns]

    @property
    def text_columns(self) -> list[str]:
        return [self.text_column]

    @property
    def columns_beside(self) -> list[str]:
        return self.label_columns

    def usable(self, rows: Dataset, split: str) -> Rows:
        """Rows whose text is not blank and that have at least one known label."""
        self._require_never_labelled_is_told(rows, split)
        kept, texts, where = [], 0, f"{self.source} ({split})"
        for start, part in batches(rows, self.columns):
            for number, text in enumerate(part[self.text_column]):
                if isinstance(text, str) and text.strip():
                    texts += 1
                    if any(not math.isnan(self._label(name, part[name][number])) for name in self.label_columns):
                        kept.append(start + number)
        if not texts:
            raise DataError(f"{where}: no text in column {self.text_column!r}; set data.text_column")
        if not kept:
            found = values_found({str(value) for name in self.label_columns for value in rows[:1000][name]})
            raise DataError(
                f"{where}: no text with a known label in {', '.join(self.label_columns)}; values found: {found}; "
                "set data.positive_label or data.threshold, or name other data.label_columns"
            )
        left_out = {"without a text": len(rows) - texts, "without a known label": texts - len(kept)}
        tell_left_out(len(rows), left_out, where)
        return np.array(kept, dtype=np.int64)

    def check(self, rows: Dataset, split: str) -> None:
        """Each label must be there and not be there: neither a loss nor an AUC can be had from one class."""
        for column, name in zip(self.label_columns, self._names, strict=True):
            known = {self._label(column, value) for _, part in batches(rows, [column]) for value in part[column]}
            known = {value for value in known if not math.isnan(value)}
            if known != {0.0, 1.0}:
                only = f"only {'yes' if 1.0 in known else 'no'}" if known else "no known value"
                raise DataError(
                    f"{self.source} ({split}): label {name!r} has {only} in {len(rows)} texts; AUC and loss need both "
                    "yes and no: give more data, or leave the label out"
                )

    def collate(self, rows: Dataset, numbers: list[int]) -> LabelledBatch:
        part = rows[numbers]
        ids, mask = self.encode(part[self.text_column])
        labels = [[self._label(name, value) for value in part[name]] for name in self.label_columns]
        return LabelledBatch(input_ids=ids, attention_mask=mask, labels=torch.tensor(labels, dtype=torch.float32).T)

    def _require_never_labelled_is_told(self, rows: Dataset, split: str) -> None:
        if self.unknown_labels is not None or (self.positive_label is None and self.threshold is None):
            return
        for column in self.label_columns:
            values = {str(value): value for _, part in batches(rows, [column]) for value in part[column]}
            no = [text for text, value in values.items() if self._label(column, value) == 0]
            require_never_labelled_is_told(no, column, f"{self.source} ({split})")

    def _label(self, column: str, value: Any) -> float:
        """1 = yes, 0 = no, NaN = unknown."""
        unknown = self.unknown_labels or ()
        if self.threshold is not None:
            label = ThresholdRule(column=column, at_most=self.threshold, unknown=unknown).label(value)
            return math.nan if label < 0 else 1.0 - label
        if self.positive_label is not None:
            label = ValueRule(column=column, wanted=str(self.positive_label), unknown=unknown).label(value)
        else:
            said = int(value) if isinstance(value, bool) else value
            label = ValueRule(column=column, wanted="1", unwanted="0", unknown=unknown).label(said)
        return math.nan if label < 0 else float(label)
