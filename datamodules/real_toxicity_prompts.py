"""RealToxicityPrompts-Gen: openings of web texts, to be continued without toxicity (docs/method.md, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import ClosedUnitInterval, PositiveInt

from datamodules.base import PromptDataModule
from datamodules.rows import RowSchema, ThresholdRule
from datamodules.sources import read_file, read_hub, read_split_files, require_folder
from lightning_rarlhf.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

TOXIC_ABOVE = 0.5
"""Perspective toxicity above which a prompt counts as toxic"""


class RealToxicityPromptsDataModule(PromptDataModule):
    """The prompt part of each row; wanted = Perspective toxicity of at most .5. Training 70 % non-toxic, test half.

    Rows without a score are left out. Most prompts are shorter than `prompt_tokens`. The published single file is split
    80/20 by class and seed; a local folder with train.jsonl and test.jsonl keeps its own split. The Perspective score
    of the prompt travels with it as its source score.

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
        if self.path is None:
            return {"all": read_hub(self.hub_id, self.revision)["train"]}
        if Path(self.path).expanduser().is_file():
            return {"all": read_file(self.path)}
        files = sorted(require_folder(self.path, "train.jsonl and test.jsonl").glob("*.jsonl"))
        if {"train.jsonl", "test.jsonl"} <= {file.name for file in files}:
            return read_split_files(self.path, ("train.jsonl", "test.jsonl"))
        if len(files) != 1:
            raise DataError(
                f"{self.path}: found {len(files)} .jsonl files; expected train.jsonl and test.jsonl, or a single file"
            )
        return {"all": read_file(files[0])}

    def schema(self, columns: Sequence[str]) -> RowSchema:
        toxicity = "prompt.toxicity"
        return RowSchema(text="prompt.text", rule=ThresholdRule(column=toxicity, at_most=TOXIC_ABOVE), score=toxicity)
