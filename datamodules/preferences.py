"""Pairs of texts of which a human preferred one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.human_labels import HumanLabelsDataModule, Rows, batches
from lightning_rarlhf.data_types import PreferenceBatch
from lightning_rarlhf.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


class PreferenceDataModule(HumanLabelsDataModule):
    """Prompt + chosen and prompt + rejected, joined as a reward model reads prompt + response.

    Args:
        prompt_column: holds what both texts begin with; none = the two columns hold whole texts
        chosen_column: holds the preferred text
        rejected_column: holds the other
        **kwargs: as in HumanLabelsDataModule
    """

    def __init__(
        self,
        *,
        prompt_column: str | None = None,
        chosen_column: str = "chosen",
        rejected_column: str = "rejected",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.prompt_column, self.pair = prompt_column, (chosen_column, rejected_column)

    @property
    def label_names(self) -> list[str]:
        return ["preference"]

    @property
    def columns(self) -> list[str]:
        return [*([] if self.prompt_column is None else [self.prompt_column]), *self.pair]

    def usable(self, rows: Dataset, split: str) -> Rows:
        """Rows with two different texts; others say nothing."""
        kept = []
        for start, part in batches(rows, list(self.pair)):
            pairs = enumerate(zip(part[self.pair[0]], part[self.pair[1]], strict=True), start=start)
            kept += [number for number, (a, b) in pairs if isinstance(a, str) and isinstance(b, str) and a != b]
        if not kept:
            raise DataError(
                f"{self.source} ({split}): no pair of two different texts in {' and '.join(self.pair)}; "
                "set data.chosen_column and data.rejected_column"
            )
        return np.array(kept, dtype=np.int64)

    def check(self, rows: Dataset, split: str) -> None:
        """Any pair teaches something."""

    def collate(self, rows: Dataset, numbers: list[int]) -> PreferenceBatch:
        part = rows[numbers]
        prompts = (
            [""] * len(numbers) if self.prompt_column is None else [str(p or "") for p in part[self.prompt_column]]
        )
        texts = [[prompt + text for prompt, text in zip(prompts, part[name], strict=True)] for name in self.pair]
        chosen, rejected = (self.encode(side) for side in texts)
        return PreferenceBatch(
            chosen_ids=chosen[0], chosen_mask=chosen[1], rejected_ids=rejected[0], rejected_mask=rejected[1]
        )
