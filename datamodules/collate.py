"""Rows of a tokenized dataset to one batch of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_rarlhf.data_types import PromptBatch, TextBatch

if TYPE_CHECKING:
    from datasets import Dataset


def collate_prompts(dataset: Dataset, pad_id: int, rows: list[int], width: int) -> PromptBatch:
    """Left-padded prompts, B = len(rows), P = `width` tokens; columns as of `tokenize_prompts`."""
    columns = dataset[rows]
    input_ids, attention_mask = pad(columns["input_ids"], width, pad_id, left=True)
    return PromptBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        index=torch.tensor(columns["index"], dtype=torch.int64),
        prompts=tuple(columns["prompt"]),
        labels=torch.tensor(columns["label"], dtype=torch.int64),
        source_scores=torch.tensor(columns["score"], dtype=torch.float32),
    )


def collate_texts(dataset: Dataset, pad_id: int, rows: list[int], width: int) -> TextBatch:
    """Right-padded texts, B = len(rows), S = `width` tokens; columns as of `tokenize_texts`."""
    input_ids, attention_mask = pad(dataset[rows]["input_ids"], width, pad_id, left=False)
    return TextBatch(input_ids=input_ids, attention_mask=attention_mask)


def pad(texts: list[list[int]], width: int, pad_id: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Pad token ids to `width`.

    Returns:
        i64 and bool [B, width]: ids, and a mask whose True = a token of the text.
    """
    input_ids = torch.full((len(texts), width), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(texts), width), dtype=torch.bool)
    for row, ids in enumerate(texts):
        columns = slice(width - len(ids), width) if left else slice(0, len(ids))
        input_ids[row, columns] = torch.tensor(ids, dtype=torch.int64)
        attention_mask[row, columns] = True
    return input_ids, attention_mask
