from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from lightning_rarlhf.data_types import Samples
from lightning_rarlhf.stepping.batch_parts import joined, parts_of
from tests.test_ppo_module import prompt_batch

PAD = 2


def samples_of(batch, width, *, kept=True, hidden=4) -> Samples:
    """Every row as long as the widest, numbered by prompt and column."""
    numbers = batch.index[:, None] * 100 + torch.arange(width)
    states = numbers[..., None].expand(-1, -1, hidden).float()
    prompt_states = torch.zeros(len(batch), batch.input_ids.shape[1], hidden)
    return Samples(
        batch=batch,
        sequences=torch.cat([batch.input_ids, numbers], dim=1),
        response_mask=torch.ones_like(numbers, dtype=torch.bool),
        responses=tuple(f"r{number}" for number in batch.index.tolist()),
        logprobs=-numbers.float() if kept else None,
        entropy=numbers.float() / 2 if kept else None,
        hidden=states if kept else None,
        frozen_states=torch.cat([prompt_states, states], dim=1) if kept else None,
    )


@pytest.mark.parametrize(("size", "rows"), [(3, [3, 3, 1]), (7, [7]), (8, [7]), (None, [7]), (1, [1] * 7)])
def test_rows_keep_their_order_and_the_last_part_is_smaller(size, rows):
    batch = prompt_batch(7)
    parts = parts_of(batch, size)
    assert [len(part) for part in parts] == rows
    assert torch.cat([part.index for part in parts]).tolist() == list(range(7))
    assert {part.input_ids.shape[1] for part in parts} == {2}


def test_parts_of_unlike_widths_become_one_batch():
    batch = prompt_batch(5, first=10)
    parts = [samples_of(part, width) for part, width in zip(parts_of(batch, 2), (3, 1, 4), strict=True)]
    whole = joined(batch, parts, PAD)
    assert whole.batch is batch
    assert whole.responses == ("r10", "r11", "r12", "r13", "r14")
    assert whole.response_mask.tolist() == [[True] * n + [False] * (4 - n) for n in (3, 3, 1, 1, 4)]
    assert whole.sequences[2].tolist() == [*batch.input_ids[2].tolist(), 1200, PAD, PAD, PAD]
    assert whole.sequences[4, 2:].tolist() == [1400, 1401, 1402, 1403]
    assert whole.logprobs[0].tolist() == [-1000, -1001, -1002, 0]
    assert whole.entropy[3].tolist() == [650, 0, 0, 0]
    assert whole.hidden[0, :, 0].tolist() == [1000, 1001, 1002, 0]
    assert whole.frozen_states[0, :, 3].tolist() == [0, 0, 1000, 1001, 1002, 0]


def test_what_was_not_kept_stays_away():
    batch = prompt_batch(4)
    whole = joined(batch, [samples_of(part, 2, kept=False) for part in parts_of(batch, 3)], PAD)
    kept = {field.name for field in fields(whole) if getattr(whole, field.name) is not None}
    assert kept == {"batch", "sequences", "response_mask", "responses"}


def test_a_single_part_is_the_batch_itself():
    batch = prompt_batch(4)
    samples = samples_of(batch, 2)
    assert joined(batch, [samples], PAD) is samples
