"""What every prompt dataset shares: reading, selecting, tokenizing and dealing batches to the trainer."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt
from lightning.pytorch.utilities import rank_zero_info

from datamodules.collate import collate_prompts, collate_texts
from datamodules.loader import PromptLoader
from datamodules.overlap import tell_overlap
from datamodules.rows import RowSchema, flatten, keep_usable, tell_left_out, to_rows
from datamodules.run_data import RunDataModule
from datamodules.selection import CLASS_NAMES, Labels, Quota, Rows, Selection, divide, select
from datamodules.tokenization import texts_with_unknown, tokenize_prompts, tokenize_texts
from lightning_rarlhf.data_types import PromptBatch, TextBatch
from lightning_rarlhf.errors import DataError
from lightning_rarlhf.splits import FIRST_INDEX

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Purpose = Literal["prompts", "sft"]
SFTClass = Literal["wanted", "unwanted", "all"]

_NO_TOKENS = "that make no token, or (with sft_codes) are of no known class"
_SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


@dataclass(frozen=True, kw_only=True)
class _Pool:
    """The usable rows of every source file, one after the other, and what was selected from them."""

    rows: Dataset
    labels: Labels
    selection: Selection


class PromptDataModule(RunDataModule, ABC):
    """Base of the data modules: prompts for PPO, tests and predictions, or whole texts for supervised fine-tuning.

    A subclass says where rows come from (`read`), which columns mean what (`schema`) and, in `min_characters` and
    `label_required`, what it leaves out. Train, validation and test prompts are disjoint rows, chosen by `seed` alone.
    `PromptBatch.index` is the row's number in its selected split plus `FIRST_INDEX` of the split, so that no two
    prompts of a run share a number (and with it their random numbers): 3,000,000,017 is row 17 of the test set.

    Args:
        tokenizer: hub id or folder of the policy's tokenizer; on the command line none = the policy's own
        tokenizer_revision: commit, tag or branch of that tokenizer on the hub; none = its main branch
        path: local folder or file in the publisher's format; none = download from the hub
        revision: commit, tag or branch of the dataset on the hub; none = its main branch
        purpose: of training and validation: prompts = PromptBatch for generation; sft = TextBatch for supervised
            fine-tuning; test and prediction always take prompts
        sft_class: with purpose sft, the class of the texts: wanted, unwanted, or all
        sft_codes: with purpose sft, what to put before the texts of the wanted class and of the unwanted one, for a
            class-conditional language model (GeDi); use it with sft_class all. none = nothing
        prompt_tokens: tokens of a text that make the prompt; shorter texts are prompts whole
        text_tokens: with purpose sft, tokens after which a text is cut
        train_wanted_fraction: share of wanted-class rows in training, the scarce class used whole; none = as they come
        test_wanted_fraction: the same for the test set
        train_size: training rows at most; none = all
        test_size: test rows at most; none = all
        val_size: validation prompts, at the training set's class ratio, the same in every run; rows that neither
            training nor test uses come first, training rows fill up; of validation data of their own, as many as there
            are at most; 0 = no validation
        batch_size: prompts per iteration, over all processes together; an epoch drops an incomplete last batch
        eval_batch_size: prompts per batch in validation, test and prediction, over all processes together
        seed: chooses the rows of each split, nothing else; leave it alone across runs that are compared
        order_seed: of the order of the training rows; none = the run's own (seed_everything)
        progress: show progress bars of reading and tokenizing
    """

    min_characters: int = 0
    """texts with this many characters or fewer are left out; blank ones always are"""
    label_required: ClassVar[bool] = True
    """leave out rows whose class is unknown"""
    test_fraction: float = 0.2
    """share of the rows that test where a source has one file only, class by class"""
    texts_end: ClassVar[bool] = True
    """whether the end of a text ends what it says: fine-tuning then learns to stop there"""
    human_text_characters: ClassVar[int] = 1000
    """where `human_texts` cuts (docs/method.md, section 4)"""

    def __init__(
        self,
        *,
        tokenizer: str | None = None,
        tokenizer_revision: str | None = None,
        path: str | None = None,
        revision: str | None = None,
        purpose: Purpose = "prompts",
        sft_class: SFTClass = "wanted",
        sft_codes: tuple[str, str] | None = None,
        prompt_tokens: PositiveInt = 64,
        text_tokens: PositiveInt = 64,
        train_wanted_fraction: ClosedUnitInterval | None = None,
        test_wanted_fraction: ClosedUnitInterval | None = None,
        train_size: PositiveInt | None = None,
        test_size: PositiveInt | None = None,
        val_size: NonNegativeInt = 256,
        batch_size: PositiveInt = 128,
        eval_batch_size: PositiveInt = 128,
        seed: NonNegativeInt = 0,
        order_seed: NonNegativeInt | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__(path, order_seed)
        self.tokenizer_name, self.tokenizer_revision = tokenizer, tokenizer_revision
        self.revision = revision
        self.purpose, self.sft_class, self.sft_codes = purpose, sft_class, sft_codes
        if sft_codes is not None and (len(set(sft_codes)) < 2 or sft_class != "all"):
            raise DataError(
                f"sft_codes={list(sft_codes)} with sft_class={sft_class}: a code tells classes apart; expected two "
                "different codes and sft_class all"
            )
        self.prompt_tokens, self.text_tokens = prompt_tokens, text_tokens
        self.train_quota = Quota(wanted_fraction=train_wanted_fraction, size=train_size)
        self.test_quota = Quota(wanted_fraction=test_wanted_fraction, size=test_size)
        self.val_size = val_size
        self.batch_size, self.eval_batch_size = int(batch_size), int(eval_batch_size)
        self.seed = int(seed)
        self.progress = progress
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._pool: _Pool | None = None
        self._tokens: dict[str, Dataset] = {}

    # for subclasses

    @abstractmethod
    def read(self) -> dict[str, Dataset]:
        """Raw rows of each source file: `train`, `test` and perhaps `val`; or `all`, to be divided by `test_fraction`.

        Rows of `more` are training rows that lie in a file of their own.

        Raises:
            DataError: nothing there, or nothing readable.
        """

    @abstractmethod
    def schema(self, columns: Sequence[str]) -> RowSchema:
        """What the columns mean, given the names that one source file has."""

    def read_predictions(self) -> Dataset | None:
        """Raw rows to predict on, each kept unless blank, numbered as in the source; None = the test prompts."""
        return None

    # hooks that Lightning calls

    def prepare_data(self) -> None:
        """Fill the cache on one process; the others then find everything in it."""
        running = self.trainer.state.fn if self.trainer else None
        self._build(_splits_of(running.value if running else None))

    def setup(self, stage: str | None = None) -> None:
        """Select and tokenize what `stage` needs (None = everything), unless that was done.

        Raises:
            DataError: the source or a column is missing or unreadable, a filter leaves no row, a class is missing, or
                batch_size or val_size does not fit the rows that there are.
        """
        self._build(_splits_of(stage))

    def val_dataloader(self) -> PromptLoader[Any] | list[Any]:
        return self._loader("val") if self.val_size else []

    def predict_dataloader(self) -> PromptLoader[Any]:
        return self._loader("predict")

    # result files

    def human_texts(self) -> list[str]:
        """Test texts of the wanted class, cut: the fixed texts of a policy's perplexity (docs/method.md, section 4).

        Where classes are unknown, all test texts.
        """
        pool, rows = self._selected(), self._selected().selection.test
        labels = pool.labels[rows]
        chosen = rows[labels == 1] if (labels >= 0).any() else rows
        return [text[: self.human_text_characters] for text in pool.rows.select(chosen)["text"]]

    def identity(self) -> dict[str, Any]:
        """What names the data in result files: source, seed, rows and classes per split, and hashes of the prompts."""
        identity: dict[str, Any] = {
            "class": type(self).__name__,
            "name": self.name,
            "source": self.source,
            "revision": self.revision,
            "purpose": self.purpose,
            "prompt_tokens": self.prompt_tokens,
            "seed": self.seed,
        }
        if self._pool is not None:
            chosen = {split: self._chosen(split) for split in ("train", "val", "test")}
            identity["rows"] = {split: len(rows) for split, rows in chosen.items()}
            identity["classes"] = {split: _count(self._pool.labels[rows]) for split, rows in chosen.items()}
        evaluated = {split: tokens for split, tokens in self._tokens.items() if split != "train"}
        identity["sha256"] = {split: _content_hash(tokens) for split, tokens in evaluated.items()}
        return identity

    # from source to batches

    def _build(self, splits: Iterable[str]) -> None:
        if "train" in splits and self.purpose == "prompts" and self.batch_size < 2:
            raise DataError(f"batch_size={self.batch_size}: risk is a matter of several episodes; expected 2 or more")
        with self._progress_bars():
            for split in splits:
                if split not in self._tokens and (split != "val" or self.val_size):
                    self._tokens[split] = self._tokenize(split)
                    self._loader(split)  # a batch size that does not fit the data shows here, before models are loaded

    def _tokenize(self, split: str) -> Dataset:
        rows, first_index = self._rows_of(split)
        tokenizer = self._load_tokenizer()
        if self._takes_texts(split):
            tokens = tokenize_texts(
                rows, tokenizer, tokens=self.text_tokens, ends=self.texts_end, codes=self.sft_codes, split=split
            )
        else:
            tokens = tokenize_prompts(rows, tokenizer, tokens=self.prompt_tokens, first_index=first_index, split=split)
        if not len(tokens):
            raise DataError(f"{self.source}: the tokenizer {self.tokenizer_name} makes no token of any {split} text")
        tell_left_out(len(rows), {_NO_TOKENS: len(rows) - len(tokens)}, f"{self.source} ({split})")
        self._tell_unknown(tokens, split)
        if split in ("val", "test"):
            tell_overlap(self._selected().rows.select(self._chosen("train")), rows, ["text"], self.source, split)
        return tokens

    def _tell_unknown(self, tokens: Dataset, split: str) -> None:
        tokenizer = self._load_tokenizer()
        found = texts_with_unknown(tokens, tokenizer)
        if found:
            rank_zero_info(
                f"{self.source} ({split}): {found:,} of {len(tokens):,} texts hold words that the tokenizer "
                f"{self.tokenizer_name} does not know; the policy reads each as {tokenizer.unk_token}"
            )

    def _rows_of(self, split: str) -> tuple[Dataset, int | None]:
        """Rows of a split, and the number of its first prompt (None = rows keep the source's numbers)."""
        if split == "predict":
            raw = self.read_predictions()
            if raw is not None:
                return self._usable(raw, "predict", min_characters=0, label_required=False), None
            split = "test"
        chosen = self._chosen(split)
        if not len(chosen):
            of_class = f" of class {self.sft_class}" if self._takes_texts(split) and self.sft_class != "all" else ""
            raise DataError(f"{self.source}: no {split} rows{of_class}; give data that has some")
        return self._selected().rows.select(chosen), FIRST_INDEX[split]

    def _chosen(self, split: str) -> Rows:
        pool = self._selected()
        rows: Rows = getattr(pool.selection, split)
        if not self._takes_texts(split) or self.sft_class == "all":
            return rows
        of_class: Rows = rows[pool.labels[rows] == int(self.sft_class == "wanted")]
        return of_class

    def _selected(self) -> _Pool:
        if self._pool is None:
            self._pool = self._select()
        return self._pool

    def _select(self) -> _Pool:
        import datasets

        usable = {
            split: self._usable(raw, split, self.min_characters, self.label_required)
            for split, raw in self.read().items()
        }
        rows = datasets.concatenate_datasets(list(usable.values()))
        labels = _column(rows, "label").astype(np.int8)
        ends = np.cumsum([len(part) for part in usable.values()])
        sources = {split: np.arange(end - len(usable[split]), end) for split, end in zip(usable, ends, strict=True)}
        if "more" in sources:
            sources["train"] = np.concatenate([sources["train"], sources.pop("more")])
        if "all" in sources:
            sources["train"], sources["test"] = divide(sources["all"], labels, self.test_fraction, self.seed)
        selection = select(
            labels, sources, train=self.train_quota, test=self.test_quota, val_size=self.val_size, seed=self.seed
        )
        found = len(selection.val)
        if "val" in sources and found < self.val_size:
            rank_zero_info(
                f"{self.source}: {found} validation rows, fewer than val_size={self.val_size}: it has no more"
            )
        return _Pool(rows=rows, labels=labels, selection=selection)

    def _usable(self, raw: Dataset, split: str, min_characters: int, label_required: bool) -> Dataset:
        source = f"{self.source} ({split})"
        flat = flatten(raw)
        rows = to_rows(flat, self.schema(flat.column_names), source)
        return keep_usable(rows, min_characters=min_characters, label_required=label_required, source=source)

    def _takes_texts(self, split: str) -> bool:
        return self.purpose == "sft" and split in ("train", "val")

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        if self._tokenizer is None:
            from lightning_rarlhf.loading.tokenizer import load_tokenizer

            if self.tokenizer_name is None:
                raise DataError(f"{type(self).__name__}: no tokenizer given; set data.tokenizer to the policy's")
            self._tokenizer = load_tokenizer(self.tokenizer_name, self.tokenizer_revision)
        return self._tokenizer

    def _loader(self, split: str) -> PromptLoader[PromptBatch] | PromptLoader[TextBatch]:
        tokens, train = self._tokens[split], split == "train"
        collate: Any = collate_texts if self._takes_texts(split) else collate_prompts
        return PromptLoader(
            _column(tokens, "length").astype(np.int64),
            partial(collate, tokens, self._load_tokenizer().pad_token_id),
            batch_size=self.batch_size if train else self.eval_batch_size,
            **self._dealt(split),
        )

    @contextmanager
    def _progress_bars(self) -> Iterator[None]:
        import datasets

        shown = not datasets.are_progress_bars_disabled()
        if shown and not (self.progress and (self.trainer is None or self.trainer.is_global_zero)):
            datasets.disable_progress_bars()
        try:
            yield
        finally:
            if shown:
                datasets.enable_progress_bars()


def _splits_of(stage: str | None) -> tuple[str, ...]:
    return _SPLITS[stage] if stage else ("train", "val", "test", "predict")


def _column(rows: Dataset, name: str) -> Any:
    return rows.select_columns([name]).with_format("numpy")[:][name]


def _count(labels: Labels) -> dict[str, int]:
    counts = {name: int((labels == label).sum()) for label, name in CLASS_NAMES.items()}
    return {name: count for name, count in counts.items() if count}


def _content_hash(tokens: Dataset) -> str:
    """sha256 of the prompts (of the token ids, where there are no prompts), in their order."""
    digest = hashlib.sha256()
    name = "prompt" if "prompt" in tokens.column_names else "input_ids"
    for batch in tokens.select_columns([name]).iter(batch_size=1000):
        for value in batch[name]:
            digest.update(f"{value}\0".encode())
    return digest.hexdigest()
