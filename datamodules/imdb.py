"""IMDB-Gen: openings of film reviews, to be continued in a positive tone (docs/method.md, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import PositiveInt

from datamodules.base import PromptDataModule
from datamodules.rows import RowSchema, ValueRule
from datamodules.split_sources import SplitNames, read_splits

if TYPE_CHECKING:
    from datasets import Dataset


class IMDBDataModule(PromptDataModule):
    """Reviews of more than 200 characters; wanted = positive. Training uses all, the test set 5,000 drawn by seed.

    Local data: a folder with train.parquet and test.parquet (or .csv, .jsonl, ...), columns `text` and `label` (1 =
    positive), or a copy of the hub's folder.

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
        return read_splits(self.path, self.hub_id, SplitNames(), source=self.source, revision=self.revision, both=True)

    def schema(self, columns: Sequence[str]) -> RowSchema:
        return RowSchema(text="text", rule=ValueRule(column="label", wanted="1", unwanted="0"))
