"""Bradley-Terry by hand numbers and by gradient."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_rarlhf.functional.preferences import bradley_terry_nll


def test_bradley_terry_by_hand():
    chosen, rejected = torch.tensor([math.log(3.0), 0.0, -1.0]), torch.tensor([0.0, 0.0, 2.0])
    # odds 3 : 1 → ¾; even → ½; σ(−3)
    expected = [-math.log(0.75), math.log(2), math.log(1 + math.exp(3))]
    assert bradley_terry_nll(chosen, rejected).tolist() == pytest.approx(expected, rel=1e-6)


def test_its_gradient_is_the_probability_of_being_wrong():
    chosen, rejected = torch.tensor([0.7], requires_grad=True), torch.tensor([-0.4], requires_grad=True)
    bradley_terry_nll(chosen, rejected).sum().backward()
    wrong = 1 / (1 + math.exp(1.1))
    assert chosen.grad.item() == pytest.approx(-wrong, rel=1e-5)
    assert rejected.grad.item() == pytest.approx(wrong, rel=1e-5)


def test_large_margins_overflow_nowhere():
    assert bradley_terry_nll(torch.tensor([0.0, 1e4]), torch.tensor([1e4, 0.0])).tolist() == [1e4, 0.0]
