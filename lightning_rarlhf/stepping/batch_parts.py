"""A batch of prompts in parts that are sampled one after the other, and their samples as one batch again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_rarlhf.data_types import PromptBatch, Samples


def parts_of(batch: PromptBatch, size: int | None) -> list[PromptBatch]:
    """The batch's rows in order, `size` to a part and fewer in the last, as wide as the batch; None = in one part."""
    if size is None or size >= len(batch):
        return [batch]
    return [batch.select(rows) for rows in torch.arange(len(batch)).split(size)]


def joined(batch: PromptBatch, parts: Sequence[Samples], pad_token_id: int) -> Samples:
    """Samples of `batch` from those of its parts, as wide as the longest response of all.

    Args:
        batch: what `parts_of` took apart.
        parts: samples of each part, in order; a field that one lacks, all lack.
        pad_token_id: stands after a response's end.
    """
    if len(parts) == 1:
        return parts[0]
    prompt = batch.input_ids.shape[1]
    width = max(part.response_mask.shape[1] for part in parts)
    return Samples(
        batch=batch,
        sequences=_rows([part.sequences for part in parts], prompt + width, pad_token_id),
        response_mask=_rows([part.response_mask for part in parts], width),
        responses=tuple(response for part in parts for response in part.responses),
        logprobs=_if_kept([part.logprobs for part in parts], width),
        entropy=_if_kept([part.entropy for part in parts], width),
        hidden=_if_kept([part.hidden for part in parts], width),
        frozen_states=_if_kept([part.frozen_states for part in parts], prompt + width),
    )


def _if_kept(tables: Sequence[Tensor | None], columns: int) -> Tensor | None:
    kept = [table for table in tables if table is not None]
    return _rows(kept, columns) if kept else None


def _rows(tables: Sequence[Tensor], columns: int, empty: float = 0.0) -> Tensor:
    """[b, C, ...] of each part → [B, columns, ...], `empty` in the columns that a part lacks."""
    whole = tables[0].new_full((sum(map(len, tables)), columns, *tables[0].shape[2:]), empty)
    start = 0
    for table in tables:
        whole[start : start + len(table), : table.shape[1]] = table
        start += len(table)
    return whole
