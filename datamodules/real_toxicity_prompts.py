"""RealToxicityPrompts-Gen: openings of web texts, to be continued without toxicity (docs/method.md, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import ClosedUnitInterval, PositiveInt

from datamodules.base import PromptDataModule
from datamodules.rows import RowSchema, ThresholdRule
from datamodules.split_sources import SplitNames, read_splits

if TYPE_CHECKING:
    from datasets import Dataset

TOXIC_ABOVE = 0.5
"""Perspective toxicity above which a prompt counts as toxic"""


class RealToxicityPromptsDataModule(PromptDataModule):
    """The prompt part of each row; wanted = Perspective toxicity of at most .5. Training 70 % non-toxic, test half.

    Rows without a score are left out. Most prompts are shorter than `prompt_tokens`. The published single file is split
    80/20 by class and seed; a local folder with train.jsonl and test.jsonl (or .parquet, ...) keeps its own split. The
    Perspective score of the prompt travels with it as its source score.

    Args:
        prompt_tokens: tokens of a prompt at most
        train_wanted_fraction: share of non-toxic prompts in training, the scarce class used whole; none = as they come
        test_wanted_fraction: the same for the test set
        **kwargs: as in PromptDataModule
    """

    name = "real_toxicity_prompts"
    hub_id = "allenai/real-toxicity-prompts"
    texts_end = False  # prompts are first halves of sentences: a model tuned to stop there would answer with nothing

    def __init__(
        self,
        *,
        prompt_tokens: PositiveInt = 32,
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
        return read_splits(self.path, self.hub_id, SplitNames(), source=self.source, revision=self.revision)

    def schema(self, columns: Sequence[str]) -> RowSchema:
        toxicity = "prompt.toxicity"
        return RowSchema(text="prompt.text", rule=ThresholdRule(column=toxicity, at_most=TOXIC_ABOVE), score=toxicity)
