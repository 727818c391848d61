"""What humans said of texts: labels of single texts, or which of two they preferred. Data of reward models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt
from numpy.typing import NDArray

from datamodules.loader import PromptLoader
from datamodules.overlap import tell_overlap
from datamodules.rows import flatten
from datamodules.run_data import RunDataModule
from datamodules.selection import stream
from datamodules.split_sources import SplitNames, read_splits, require_one_source
from lightning_rarlhf.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Rows = NDArray[np.int64]
_SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}


class HumanLabelsDataModule(RunDataModule, ABC):
    """Base of the two: reading, dividing and dealing batches. Texts are tokenized as they are dealt.

    A single file, or a source without a test or validation split, is divided by `seed`; texts stay on the disk.

    Args:
        tokenizer: hub id or folder of the classifier's tokenizer; on the command line none = the backbone's own
        tokenizer_revision: commit, tag or branch of that tokenizer on the hub; none = its main branch
        path: file that ends in .csv, .tsv, .json, .jsonl or .parquet, folder of such files, or copy of a hub dataset's
            folder; else name a hub dataset
        hub_id: dataset on the hub, instead of path
        hub_config: configuration (subset) of a hub dataset that has several
        revision: commit, tag or branch of the dataset on the hub; none = its main branch
        train_split: name of the training split (a file of the folder, or a split of the hub dataset)
        val_split: name of the validation split, used if there is one
        test_split: name of the test split
        val_fraction: share of the training rows that validate where there is no validation split
        test_fraction: share of a single file's rows that test
        text_tokens: tokens after which a text is cut
        train_size: training rows at most; none = all
        test_size: test rows at most; none = all
        batch_size: texts or pairs per optimizer step
        eval_batch_size: texts or pairs per batch in validation and test
        seed: chooses the rows of each split, nothing else
        order_seed: of the order of the training rows; none = the run's own (seed_everything)
    """

    truncation_side = "right"
    """end at which a text loses what is above text_tokens"""
    column_settings: tuple[str, ...] = ()
    """settings that name the columns, for errors"""

    def __init__(
        self,
        *,
        tokenizer: str | None = None,
        tokenizer_revision: str | None = None,
        path: str | None = None,
        hub_id: str | None = None,
        hub_config: str | None = None,
        revision: str | None = None,
        train_split: str = "train",
        val_split: str = "validation",
        test_split: str = "test",
        val_fraction: NonNegativeFloat = 0.1,
        test_fraction: NonNegativeFloat = 0.2,
        text_tokens: PositiveInt = 256,
        train_size: PositiveInt | None = None,
        test_size: PositiveInt | None = None,
        batch_size: PositiveInt = 32,
        eval_batch_size: PositiveInt = 64,
        seed: NonNegativeInt = 0,
        order_seed: NonNegativeInt | None = None,
    ) -> None:
        super().__init__(path, order_seed)
        if not 0 < val_fraction < 1 or not 0 < test_fraction < 1:
            raise DataError(f"val_fraction={val_fraction}, test_fraction={test_fraction}: expected between 0 and 1")
        self.tokenizer_name, self.tokenizer_revision = tokenizer, tokenizer_revision
        self.hub_id, self.hub_config, self.revision = hub_id, hub_config, revision
        self.split_names = SplitNames(train_split, test_split, val_split, settings="train_split, test_split")
        self.val_fraction, self.test_fraction = float(val_fraction), float(test_fraction)
        self.text_tokens = int(text_tokens)
        self.sizes = {"train": train_size, "test": test_size}
        self.batch_size, self.eval_batch_size = int(batch_size), int(eval_batch_size)
        self.seed = int(seed)
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._rows: dict[str, Dataset] | None = None

    # for subclasses

    @property
    @abstractmethod
    def label_names(self) -> list[str]:
        """What the outputs of a classifier of these data are called."""

    @property
    @abstractmethod
    def columns(self) -> list[str]:
        """Columns that must be there."""

    @property
    def text_columns(self) -> list[str]:
        """Those of `columns` that make a row's text, or its two texts."""
        return self.columns

    @property
    def columns_beside(self) -> list[str]:
        """Those of `columns` that a publisher may keep in a file of their own."""
        return []

    @abstractmethod
    def usable(self, rows: Dataset, split: str) -> Rows:
        """Numbers of the rows that can be learned from.

        Raises:
            DataError: the labels are not what they should be.
        """

    @abstractmethod
    def check(self, rows: Dataset, split: str) -> None:
        """Refuse a chosen split that nothing can be learned from, or measured on.

        Raises:
            DataError: a class is missing.
        """

    @abstractmethod
    def collate(self, rows: Dataset, numbers: list[int]) -> Any:
        """One batch."""

    # hooks that Lightning calls

    def setup(self, stage: str | None = None) -> None:
        """Read, divide and check what `stage` needs (None = everything).

        Raises:
            DataError: the source or a column is missing or unreadable, or a split has no use.
        """
        if self._rows is None:
            self._rows = self._divide()
        for split in _SPLITS.get(stage or "", ("train", "val", "test")):
            if not len(self._rows[split]):
                raise DataError(f"{self.source}: no row left for {split}; give more rows or a smaller fraction")
            self.check(self._rows[split], split)
            if split != "train":
                tell_overlap(self._rows["train"], self._rows[split], self.text_columns, self.source, split)
        self._load_tokenizer()

    def val_dataloader(self) -> PromptLoader[Any]:
        return self._loader("val")

    def identity(self) -> dict[str, Any]:
        """What names the data in result files."""
        rows = {} if self._rows is None else {split: len(table) for split, table in self._rows.items()}
        return {
            "class": type(self).__name__,
            "source": self.source,
            "revision": self.revision,
            "seed": self.seed,
            "rows": rows,
        }

    # from source to batches

    def encode(self, texts: list[str]) -> tuple[Any, Any]:
        """i64 and bool [B, S], right-padded, as the classifier reads."""
        encoded = self._load_tokenizer()(
            texts, padding=True, truncation=True, max_length=self.text_tokens, return_tensors="pt"
        )
        return encoded["input_ids"], encoded["attention_mask"].bool()

    def cut(self, texts: list[str]) -> list[list[int]]:
        """Tokens of each text, as many as the classifier will read."""
        encoded = self._load_tokenizer()(texts, truncation=True, max_length=self.text_tokens)
        return [list(ids) for ids in encoded["input_ids"]]

    def _divide(self) -> dict[str, Dataset]:
        require_one_source(self.path, self.hub_id)
        raw = read_splits(
            self.path,
            self.hub_id,
            self.split_names,
            source=self.source,
            revision=self.revision,
            config=self.hub_config,
            labels=self.columns_beside,
        )
        tables = {split: self._usable(flatten(rows), split) for split, rows in raw.items()}
        if "all" in tables:
            tables["train"], tables["test"] = self._cut(tables.pop("all"), self.test_fraction, "test")
        if "val" not in tables and "train" in tables:
            tables["train"], tables["val"] = self._cut(tables["train"], self.val_fraction, "val")
        empty = next(iter(tables.values())).select([])
        chosen = {split: tables.get(split, empty) for split in ("train", "val", "test")}
        for split, size in self.sizes.items():
            order = stream(self.seed, split).permutation(len(chosen[split]))
            chosen[split] = chosen[split].select(order[:size])
        return chosen

    def _usable(self, rows: Dataset, split: str) -> Dataset:
        missing = [name for name in self.columns if name not in rows.column_names]
        if missing:
            raise DataError(
                f"{self.source} ({split}): no column {missing[0]!r}; columns found: {', '.join(rows.column_names)}; "
                f"name yours: data.{', data.'.join(self.column_settings)}"
            )
        return rows.select(self.usable(rows, split))

    def _cut(self, rows: Dataset, share: float, name: str) -> tuple[Dataset, Dataset]:
        order = stream(self.seed, "divide", name).permutation(len(rows))
        count = max(1, round(share * len(rows)))
        return rows.select(order[count:]), rows.select(order[:count])

    def _loader(self, split: str) -> PromptLoader[Any]:
        assert self._rows is not None
        rows, train = self._rows[split], split == "train"
        return PromptLoader(
            np.ones(len(rows), dtype=np.int64),  # a batch is as wide as its longest text, whatever a loader thinks
            lambda numbers, _width: self.collate(rows, numbers),
            batch_size=self.batch_size if train else self.eval_batch_size,
            **self._dealt(split),
        )

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        if self._tokenizer is None:
            from lightning_rarlhf.rewards.classifier import load_classifier_tokenizer

            if self.tokenizer_name is None:
                raise DataError(f"{type(self).__name__}: no tokenizer given; set data.tokenizer to the backbone's")
            self._tokenizer = load_classifier_tokenizer(self.tokenizer_name, self.tokenizer_revision)
            self._tokenizer.truncation_side = self.truncation_side
        return self._tokenizer


def batches(rows: Dataset, columns: list[str]) -> Iterator[tuple[int, dict[str, list[Any]]]]:
    """Some columns of all rows, a thousand rows at a time, with the number of the first."""
    for start in range(0, len(rows), 1000):
        yield start, rows.select_columns(columns)[start : start + 1000]
