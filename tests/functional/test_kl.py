from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_rarlhf.functional.kl import k2

POLICY = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REFERENCE = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)


def test_by_hand() -> None:
    logratio = torch.tensor([math.log(2), 0.0])
    assert k2(logratio).tolist() == pytest.approx([math.log(2) ** 2 / 2, 0])


def test_k2_equals_the_divergence_to_second_order() -> None:
    near = POLICY + 1e-4 * torch.tensor([1.0, 1.0, -2.0])
    expected = torch.nn.functional.kl_div(POLICY.log(), near, reduction="sum").item()
    assert (near * k2(near.log() - POLICY.log())).sum().item() == pytest.approx(expected, rel=1e-3)


@given(st.floats(-20, 20, width=32))
def test_it_is_not_negative(logratio: float) -> None:
    assert k2(torch.tensor(logratio)) >= 0
