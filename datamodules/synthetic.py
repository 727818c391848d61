"""Restaurant comments of the quickstart's grammar: made on the spot, nothing to download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import PositiveInt

from datamodules.base import PromptDataModule
from datamodules.rows import RowSchema, ValueRule
from lightning_rarlhf.errors import DataError
from lightning_rarlhf.quickstart.grammar import MOST_COMMENTS, PROMPT_WORDS, make_comments

if TYPE_CHECKING:
    from datasets import Dataset

_GRAMMAR_SEED = 2024  # of the comments; the module's own seed chooses among them, as with any other dataset


class SyntheticDataModule(PromptDataModule):
    """Comments of a small grammar with a known bad tail; wanted = continued kindly. No prompt occurs twice.

    Args:
        comments: comments to make, the same ones in every run; four fifths train
        prompt_tokens: words of a comment that make the prompt; the default is where the grammar's prompts end
        text_tokens: with purpose sft, words and full stops after which a text is cut; the default cuts none
        test_size: test prompts, drawn by seed
        **kwargs: as in PromptDataModule; there is no path to read from
    """

    name = "synthetic"

    def __init__(
        self,
        *,
        comments: PositiveInt = 10_000,
        prompt_tokens: PositiveInt = PROMPT_WORDS,
        text_tokens: PositiveInt = 32,
        test_size: PositiveInt | None = 1000,
        **kwargs: Any,
    ) -> None:
        super().__init__(prompt_tokens=prompt_tokens, text_tokens=text_tokens, test_size=test_size, **kwargs)
        self.comments = comments

    def read(self) -> dict[str, Dataset]:
        """All comments; the base class divides them.

        Raises:
            DataError: more comments than the grammar has, or a path.
        """
        from datasets import Dataset

        if self.path is not None:
            raise DataError(f"--data.path {self.path}: the synthetic data is made, not read; use TextFileDataModule")
        if self.comments > MOST_COMMENTS:
            raise DataError(f"comments: got {self.comments}, expected at most {MOST_COMMENTS}; the grammar has no more")
        made = make_comments(self.comments, seed=_GRAMMAR_SEED)
        return {"all": Dataset.from_dict({"text": [c.text for c in made], "label": [c.label for c in made]})}

    def schema(self, columns: Sequence[str]) -> RowSchema:
        return RowSchema(text="text", rule=ValueRule(column="label", wanted="1", unwanted="0"))
