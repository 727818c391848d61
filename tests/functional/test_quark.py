"""Quark's quantiles, loss terms and schedule by hand numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_rarlhf.functional.quark import quantile_numbers, response_terms, token_terms


def test_ten_scores_make_five_pairs():
    scores = [3.0, -1.0, 0.5, 9.0, 2.0, -4.0, 7.0, 0.0, 1.0, 8.0]
    # in order: −4 −1 | 0 .5 | 1 2 | 3 7 | 8 9
    assert quantile_numbers(scores, 5).tolist() == [3, 0, 1, 4, 2, 0, 3, 1, 2, 4]


def test_equal_scores_are_parted_in_their_order():
    assert quantile_numbers([1.0] * 5, 5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [1, 2, 5, 7, 13, 128])
def test_sizes_differ_by_one_at_most_and_order_is_kept(count):
    scores = np.random.default_rng(count).normal(size=count)
    numbers = quantile_numbers(scores, 5)
    sizes = np.bincount(numbers, minlength=5)
    assert sizes.sum() == count
    assert sizes.max() - sizes.min() <= 1
    for a in range(count):
        assert (numbers[scores > scores[a]] >= numbers[a]).all()


def test_terms_by_hand():
    """π = (½, ¼, ¼), π_ref = (¼, ½, ¼), token 1."""
    logits, ref_logits = torch.tensor([[0.5, 0.25, 0.25]]).log() + 3, torch.tensor([[0.25, 0.5, 0.25]]).log() - 7
    terms = token_terms(logits, ref_logits, torch.tensor([1]))
    assert terms.nll.item() == pytest.approx(math.log(4), abs=1e-6)
    # ½ ln(½/¼) + ¼ ln(¼/½) + ¼ ln 1 = ½ ln 2 − ¼ ln 2
    assert terms.kl.item() == pytest.approx(0.25 * math.log(2), abs=1e-6)
    # ½ ln 2 + 2 · ¼ ln 4
    assert terms.entropy.item() == pytest.approx(1.5 * math.log(2), abs=1e-6)


def test_kl_and_entropy_agree_with_torch():
    torch.manual_seed(0)
    logits, ref_logits, tokens = torch.randn(7, 11), torch.randn(7, 11), torch.randint(11, (7,))
    terms = token_terms(logits, ref_logits, tokens)
    policy, reference = (torch.distributions.Categorical(logits=each) for each in (logits, ref_logits))
    torch.testing.assert_close(terms.kl, torch.distributions.kl_divergence(policy, reference))
    torch.testing.assert_close(terms.entropy, policy.entropy())
    torch.testing.assert_close(terms.nll, -policy.log_prob(tokens))


def test_a_word_of_no_probability_leaves_numbers():
    logits = torch.tensor([[1.0, 2.0, -1e4]], requires_grad=True)
    terms = token_terms(logits, torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([0]))
    sum(terms).sum().backward()
    assert all(torch.isfinite(value).all() for value in (*terms, logits.grad))


def test_chunks_change_neither_terms_nor_gradients():
    torch.manual_seed(0)
    weight, ref_weight, tokens = torch.randn(6, 9), torch.randn(4, 9), torch.randint(9, (3, 5))
    results = []
    for chunk in (2, 1024):
        hidden = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        ref_hidden = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(2))
        terms = response_terms(hidden, ref_hidden, tokens, lambda h: h @ weight, lambda h: h @ ref_weight, chunk=chunk)
        (terms.nll + 2 * terms.kl - 3 * terms.entropy).sum().backward()
        results.append((*terms, hidden.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    whole = token_terms(hidden.detach().flatten(0, 1) @ weight, ref_hidden.flatten(0, 1) @ ref_weight, tokens.flatten())
    torch.testing.assert_close(results[0][1].flatten(), whole.kl)
