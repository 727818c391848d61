from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.loader import PromptLoader
from lightning_rarlhf.errors import DataError

Batch = tuple[list[int], int]


def loader(rows: int = 23, *, batch_size: int = 5, shuffle: bool = True, **options: Any) -> PromptLoader[Batch]:
    """Delivers row numbers and width; row n has n + 1 tokens."""
    lengths = np.arange(1, rows + 1, dtype=np.int64)
    return PromptLoader(
        lengths, lambda numbers, width: (numbers, width), batch_size=batch_size, shuffle=shuffle, **options
    )


def rows_of(batches: Any) -> list[list[int]]:
    return [numbers for numbers, _ in batches]


def test_training_epoch_is_a_permutation_without_the_incomplete_batch() -> None:
    batches = rows_of(loader())
    assert len(batches) == len(loader()) == 4
    assert all(len(batch) == 5 for batch in batches)
    rows = list(itertools.chain(*batches))
    assert len(set(rows)) == 20
    assert rows != sorted(rows)


def test_each_epoch_has_its_order_which_the_seed_decides() -> None:
    first = loader(seed=1)
    epochs = [rows_of(first) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    again = loader(seed=1)
    assert [rows_of(again) for _ in range(3)] == epochs
    assert rows_of(loader(seed=2)) != epochs[0]


def test_order_of_an_epoch_from_its_definition() -> None:
    numbers = loader(seed=4)
    list(numbers)
    expected = np.random.default_rng([4, 1]).permutation(23)[:20].reshape(4, 5).tolist()
    assert rows_of(numbers) == expected


@given(rows=st.integers(1, 60), batch_size=st.integers(1, 70))
def test_evaluation_covers_all_rows_in_order_in_even_batches_every_time(rows: int, batch_size: int) -> None:
    numbers = loader(rows, batch_size=batch_size, shuffle=False)
    for _ in range(2):
        batches = rows_of(numbers)
        assert list(itertools.chain(*batches)) == list(range(rows))
        sizes = {len(batch) for batch in batches}
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1
        assert len(batches) == len(numbers) == -(-rows // batch_size)


def test_evaluation_leaves_no_process_without_a_row() -> None:
    ranks = [rows_of(loader(8, batch_size=2, shuffle=False, rank=rank, world_size=3)) for rank in range(3)]
    assert [[len(rows) for rows in batches] for batches in ranks] == [[2, 2], [1, 1], [1, 1]]


def test_evaluation_starts_anew_after_a_partial_pass() -> None:
    numbers = loader(shuffle=False)
    next(iter(numbers))
    assert rows_of(numbers)[0][0] == 0


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_global_batch(shuffle: bool, world_size: int) -> None:
    whole = list(loader(shuffle=shuffle))
    ranks = [list(loader(shuffle=shuffle, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for number, (rows, width) in enumerate(whole):
        assert width == max(rows) + 1
        for rank, batches in enumerate(ranks):
            assert batches[number] == (rows[rank::world_size], width)  # as wide as its neighbours


# position


@pytest.mark.parametrize("delivered", [0, 1, 3, 4, 5, 8, 11])
def test_a_restored_loader_goes_on_with_the_next_batch(delivered: int) -> None:
    def stream(numbers: PromptLoader[Batch]) -> Any:
        while True:
            yield from numbers

    original = loader(seed=3)
    batches = stream(original)
    for _ in range(delivered):
        next(batches)
    state = original.state_dict()
    expected = [next(batches) for _ in range(6)]

    restored = loader(seed=9)  # the checkpoint's order counts, whatever the command line says
    restored.load_state_dict(state)
    assert list(itertools.islice(stream(restored), 6)) == expected


def test_position_counts_delivered_batches_only() -> None:
    numbers = loader()
    batches = iter(numbers)
    assert numbers.state_dict()["delivered"] == 0
    next(batches)
    assert numbers.state_dict()["delivered"] == 1


def test_a_loader_that_is_left_at_its_length_begins_the_next_epoch() -> None:
    """Lightning stops at len() and never sees StopIteration."""
    numbers = loader()
    assert len(list(itertools.islice(iter(numbers), len(numbers)))) == 4
    assert numbers.state_dict()["epoch"] == 0
    assert len(list(itertools.islice(iter(numbers), len(numbers)))) == 4
    assert numbers.state_dict()["epoch"] == 1


def test_an_interrupted_epoch_is_continued() -> None:
    numbers, whole = loader(), rows_of(loader())
    start = rows_of(itertools.islice(iter(numbers), 3))
    assert start + rows_of(numbers) == whole


@pytest.mark.parametrize(("name", "other"), [("rows", {"rows": 24}), ("batch_size", {"batch_size": 4})])
def test_state_of_other_data_is_refused(name: str, other: dict[str, int]) -> None:
    with pytest.raises(DataError, match=f"the checkpoint has {name}="):
        loader(**other).load_state_dict(loader().state_dict())


def test_state_survives_another_number_of_processes() -> None:
    one = loader()
    next(iter(one))
    two = loader(rank=1, world_size=2)
    two.load_state_dict(one.state_dict())
    assert next(iter(two))[0] == next(iter(one))[0][1::2]


# sizes


def test_batch_larger_than_the_training_set() -> None:
    with pytest.raises(DataError, match="batch_size=8 is larger than the training set of 7 rows"):
        loader(7, batch_size=8)


def test_batch_smaller_than_the_number_of_processes() -> None:
    with pytest.raises(DataError, match="batch_size=2 cannot be dealt to 3 processes"):
        loader(batch_size=2, world_size=3)


def test_fewer_evaluation_rows_than_processes() -> None:
    with pytest.raises(DataError, match="1 rows cannot be dealt to 2 processes"):
        loader(1, shuffle=False, world_size=2)
