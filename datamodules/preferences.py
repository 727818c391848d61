"""Pairs of texts of which a human preferred one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.human_labels import HumanLabelsDataModule, Rows, batches
from datamodules.rows import tell_left_out
from lightning_rarlhf.data_types import PreferenceBatch
from lightning_rarlhf.errors import DataError
from lightning_rarlhf.rewards.classifier import PREFERENCE

if TYPE_CHECKING:
    from datasets import Dataset


class PreferenceDataModule(HumanLabelsDataModule):
    """Prompt + chosen and prompt + rejected, joined as a reward model reads prompt + response.

    A text of more than text_tokens loses its beginning, which the two have in common, not its end, where they differ.
    Pairs that are equal after the cut are left out, and counted.

    Args:
        prompt_column: holds what both texts begin with; none = the two columns hold whole texts
        chosen_column: holds the preferred text
        rejected_column: holds the other
        **kwargs: as in HumanLabelsDataModule
    """

    truncation_side = "left"
    column_settings = ("prompt_column", "chosen_column", "rejected_column")

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
        return [PREFERENCE]

    @property
    def columns(self) -> list[str]:
        return [*([] if self.prompt_column is None else [self.prompt_column]), *self.pair]

    def usable(self, rows: Dataset, split: str) -> Rows:
        """Rows with two texts that differ in the tokens that are left of them; others say nothing."""
        kept: list[int] = []
        different = 0
        for start, part in batches(rows, self.columns):
            differ = [
                n for n, (a, b) in enumerate(self._pairs(part)) if isinstance(a, str) and isinstance(b, str) and a != b
            ]
            chosen, rejected = (self.cut(side) for side in self._texts(part, differ)) if differ else ([], [])
            told_apart = [start + n for n, a, b in zip(differ, chosen, rejected, strict=True) if a != b]
            kept += told_apart
            different += len(differ)
        where = f"{self.source} ({split})"
        if not kept and different:
            raise DataError(
                f"{where}: the two texts of all {different} pairs are equal in their last {self.text_tokens} tokens; "
                "raise data.text_tokens, or give a tokenizer that tells them apart"
            )
        if not kept:
            raise DataError(
                f"{where}: no pair of two different texts in {' and '.join(self.pair)}; "
                "set data.chosen_column and data.rejected_column"
            )
        left_out = {
            "without two different texts": len(rows) - different,
            f"equal in their last {self.text_tokens} tokens": different - len(kept),
        }
        tell_left_out(len(rows), left_out, where)
        return np.array(kept, dtype=np.int64)

    def check(self, rows: Dataset, split: str) -> None:
        """Any pair teaches something; a figure with an interval needs several."""
        if split == "test" and len(rows) < 2:
            raise DataError(
                f"{self.source} ({split}): got {len(rows)} pair, expected 2 or more to measure on; give more pairs, or "
                "a larger data.test_size or data.test_fraction"
            )

    def collate(self, rows: Dataset, numbers: list[int]) -> PreferenceBatch:
        chosen, rejected = self._texts(rows[numbers], range(len(numbers)))
        ids, mask = self.encode([*chosen, *rejected])  # at once, so that both sides have one width
        (chosen_ids, rejected_ids), (chosen_mask, rejected_mask) = ids.chunk(2), mask.chunk(2)
        return PreferenceBatch(
            chosen_ids=chosen_ids, chosen_mask=chosen_mask, rejected_ids=rejected_ids, rejected_mask=rejected_mask
        )

    def _pairs(self, part: dict[str, list[Any]]) -> Iterator[tuple[Any, Any]]:
        return zip(part[self.pair[0]], part[self.pair[1]], strict=True)

    def _texts(self, part: dict[str, list[Any]], numbers: Iterable[int]) -> tuple[list[str], list[str]]:
        """The chosen and the rejected texts of some rows, each with its prompt."""
        prompts = {n: "" if self.prompt_column is None else str(part[self.prompt_column][n] or "") for n in numbers}
        chosen, rejected = ([prompt + part[name][n] for n, prompt in prompts.items()] for name in self.pair)
        return chosen, rejected
