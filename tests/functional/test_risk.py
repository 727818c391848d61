from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_rarlhf.errors import ScheduleError
from lightning_rarlhf.functional.risk import (
    cvar,
    scheduled_risk_level,
    tail_rows,
    tail_size,
    value_at_risk,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures" / "golden.json").read_text())
IMDB = {"total": 194, "risk_level": 0.4, "warmup": 30, "rho": 0.95}
JIGSAW = {"total": 288, "risk_level": 0.2, "warmup": 30, "rho": 0.95}
# Scores with many ties, signed zeros and infinities among them.
scores = st.lists(
    st.sampled_from([-math.inf, -2.5, -1.0, -0.0, 0.0, 0.5, 3.0, math.inf]) | st.floats(-5, 5, width=32), min_size=1
)
levels = st.integers(1, 1000).map(lambda thousandths: thousandths / 1000)


def exact_tail(batch_size: int, risk_level: float) -> int:
    return math.ceil(Fraction(str(risk_level)) * batch_size)


def exact_schedule(m: int, b: int, total: int, risk_level: float, warmup: int, rho: float) -> int:
    """Eqs. 8-10 in rational numbers, from the decimal figures that a person writes."""
    alpha, end = Fraction(str(risk_level)), math.ceil(Fraction(str(rho)) * total)
    if m <= warmup:
        return b
    if m >= end:
        return math.ceil(alpha * b)
    return math.ceil(b * max(alpha, 1 - (1 - alpha) / (end - warmup) * (m - warmup)))


# Tail size


@pytest.mark.parametrize(
    ("batch_size", "risk_level", "expected"),
    [(128, 0.4, 52), (128, 0.2, 26), (30, 0.1, 3), (10, 0.7, 7), (1, 0.001, 1), (8, 1.0, 8), (3, 1e-15, 1)],
)
def test_tail_size_by_hand(batch_size: int, risk_level: float, expected: int) -> None:
    assert tail_size(batch_size, risk_level) == expected


def test_tail_size_agrees_with_rational_numbers() -> None:
    for batch_size in range(1, 601):
        for hundredths in range(1, 101):
            level = hundredths / 100
            assert tail_size(batch_size, level) == exact_tail(batch_size, level), (batch_size, level)


@given(st.integers(1, 1_000_000), st.integers(1, 10**7).map(lambda n: n / 10**7))
def test_tail_size_agrees_with_rational_numbers_at_random(batch_size: int, level: float) -> None:
    assert tail_size(batch_size, level) == exact_tail(batch_size, level)


@given(st.integers(1, 10_000), st.floats(1e-9, 1))
def test_tail_size_is_a_count_that_grows_with_the_level(batch_size: int, level: float) -> None:
    size = tail_size(batch_size, level)
    assert 1 <= size <= batch_size
    assert tail_size(batch_size, 1.0) == batch_size
    assert tail_size(batch_size, level / 2) <= size


@pytest.mark.parametrize("level", [0.0, -0.1, 1.0001, math.nan, math.inf])
def test_tail_size_refuses_a_level_out_of_range(level: float) -> None:
    with pytest.raises(ValueError, match=rf"risk_level: got {level}, expected more than 0 and at most 1"):
        tail_size(8, level)


def test_tail_size_refuses_an_empty_batch() -> None:
    with pytest.raises(ValueError, match="batch_size: got 0, expected at least 1"):
        tail_size(0, 0.5)


# Schedule


@pytest.mark.parametrize("case", GOLDEN["schedule"], ids=lambda c: f"B{c['B']}-M{c['M']}")
def test_golden_schedule(case: dict) -> None:
    settings = {"total": case["M"], "risk_level": case["alpha"], "warmup": case["n"], "rho": case["rho"]}
    sizes = [tail_size(case["B"], scheduled_risk_level(m, **settings)) for m in range(case["M"])]
    assert sizes == case["tail_size"]


@pytest.mark.parametrize(
    ("settings", "first_drop", "final", "mean_kept"), [(IMDB, 33, 52, 0.738), (JIGSAW, 33, 26, 0.627)]
)
def test_schedules_of_the_paper(settings: dict, first_drop: int, final: int, mean_kept: float) -> None:
    sizes = [tail_size(128, scheduled_risk_level(m, **settings)) for m in range(settings["total"])]
    assert next(m for m, size in enumerate(sizes) if size < 128) == first_drop
    assert sizes[-1] == final
    assert sum(sizes) / 128 / len(sizes) == pytest.approx(mean_kept, abs=5e-4)


@given(
    batch_size=st.integers(1, 512),
    total=st.integers(1, 400),
    risk_level=st.integers(1, 100).map(lambda n: n / 100),
    warmup=st.integers(0, 450),
    rho=st.integers(1, 100).map(lambda n: n / 100),
)
def test_schedule_agrees_with_rational_numbers(
    batch_size: int, total: int, risk_level: float, warmup: int, rho: float
) -> None:
    settings = {"total": total, "risk_level": risk_level, "warmup": warmup, "rho": rho}
    sizes = [tail_size(batch_size, scheduled_risk_level(m, **settings)) for m in range(total + 1)]
    assert sizes == [exact_schedule(m, batch_size, **settings) for m in range(total + 1)]
    assert sizes == sorted(sizes, reverse=True)


def test_levels_by_hand() -> None:
    settings = {"total": 100, "risk_level": 0.2, "warmup": 10, "rho": 0.9}
    found = [scheduled_risk_level(m, **settings) for m in (0, 10, 11, 50, 89, 90, 99, 5000)]
    assert found == pytest.approx([1, 1, 0.99, 0.6, 0.21, 0.2, 0.2, 0.2])
    assert found[:2] + found[5:] == [1, 1, 0.2, 0.2, 0.2]


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"total": 200}, 0.811765), ({"risk_level": 0.6}, 0.8), ({"warmup": 30}, 0.733333), ({"rho": 0.5}, 0.2)],
)
def test_every_setting_of_the_schedule_matters(change: dict, expected: float) -> None:
    settings = {"total": 100, "risk_level": 0.2, "warmup": 10, "rho": 0.9}
    assert scheduled_risk_level(50, **settings) == pytest.approx(0.6)
    assert scheduled_risk_level(50, **(settings | change)) == pytest.approx(expected, abs=1e-6)


