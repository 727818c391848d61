"""Anyone's own prompts: a text, CSV, JSON, JSONL or parquet file, a folder of split files, or a hub dataset."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt

from datamodules.base import PromptDataModule
from datamodules.labels_beside import require_never_labelled_is_told
from datamodules.rows import RowSchema, ValueRule, flatten, values_found
from datamodules.split_sources import SplitNames, read_splits, require_one_source
from lightning_rarlhf.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


class TextFileDataModule(PromptDataModule):
    """Prompts from named columns of a file, folder or hub dataset; classes and scores only if columns are named.

    A folder has one file per split, called after it (train.csv, test.csv, perhaps validation.csv). A single file is
    divided by `test_fraction`. Prediction takes every row that is not blank, in the file's order: of the single file,
    or of the test split where there are several; its `index` is the row's number in the file, from 0.

    Args:
        text_column: holds the text; a column inside another is named with a dot, as prompt.text
        path: file that ends in .txt (a text a line), .csv, .tsv, .json, .jsonl or .parquet, folder of such files, or
            copy of a hub dataset's folder; else name a hub dataset
        hub_id: dataset on the hub, instead of path
        hub_config: configuration (subset) of a hub dataset that has several
        label_column: tells the class of a row; none = classes are unknown
        wanted_label: value of label_column that marks the wanted class; any other marks the unwanted one
        unknown_labels: values of label_column that mean never labelled; none = a missing value does, and a −1 that
            would mark the unwanted class beside other values is refused, for Kaggle means that by it
        score_column: a number per row that travels with its prompt; none = none
        train_split: name of the training split (a file of the folder, or a split of the hub dataset)
        val_split: name of the validation split, used if there is one
        test_split: name of the test split
        test_fraction: share of a single file's rows that make the test set; 1 = all of them
        prompt_tokens: tokens of a text that make the prompt; none = the whole text
        max_prompt_tokens: upper limit of prompt_tokens, whatever it is
        min_characters: texts with this many characters or fewer are left out (not in prediction)
        **kwargs: as in PromptDataModule
    """

    label_required = False

    def __init__(
        self,
        *,
        text_column: str = "text",
        path: str | None = None,
        hub_id: str | None = None,
        hub_config: str | None = None,
        label_column: str | None = None,
        wanted_label: str | int | float | bool | None = None,
        unknown_labels: list[str | int | float] | None = None,
        score_column: str | None = None,
        train_split: str = "train",
        val_split: str = "validation",
        test_split: str = "test",
        test_fraction: ClosedUnitInterval = 0.2,
        prompt_tokens: PositiveInt | None = None,
        max_prompt_tokens: PositiveInt = 128,
        min_characters: NonNegativeInt = 0,
        **kwargs: Any,
    ) -> None:
        tokens = max_prompt_tokens if prompt_tokens is None else min(prompt_tokens, max_prompt_tokens)
        super().__init__(path=path, prompt_tokens=tokens, **kwargs)
        self.hub_id, self.hub_config = hub_id, hub_config
        self.text_column, self.label_column, self.score_column = text_column, label_column, score_column
        self.wanted_label = None if wanted_label is None else str(wanted_label)
        self.unknown_labels = None if unknown_labels is None else tuple(map(str, unknown_labels))
        self.split_names = SplitNames(train_split, test_split, val_split, settings="train_split, test_split")
        self.test_fraction = test_fraction
        self.min_characters = min_characters
        self.name = Path(self.source).stem
        self._read: tuple[dict[str, Dataset], Mapping[str, int]] | None = None

    def read(self) -> dict[str, Dataset]:
        splits, classes = self._read_splits()
        self._require_wanted_label(classes)
        if "all" not in splits or self.test_fraction < 1:
            return splits
        return {"test": splits["all"]}  # a test set alone, so there is nothing that validation could be taken from

    def schema(self, columns: Sequence[str]) -> RowSchema:
        rule = None
        if self.label_column is not None and self.wanted_label is not None:
            rule = ValueRule(column=self.label_column, wanted=self.wanted_label, unknown=self.unknown_labels or ())
        return RowSchema(text=self.text_column, rule=rule, score=self.score_column, by_settings=True)

    def read_predictions(self) -> Dataset:
        splits, _ = self._read_splits()
        return splits["test"] if "test" in splits else splits["all"]

    def _check_arguments(self) -> None:
        require_one_source(self.path, self.hub_id)
        if (self.label_column is None) != (self.wanted_label is None):
            raise DataError("label_column and wanted_label go together: give both, or neither if classes are unknown")
        if self.label_column is None and self.purpose == "sft" and self.sft_class != "all":
            raise DataError(
                f"texts of the {self.sft_class} class were asked for, but no label_column is named; name it and its "
                "wanted_label, or take all texts: --data.sft_class all"
            )
        if (
            self.label_column is None
            and (self.train_quota.wanted_fraction, self.test_quota.wanted_fraction) != (None,) * 2
        ):
            raise DataError(
                "a share of the wanted class was asked for (train_wanted_fraction, test_wanted_fraction), but no "
                "label_column is named; name it and its wanted_label, or set these shares to null"
            )

    def _read_splits(self) -> tuple[dict[str, Dataset], Mapping[str, int]]:
        """Rows by split, and the class of each label in them; read once, also if it is asked for again.

        `all` = the only file there is, or the training file of a source without a test file.
        """
        if self._read is None:
            self._check_arguments()
            splits = read_splits(
                self.path,
                self.hub_id,
                self.split_names,
                source=self.source,
                revision=self.revision,
                config=self.hub_config,
                labels=() if self.label_column is None else (self.label_column,),
            )
            classes = {split: self._labels(rows) for split, rows in splits.items()}
            for split, labels in classes.items() if self.unknown_labels is None else ():
                no = [value for value, label in labels.items() if label == 0]
                require_never_labelled_is_told(no, str(self.label_column), f"{self.source} ({split})")
            self._read = splits, ChainMap(*classes.values())
        return self._read

    def _require_wanted_label(self, classes: Mapping[str, int]) -> None:
        if classes and 1 not in classes.values():
            raise DataError(
                f"{self.source}: no row has {self.label_column} = {self.wanted_label!r} (wanted_label); "
                f"values found: {values_found(classes)}"
            )

    def _labels(self, rows: Dataset) -> dict[str, int]:
        """Class of each value that the label column has; empty without the column."""
        flat, rule = flatten(rows), self.schema(()).rule
        if rule is None or rule.column not in flat.column_names:
            return {}
        batches = flat.select_columns([rule.column]).iter(batch_size=1000)
        return {str(value): rule.label(value) for batch in batches for value in batch[rule.column]}
