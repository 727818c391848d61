"""Jigsaw-Gen: openings of talk-page comments, to be continued without toxicity (docs/method.md, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import ClosedUnitInterval, PositiveInt

from datamodules.base import PromptDataModule
from datamodules.rows import RowSchema, ValueRule
from datamodules.sources import read_hub_file
from datamodules.split_sources import SplitNames, read_splits

if TYPE_CHECKING:
    from datasets import Dataset

_LOGIT = "toxic_bert_logit"


class JigsawDataModule(PromptDataModule):
    """Comments of more than 64 characters; wanted = non-toxic. Training 70 % non-toxic, test set half and half.

    Local data: a folder with train.csv and test.csv in Kaggle's format (`comment_text`, `toxic`), or .parquet, .jsonl,
    ..., or a copy of the hub's folder. Kaggle keeps the test labels apart in test_labels.csv; if that is there, rows
    that it marks -1 (never labelled) or does not have are left out, and counted. The hub keeps training rows apart as
    validation; those of a local validation.csv train, too. A column `toxic_bert_logit`, if any, becomes the prompts'
    source score. The published counts are those of Kaggle's files; the hub's copy calls any of the six kinds of
    toxicity toxic, so it has more toxic rows.

    Args:
        prompt_tokens: tokens of a comment that make the prompt
        train_wanted_fraction: share of non-toxic comments in training, the scarce class used whole; none = as they come
        test_wanted_fraction: the same for the test set
        **kwargs: as in PromptDataModule
    """

    name = "jigsaw"
    hub_id = "OxAISH-AL-LLM/wiki_toxic"
    min_characters = 64
    human_text_characters = 500

    def __init__(
        self,
        *,
        prompt_tokens: PositiveInt = 8,
        train_wanted_fraction: ClosedUnitInterval | None = 0.7,
        test_wanted_fraction: ClosedUnitInterval | None = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            prompt_tokens=prompt_tokens,
            train_wanted_fraction=train_wanted_fraction,
            test_wanted_fraction=test_wanted_fraction,
            **kwargs,
        )

    def read(self) -> dict[str, Dataset]:
        names = SplitNames(val="validation")
        if self.path is None:
            splits = {
                split: read_hub_file(self.hub_id, f"{name}.csv", self.revision) for split, name in names.given.items()
            }
        else:
            splits = read_splits(self.path, None, names, source=self.source, labels=["toxic"], both=True)
        # the hub's copy divides Kaggle's train.csv in two; together they are the training rows again
        return {"more" if split == "val" else split: rows for split, rows in splits.items()}

    def schema(self, columns: Sequence[str]) -> RowSchema:
        column = "label" if "label" in columns and "toxic" not in columns else "toxic"
        return RowSchema(
            text="comment_text",
            rule=ValueRule(column=column, wanted="0", unwanted="1"),
            score=_LOGIT if _LOGIT in columns else None,
        )