def test_rounding_does_not_delay_the_final_level() -> None:
    assert math.ceil(0.07 * 100) == 8  # what a bare product would make of it
    levels = [scheduled_risk_level(m, total=100, risk_level=0.2, warmup=0, rho=0.07) for m in (6, 7)]
    assert levels == [pytest.approx(1 - 0.8 * 6 / 7), 0.2]


def test_warmup_as_long_as_the_run_keeps_everything_until_it_ends() -> None:
    settings = {"total": 10, "risk_level": 0.5, "warmup": 9, "rho": 0.5}
    assert [scheduled_risk_level(m, **settings) for m in (0, 5, 9, 10)] == [1, 1, 1, 0.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"risk_level": 0.0}, "risk_level: got 0.0, expected more than 0 and at most 1"),
        ({"risk_level": 1.5}, "risk_level: got 1.5"),
        ({"rho": 0.0}, "rho: got 0.0, expected more than 0 and at most 1"),
        ({"rho": 1.1}, "rho: got 1.1"),
        ({"warmup": -1}, "warmup: got -1, expected at least 0"),
        ({"total": 0}, "total: got 0, expected at least 1"),
    ],
)
def test_schedule_refuses_settings_out_of_range(change: dict, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        scheduled_risk_level(0, **(IMDB | change))


def test_schedule_refuses_a_negative_iteration() -> None:
    with pytest.raises(ScheduleError, match="iteration: got -1, expected at least 0"):
        scheduled_risk_level(-1, **IMDB)


# VaR and CVaR


def test_var_and_cvar_by_hand() -> None:
    values = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0])
    levels = (0.2, 0.21, 0.4, 0.5, 1.0)
    assert [value_at_risk(values, a).item() for a in levels] == [1, 2, 2, 3, 5]
    assert [cvar(values, a).item() for a in levels] == [1, 1.5, 1.5, 2, 3]


def test_cvar_takes_exactly_its_count_under_ties() -> None:
    assert cvar(torch.tensor([0.0, 2.0, 2.0, 2.0]), 0.5).item() == 1


@given(scores, levels)
def test_var_is_the_smallest_value_whose_distribution_function_reaches_alpha(row: list[float], alpha: float) -> None:
    exact = Fraction(str(alpha))
    reached = [x for x in row if Fraction(sum(y <= x for y in row), len(row)) >= exact]
    assert value_at_risk(torch.tensor(row), alpha).item() == min(reached)


@given(st.lists(st.floats(-5, 5, width=32), min_size=1), levels)
def test_cvar_is_the_mean_of_the_sorted_head_and_of_the_tail_rows(row: list[float], alpha: float) -> None:
    values, size = torch.tensor(row), exact_tail(len(row), alpha)
    found = cvar(values, alpha).item()
    assert found == pytest.approx(sum(sorted(row)[:size]) / size, abs=1e-5)
    assert found == pytest.approx(values[tail_rows(values, size)].mean().item(), abs=1e-5)
    assert found <= value_at_risk(values, alpha).item() + 1e-5
    assert found <= values.mean().item() + 1e-5
    assert cvar(values, 1.0).item() == pytest.approx(values.mean().item(), abs=1e-5)


