from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_rarlhf.functional.sequences import last_token_index, position_ids, response_mask

EOS = 9


def test_positions_count_tokens_after_left_padding() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]).bool()
    assert position_ids(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4], [0, 0, 0, 0, 0]]
    assert position_ids(mask).dtype == torch.int64


def test_positions_stay_in_range_after_the_end_and_in_rows_of_padding() -> None:
    mask = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()
    assert position_ids(mask).tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]


def test_positions_accept_an_integer_mask() -> None:
    assert position_ids(torch.tensor([[0, 1, 1]])).tolist() == [[0, 0, 1]]


def test_response_ends_with_its_first_eos_included() -> None:
    tokens = torch.tensor([[1, 2, EOS, 3], [EOS, 1, 2, 3], [1, 2, 3, EOS], [1, 2, 3, 4]])
    expected = [[True, True, True, False], [True, False, False, False], [True] * 4, [True] * 4]
    assert response_mask(tokens, EOS).tolist() == expected
    assert response_mask(tokens, EOS).dtype == torch.bool


def test_padding_that_is_the_eos_token_does_not_count() -> None:
    assert response_mask(torch.tensor([[1, EOS, EOS, EOS]]), EOS).tolist() == [[True, True, False, False]]


def test_any_of_several_eos_tokens_ends_a_response() -> None:
    tokens = torch.tensor([[1, 8, 2, EOS], [1, EOS, 2, 8]])
    assert response_mask(tokens, [EOS, 8]).sum(1).tolist() == [2, 2]
    assert response_mask(tokens, (8,)).sum(1).tolist() == [2, 4]


def test_without_an_eos_token_everything_counts() -> None:
    assert response_mask(torch.tensor([[1, 2, 3]]), []).all()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_response_mask_agrees_with_a_loop(row: list[int]) -> None:
    length = row.index(0) + 1 if 0 in row else len(row)
    assert response_mask(torch.tensor([row]), 0)[0].tolist() == [t < length for t in range(len(row))]


@given(st.lists(st.booleans(), max_size=12))
def test_last_token_agrees_with_a_loop(row: list[bool]) -> None:
    mask = torch.tensor([row], dtype=torch.bool).reshape(1, len(row))
    expected = max((t for t, counts in enumerate(row) if counts), default=0)
    assert last_token_index(mask).tolist() == [expected]
    assert last_token_index(mask).dtype == torch.int64


def test_last_token_of_rows_of_several_lengths() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    assert last_token_index(mask).tolist() == [2, 0, 0]
