"""IMDB-Gen: openings of film reviews, to be continued in a positive tone (docs/method.md, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import PositiveInt

from datamodules.base import PromptDataModule
from datamodules.rows import RowSchema, ValueRule
from datamodules.sources import read_hub, read_split_files

if TYPE_CHECKING:
    from datasets import Dataset


class IMDBDataModule(PromptDataModule):
    """Reviews of more than 200 characters; wanted = positive. Training uses all, the test set 5,000 drawn by seed.

    Local data: a folder with train.parquet and test.parquet, columns `text` and `label` (1 = positive).

    Args:
        prompt_tokens: tokens of a review that make the prompt
        test_size: test reviews, drawn by seed; fewer if the file has fewer
        **kwargs: as in PromptDataModule
    """

    name = "imdb"
    hub_id = "stanfordnlp/imdb"
    min_characters = 200

    def __init__(self, *, prompt_tokens: PositiveInt = 64, test_size: PositiveInt | None = 5000, **kwargs: Any) -> None:
        super().__init__(prompt_tokens=prompt_tokens, test_size=test_size, **kwargs)

    def read(self) -> dict[str, Dataset]:
        if self.path is not None:
            return read_split_files(self.path, ("train.parquet", "test.parquet"))
        splits = read_hub(self.hub_id, self.revision)
        return {split: splits[split] for split in ("train", "test")}

    def schema(self, columns: Sequence[str]) -> RowSchema:
        return RowSchema(text="text", rule=ValueRule(column="label", wanted="1", unwanted="0"))
