from __future__ import annotations

import math
import statistics

import pytest
import torch

from lightning_rarlhf.functional import masked
from lightning_rarlhf.functional.masked import masked_mean, masked_var, masked_whiten

VALUES = torch.tensor([[1.0, 2.0, math.nan], [6.0, math.inf, -math.inf]])
MASK = torch.tensor([[True, True, False], [True, False, False]])
COUNTED = [1.0, 2.0, 6.0]


def test_mean_of_everything_by_hand() -> None:
    assert masked_mean(VALUES, MASK).item() == 3.0


def test_mean_along_a_dimension_by_hand() -> None:
    assert masked_mean(VALUES, MASK, dim=1).tolist() == [1.5, 6.0]
    assert masked_mean(VALUES, MASK, dim=0)[:2].tolist() == [3.5, 2.0]


def test_mean_of_nothing_is_nan_and_only_there() -> None:
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(VALUES, torch.zeros_like(MASK)).isnan()
    assert masked_mean(VALUES, mask, dim=1).isnan().tolist() == [False, True]


def test_gradient_of_the_mean_by_hand() -> None:
    values = VALUES.clone().requires_grad_()
    masked_mean(values, MASK).backward()
    assert values.grad is not None
    assert torch.allclose(values.grad, MASK / 3)


def test_gradient_stays_inside_the_mask() -> None:
    values = VALUES.clone().requires_grad_()
    weights = torch.tensor([[0.3, -0.2, 1.0], [0.5, 1.0, 1.0]])
    (masked_whiten(values, MASK) * weights).sum().backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()
    assert (values.grad[~MASK] == 0).all()
    assert (values.grad[MASK] != 0).all()


def test_variance_agrees_with_the_standard_library() -> None:
    assert masked_var(VALUES, MASK).item() == pytest.approx(statistics.variance(COUNTED))


@pytest.mark.parametrize("count", [0, 1])
def test_variance_of_fewer_than_two_is_zero(count: int) -> None:
    mask = torch.arange(3) < count
    assert masked_var(torch.tensor([5.0, math.nan, 1.0]), mask).item() == 0


def test_whitened_values_by_hand() -> None:
    deviation = statistics.stdev(COUNTED)
    expected = torch.tensor([[(1 - 3) / deviation, (2 - 3) / deviation, 0], [(6 - 3) / deviation, 0, 0]])
    assert torch.allclose(masked_whiten(VALUES, MASK), expected, atol=1e-6)


def test_whitening_leaves_unit_variance_and_mean_0() -> None:
    whitened = masked_whiten(VALUES, MASK)
    assert whitened[MASK].std().item() == pytest.approx(1, abs=1e-6)
    assert whitened[MASK].mean().item() == pytest.approx(0, abs=1e-6)
    assert (whitened[~MASK] == 0).all()


def test_whitening_a_single_token_or_none_gives_zero() -> None:
    one = torch.tensor([[False, True], [False, False]])
    values = torch.tensor([[math.nan, 4.0], [1.0, 2.0]])
    assert masked_whiten(values, one).eq(0).all()
    assert masked_whiten(values, torch.zeros_like(one)).eq(0).all()


@pytest.mark.parametrize("value", [2.5, 3.3, -17.123, 0.1, 1e6 / 3, 1e-9, 0.0])
@pytest.mark.parametrize("shape", [(4, 5), (3, 7), (128, 48)])
def test_whitening_values_that_do_not_vary_gives_zero(value: float, shape: tuple[int, int]) -> None:
    mask = torch.ones(shape, dtype=torch.bool)
    mask[0, 0] = False
    equal = torch.full(shape, value)
    assert masked_whiten(equal, mask).eq(0).all()
    rounded = equal.nextafter(torch.full_like(equal, math.inf)).where(torch.arange(shape[1]) % 2 == 0, equal)
    assert masked_whiten(rounded, mask).eq(0).all()


def test_whitening_what_varies_little_in_relation_to_its_size_gives_unit_variance() -> None:
    values = 1e4 + torch.arange(20.0)  # 3e-3 of their size apart
    assert masked_whiten(values, torch.ones(20) > 0).std().item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_whitening_hides_no_value_that_is_not_finite(broken: float) -> None:
    values = torch.full((2, 3), 2.5)
    values[1, 1] = broken
    assert not masked_whiten(values, torch.ones(2, 3) > 0).isfinite().any()


def test_inputs_are_not_changed() -> None:
    values, mask = VALUES.clone(), MASK.clone()
    masked_whiten(values, mask)
    assert torch.equal(values.nan_to_num(), VALUES.nan_to_num())
    assert torch.equal(mask, MASK)


def test_whitening_reads_the_mean_once(monkeypatch) -> None:
    read = []
    monkeypatch.setattr(masked, "masked_mean", lambda *args: read.append(args) or masked_mean(*args))
    masked_whiten(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[True, True, False]]))
    assert len(read) == 1
