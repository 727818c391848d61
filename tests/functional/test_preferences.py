"""Bradley-Terry and Plackett-Luce by hand numbers and by gradient."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from lightning_rarlhf.functional.preferences import bradley_terry_nll, plackett_luce_nll


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


def test_two_ranked_are_a_pair():
    scores = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(plackett_luce_nll(scores), bradley_terry_nll(scores[:, 0], scores[:, 1]))


def test_rankings_of_three_by_hand_and_their_probabilities_add_up_to_1():
    scores = torch.tensor([0.0, math.log(2.0), math.log(5.0)])
    # weights 1, 2, 5: first 5 of 8, then 2 of 3
    best_first = plackett_luce_nll(scores[[2, 1, 0]][None])
    assert best_first.item() == pytest.approx(-math.log(5 / 8 * 2 / 3), rel=1e-6)
    total = sum(plackett_luce_nll(scores[list(order)][None]).neg().exp() for order in itertools.permutations(range(3)))
    assert total.item() == pytest.approx(1, abs=1e-6)
