"""Each formula against numbers worked out by hand, and what it must leave alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_rarlhf.errors import UserError
from lightning_rarlhf.functional.decoding import (
    best_of_k_kl,
    dexperts,
    gedi,
    nucleus,
    rectify,
    self_debias,
    wanted_logposterior,
)

INF = math.inf


def logits_of(*probabilities):
    return torch.tensor([probabilities]).log()


def test_the_nucleus_holds_the_mass_and_one_token_that_may_be_drawn():
    base = logits_of(0.7, 0.2, 0.07, 0.03)
    assert nucleus(base, 0.9).tolist() == [[True, True, False, False]]
    assert nucleus(base, 1.0).all()
    ban = torch.tensor([[True, False, False, False]])  # of the rest, .2/.3 = .67 and .07/.3 = .23 hold .9
    assert nucleus(base, 0.9, ban).tolist() == [[False, True, True, False]]
    assert nucleus(base, 0.5, ban).tolist() == [[False, True, False, False]]


def test_dexperts_by_hand():
    base, inside = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[True, True, False]])
    expert, anti = torch.tensor([[0.5, 0.0, 9.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    assert dexperts(base, expert, anti, 2.0, inside).tolist() == [[2.0, 0.0, -INF]]


def test_the_posterior_by_hand():
    # 4 tokens: likelihoods e^-8 and e^-12 count as e^-2 and e^-3
    wanted, unwanted = torch.tensor([-8.0, -12.0]), torch.tensor([-12.0, -8.0])
    got = wanted_logposterior(wanted, unwanted, torch.tensor([4, 4])).exp()
    torch.testing.assert_close(got, torch.tensor([math.e / (1 + math.e), 1 / (1 + math.e)]))


def test_gedi_weights_by_the_posterior_and_filters_by_mass_and_threshold():
    base, wanted = logits_of(0.5, 0.3, 0.2), torch.tensor([[0.1, 0.9, 0.5]]).log()
    weighted = gedi(base, wanted, omega=2.0, rho=1.0, tau=0.8).exp()
    torch.testing.assert_close(weighted, torch.tensor([[0.5 * 0.01, 0.3 * 0.81, 0.2 * 0.25]]))
    # by posterior: token 1 holds .243/.298 = .82 of the mass, then token 2 up to .98, then token 0
    kept = {rho: (gedi(base, wanted, 2.0, rho, tau=1.0) > -INF).tolist()[0] for rho in (0.2, 0.9, 0.999)}
    assert kept == {0.2: [False, True, False], 0.9: [False, True, True], 0.999: [True, True, True]}
    assert (gedi(base, wanted, 2.0, 0.2, tau=0.4) > -INF).tolist() == [[False, True, True]]
    assert (gedi(base, wanted, 2.0, 0.2, tau=0.0) > -INF).all()


def test_gedi_keeps_a_token_that_may_be_drawn():
    base, wanted = logits_of(0.5, 0.3, 0.2), torch.tensor([[0.99, 0.2, 0.1]]).log()
    ban = torch.tensor([[True, False, False]])
    assert (gedi(base, wanted, 30.0, 0.2, 0.8, ban) > -INF).tolist()[0][1:] == [True, False]


def test_self_debias_by_hand():
    base, biased = logits_of(0.5, 0.3, 0.2), logits_of(0.4, 0.32, 0.28)
    factors = (self_debias(base, [biased], decay=50.0, floor=0.01) - base).exp()
    torch.testing.assert_close(factors, torch.tensor([[1.0, math.exp(-1.0), math.exp(-4.0)]]))
    low = self_debias(base, [biased], decay=1000.0, floor=0.01) - base
    torch.testing.assert_close(low.exp(), torch.tensor([[1.0, 0.01, 0.01]]))


def test_self_debias_takes_the_lowest_factor_of_several_biases():
    base, first, second = logits_of(0.5, 0.3, 0.2), logits_of(0.4, 0.32, 0.28), logits_of(0.52, 0.3, 0.18)
    factors = (self_debias(base, [first, second], decay=50.0, floor=0.01) - base).exp()
    torch.testing.assert_close(factors, torch.tensor([[math.exp(-1.0), math.exp(-1.0), math.exp(-4.0)]]))


def test_rectify_by_hand():
    base, risk = logits_of(0.5, 0.3, 0.2), torch.tensor([[0.9, 0.7, 0.1]])
    torch.testing.assert_close(rectify(base, (1 - risk).log()).exp(), torch.tensor([[0.1, 0.3, 0.2]]))


def test_rectify_leaves_a_hopeless_row_to_the_policy():
    base = logits_of(0.5, 0.3, 0.2)
    torch.testing.assert_close(rectify(base, torch.full((1, 3), -INF)), base)


@given(st.integers(0, 2**31), st.floats(0.1, 20.0), st.integers(2, 50))
def test_rectify_never_raises_a_tokens_probability(seed, spread, tokens):
    generator = torch.Generator().manual_seed(seed)
    base = spread * torch.randn(4, tokens, generator=generator)
    risk = torch.rand(4, tokens, generator=generator)
    risk[0], risk[1] = 1.0, 0.0
    before, after = base.log_softmax(-1), rectify(base, (1 - risk).log())
    assert (after <= before).all()
    assert (after.exp() <= (1 - risk).clamp(min=1e-30) * (1 + 1e-5))[1:].all()
    # nor does it gain on any token that was left alone, once the weights are normalised
    for row in range(1, 4):
        alone = after[row] == before[row]
        if alone.any():
            gain = (after[row].log_softmax(-1) - before[row])[alone]
            assert (after[row].log_softmax(-1) - before[row] <= gain.max() + 1e-4).all()


def test_the_bound_of_best_of_k_by_hand():
    assert best_of_k_kl(1) == 0
    assert best_of_k_kl(2) == pytest.approx(0.693147 - 0.5, abs=1e-6)
    assert best_of_k_kl(16) == pytest.approx(2.772589 - 0.9375, abs=1e-6)
    with pytest.raises(UserError, match="k=0: expected 1 or more"):
        best_of_k_kl(0)


@pytest.mark.parametrize("k", [2, 4])
def test_the_bound_of_best_of_k_is_met_where_no_two_draws_tie(k):
    """1,000 equally likely responses of different scores: the best of k has distribution (i/n)^k − ((i−1)/n)^k."""
    n = 1000
    best = [(i / n) ** k - ((i - 1) / n) ** k for i in range(1, n + 1)]
    assert sum(p * math.log(p * n) for p in best) == pytest.approx(best_of_k_kl(k), abs=5e-3)
    assert sum(p * math.log(p * n) for p in best) <= best_of_k_kl(k)