def test_var_agrees_with_numpy() -> None:
    values = torch.randn(501, generator=torch.Generator().manual_seed(0))
    for alpha in (0.01, 0.1, 0.25, 0.5, 0.999):
        expected = np.quantile(values.numpy(), alpha, method="inverted_cdf")
        assert value_at_risk(values, alpha).item() == expected


# Tail rows


@pytest.mark.parametrize("case", GOLDEN["ppo"], ids=lambda c: f"B{c['B']}-tail{c['tail_size']}")
def test_golden_tail_by_lambda_return(case: dict) -> None:
    statistic = torch.tensor(case["expect"]["returns"])[:, 0]
    expected = [row for row, kept in enumerate(case["expect"]["kept"]) if kept]
    assert tail_rows(statistic, case["tail_size"], ties="keep").tolist() == expected
    assert tail_rows(statistic, case["tail_size"], ties="exact").tolist() == expected


def test_ties_at_the_border_by_hand() -> None:
    statistic = torch.tensor([2.0, 1.0, 2.0, 3.0, 2.0])
    assert tail_rows(statistic, 2).tolist() == [0, 1]
    assert tail_rows(statistic, 3).tolist() == [0, 1, 2]
    assert tail_rows(statistic, 2, ties="keep").tolist() == [0, 1, 2, 4]
    assert tail_rows(statistic, 1, ties="keep").tolist() == [1]
    assert tail_rows(statistic, 2).dtype == tail_rows(statistic, 2, ties="keep").dtype == torch.int64


@given(scores, st.data())
def test_tail_agrees_with_a_stable_sort(row: list[float], data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(row)))
    statistic = torch.tensor(row)
    ranked = sorted(range(len(row)), key=lambda b: row[b])
    exact, keep = tail_rows(statistic, size).tolist(), tail_rows(statistic, size, ties="keep").tolist()
    assert exact == sorted(ranked[:size])
    assert keep == [b for b in range(len(row)) if row[b] <= row[ranked[size - 1]]]
    assert set(exact) <= set(keep)


def test_tail_is_stable_on_ties_at_any_size() -> None:
    assert tail_rows(torch.zeros(5000), 1234).tolist() == list(range(1234))


@given(st.permutations(range(9)), st.integers(1, 9))
def test_which_episodes_are_kept_does_not_depend_on_their_order(order: list[int], size: int) -> None:
    statistic = torch.tensor([0.3, -1.0, 2.0, 7.0, -3.5, 0.0, 1.0, -0.2, 5.0])
    shuffled = torch.tensor(order)[tail_rows(statistic[order], size)]
    assert sorted(shuffled.tolist()) == tail_rows(statistic, size).tolist()


def test_the_whole_batch_is_kept_at_risk_level_one() -> None:
    statistic = torch.randn(7)
    assert tail_rows(statistic, tail_size(7, 1.0)).tolist() == list(range(7))


@pytest.mark.parametrize("size", [0, -1, 4])
def test_tail_refuses_a_size_out_of_range(size: int) -> None:
    with pytest.raises(ValueError, match=f"size: got {size}, expected 1 to 3"):
        tail_rows(torch.tensor([1.0, 2.0, 3.0]), size)


def test_tail_refuses_unknown_ties() -> None:
    with pytest.raises(ValueError, match="ties: got 'drop', expected 'exact' or 'keep'"):
        tail_rows(torch.tensor([1.0]), 1, ties="drop")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.tensor([1.0, math.nan, 2.0, math.nan]), r"got NaN in 2 of 4 rows \(first: 1\)"),
        (torch.tensor([]), r"got shape \[0\], expected one dimension"),
        (torch.zeros(2, 3), r"got shape \[2, 3\], expected one dimension"),
    ],
)
@pytest.mark.parametrize("function", [value_at_risk, cvar, lambda values, _: tail_rows(values, 1)])
def test_values_that_cannot_be_ranked_are_refused(function, values: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(values, 0.5)


@pytest.mark.parametrize("function", [value_at_risk, cvar])
def test_a_level_out_of_range_is_refused(function) -> None:
    with pytest.raises(ValueError, match=r"got 1\.2, expected more than 0 and at most 1"):
        function(torch.ones(3), 1.2)
