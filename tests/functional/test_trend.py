from __future__ import annotations

import math
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_rarlhf.functional.trend import kendall_trend


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=12, unique=True))
def test_it_is_scipys_tau_where_nothing_ties(values: list[int]) -> None:
    expected = stats.kendalltau(range(len(values)), values).statistic
    assert kendall_trend(values) == pytest.approx(expected, abs=1e-12)


def test_ties_and_nan_are_neither() -> None:
    assert kendall_trend([1.0, 1.0, 2.0]) == pytest.approx(2 / 3)
    assert kendall_trend([2.0, 2.0]) == 0
    assert kendall_trend([1.0, math.nan, 2.0]) == pytest.approx(1 / 3)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_reversal_and_monotone_change_of_unit(values: list[float]) -> None:
    assert kendall_trend(values[::-1]) == -kendall_trend(values)
    assert kendall_trend([8 * value for value in values]) == kendall_trend(values)


def test_the_chance_that_documents_the_alarm() -> None:
    strong = sum(kendall_trend(order) >= 0.8 for order in permutations(range(5)))
    assert strong / math.factorial(5) == pytest.approx(1 / 24)


def test_one_value_has_no_trend() -> None:
    with pytest.raises(ValueError, match="values: got 1, expected at least 2"):
        kendall_trend([1.0])
