from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_rarlhf.functional.kl import k1, k2, k3

POLICY = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REFERENCE = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)


def test_by_hand() -> None:
    logratio = torch.tensor([math.log(2), 0.0])
    assert k1(logratio).tolist() == pytest.approx([math.log(2), 0])
    assert k2(logratio).tolist() == pytest.approx([math.log(2) ** 2 / 2, 0])
    assert k3(logratio).tolist() == pytest.approx([0.5 - 1 + math.log(2), 0])


@pytest.mark.parametrize("estimator", [k1, k3])
def test_expectation_under_the_policy_is_the_divergence(estimator) -> None:
    expected = torch.nn.functional.kl_div(REFERENCE.log(), POLICY, reduction="sum")
    estimates = estimator(POLICY.log() - REFERENCE.log())
    assert (POLICY * estimates).sum().item() == pytest.approx(expected.item())


def test_k2_equals_the_divergence_to_second_order() -> None:
    near = POLICY + 1e-4 * torch.tensor([1.0, 1.0, -2.0])
    expected = torch.nn.functional.kl_div(POLICY.log(), near, reduction="sum").item()
    assert (near * k2(near.log() - POLICY.log())).sum().item() == pytest.approx(expected, rel=1e-3)


@given(st.floats(-20, 20, width=32))
def test_k2_and_k3_are_not_negative_beyond_rounding(logratio: float) -> None:
    tensor = torch.tensor(logratio)
    assert k2(tensor) >= 0
    assert k3(tensor) >= -1e-7 * abs(logratio)


def test_k3_keeps_its_digits_near_zero() -> None:
    logratio = torch.tensor(1e-3)
    assert k3(logratio).item() == pytest.approx(5e-7, rel=1e-3)
