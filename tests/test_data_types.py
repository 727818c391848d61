from __future__ import annotations

import dataclasses

import pytest
import torch

from lightning_rarlhf.data_types import PPOBatch, Samples, TextBatch
from tests.test_sampling import batch_of


def samples(**changed) -> Samples:
    """Two rows of one prompt token and three of a response."""
    right = {
        "batch": batch_of([[3], [4]]),
        "sequences": torch.zeros(2, 4, dtype=torch.int64),
        "response_mask": torch.ones(2, 3, dtype=torch.bool),
        "responses": ("a", "b"),
        "hidden": torch.zeros(2, 3, 5),
        "frozen_states": torch.zeros(2, 4, 5, dtype=torch.bfloat16),
    }
    return Samples(**(right | changed))


def ppo_batch(rows: int = 5, **changed) -> PPOBatch:
    numbers = torch.arange(rows, dtype=torch.float32)[:, None].repeat(1, 2)
    right = {
        "sequences": torch.arange(rows)[:, None].repeat(1, 4),
        "attention_mask": torch.ones(rows, 4, dtype=torch.bool),
        "response_mask": torch.ones(rows, 2, dtype=torch.bool),
    } | dict.fromkeys(("logprobs", "values", "advantages", "returns"), numbers)
    return PPOBatch(**(right | changed))


def test_rows_are_chosen_in_every_field():
    chosen = batch_of([[3], [4], [5]]).select(torch.tensor([2, 0]))
    assert chosen.input_ids.tolist() == [[5], [3]]
    assert chosen.index.tolist() == [2, 0]
    assert len(chosen.prompts) == 2


def test_moving_leaves_what_is_no_tensor():
    batch = batch_of([[3], [4]])
    moved = batch.to("cpu")
    assert moved.prompts == batch.prompts
    assert torch.equal(moved.input_ids, batch.input_ids)


def test_batches_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch_of([[3]]).prompts = ("x",)  # type: ignore[misc]


@pytest.mark.parametrize(("size", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (3, [3, 2]), (5, [5]), (9, [5])])
def test_minibatches_differ_by_one_row_at_most_and_cover_all(size, sizes):
    parts = list(ppo_batch().minibatches(size, torch.Generator().manual_seed(0)))
    assert [len(part) for part in parts] == sizes
    assert sorted(int(row) for part in parts for row in part.returns[:, 0]) == [0, 1, 2, 3, 4]


def test_the_order_is_the_generators():
    first, again, other = (
        [part.returns[:, 0].tolist() for part in ppo_batch().minibatches(2, torch.Generator().manual_seed(seed))]
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_mask_that_is_not_bool_is_refused():
    with pytest.raises(ValueError, match=r"attention_mask: expected torch.bool \[1, 2\], got torch.int64"):
        TextBatch(input_ids=torch.zeros(1, 2, dtype=torch.int64), attention_mask=torch.ones(1, 2, dtype=torch.int64))


WRONG_BATCHES = {
    "sequences that are no token ids": ({"sequences": torch.zeros(5, 4)}, r"sequences: expected torch.int64 \[5, 4\]"),
    "a row more": (
        {"sequences": torch.zeros(6, 4, dtype=torch.int64), "attention_mask": torch.ones(6, 4, dtype=torch.bool)},
        r"sequences: expected torch.int64 \[5, 4\], got torch.int64 \[6, 4\]",
    ),
    "one state a row": ({"frozen_states": torch.zeros(5, 1)}, r"frozen_states: expected \[5, 4, H\], got \[5, 1\]"),
    "states of other rows": ({"frozen_states": torch.zeros(7, 4, 5)}, r"frozen_states: expected \[5, 4, H\], got \[7"),
}


@pytest.mark.parametrize("case", WRONG_BATCHES)
def test_a_ppo_batch_of_other_shapes_is_refused(case):
    ppo_batch(frozen_states=torch.zeros(5, 4, 5, dtype=torch.bfloat16))
    changed, message = WRONG_BATCHES[case]
    with pytest.raises(ValueError, match=message):
        ppo_batch(**changed)


WRONG_SAMPLES = {
    "frozen_states": (torch.zeros(2, 3, 5), r"frozen_states: expected \[2, 4, H\], got \[2, 3, 5\]"),
    "hidden": (torch.zeros(1, 3, 5), r"hidden: expected \[2, 3, H\], got \[1, 3, 5\]"),
}


@pytest.mark.parametrize("name", WRONG_SAMPLES)
def test_states_of_other_samples_are_refused(name):
    samples()
    states, message = WRONG_SAMPLES[name]
    with pytest.raises(ValueError, match=message):
        samples(**{name: states})
