"""Against a full sort, row by row, in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_rarlhf.functional.best_share import best_share


def by_sorting(values: torch.Tensor, mass: torch.Tensor, share: float) -> list[list[bool]]:
    found = []
    for row, own in zip(values.tolist(), mass.double().tolist(), strict=True):
        best, held = [False] * len(row), 0.0
        for column in sorted(range(len(row)), key=lambda column: (-row[column], column)):
            best[column] = held < share
            held += own[column]
        found.append(best)
    return found


@given(
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([1e-4, 0.1, 3.0, 100.0]),
    columns=st.sampled_from([1, 2, 60]),
    digits=st.sampled_from([1, 7]),
    share=st.sampled_from([1e-6, 0.2, 0.6, 0.999]),
)
def test_it_agrees_with_a_full_sort(seed, spread, columns, digits, share):
    """Values from one bin to many, beyond the lowest one and -inf included; rounded ones are equal now and then."""
    generator = torch.Generator().manual_seed(seed)
    values = -(spread * torch.rand(5, columns, generator=generator)).mul(10**digits).round().div(10**digits)
    values[torch.rand(5, columns, generator=generator) < 0.1] = -math.inf
    mass = torch.randint(0, 9, (5, columns), generator=generator) / 64.0  # sums are exact, so both agree to the item
    assert best_share(values, mass, share).tolist() == by_sorting(values, mass, share)


def test_by_hand_equal_values_go_by_their_column():
    values, mass = torch.tensor([[-2.0, -1.0, -1.0, -0.5]]), torch.tensor([[0.25, 0.25, 0.25, 0.25]])
    assert best_share(values, mass, 0.5).tolist() == [[False, True, False, True]]
    assert best_share(values, mass, 0.51).tolist() == [[False, True, True, True]]
    assert best_share(values, mass, 1.5).all()


@pytest.mark.parametrize("rows", [[0], [0, 1], [1]])
def test_a_row_of_nan_has_no_best_item_and_leaves_the_others_alone(rows):
    values, mass = torch.tensor([[-2.0, -1.0]] * 3), torch.tensor([[0.5, 0.5]] * 3)
    values[rows] = mass[rows] = math.nan
    found = best_share(values, mass, 0.5)
    for row in range(3):
        assert found[row].tolist() == ([False, False] if row in rows else [False, True])
    assert not best_share(values[rows], mass[rows], 0.5).any()
