from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_rarlhf.functional.tail_intervals import cvar_interval
from lightning_rarlhf.functional.worst_shares import first_share_means, worst_share_means


def test_worst_share_means_by_hand() -> None:
    means = worst_share_means([4.0, -10.0, 2.0, 0.0])  # shares hold 1, 2, 3, 4 scores up to 25, 50, 75, 100 %
    assert means[0] == means[24] == -10.0
    assert means[25] == means[49] == -5.0
    assert means[50] == means[74] == pytest.approx(-8 / 3)
    assert means[99] == -1.0


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=60))
def test_worst_share_means_rise_from_the_minimum_to_the_mean(values: list[float]) -> None:
    means = worst_share_means(values)
    assert means[0] == min(values)
    assert means[99] == pytest.approx(np.mean(values), abs=1e-9)
    assert (np.diff(means) >= -1e-9).all()


def test_the_curve_passes_through_the_marked_cvar() -> None:
    values = np.random.default_rng(0).normal(size=237)
    assert worst_share_means(values)[9] == pytest.approx(cvar_interval(values, 0.1, resamples=200).estimate)


def test_a_share_holds_a_rounded_up_number_of_values() -> None:
    means = first_share_means(np.arange(150.0)[None])[0]
    assert means[0] == np.mean([0, 1])  # 1 % of 150 is 1.5
    assert means[9] == np.arange(15).mean()


def test_the_order_that_is_given_counts_row_by_row() -> None:
    means = first_share_means(np.array([[2.0, 1.0], [5.0, 9.0]]))
    assert means[:, [0, 49, 50, 99]].tolist() == [[2.0, 2.0, 1.5, 1.5], [5.0, 5.0, 7.0, 7.0]]
