"""One softmax gives the draw, its log-probability and the entropy, each as torch's own functions give them."""

from __future__ import annotations

import pytest
import torch

from lightning_rarlhf.functional.next_token import NextToken

INF = float("inf")
LOGITS = torch.tensor(
    [[0.3, -1.0, 2.0, 0.0], [0.5, -INF, -INF, 0.2], [-INF, 7.0, -INF, -INF], [300.0, 0.0, 299.0, -5.0]]
)


@pytest.mark.parametrize("shift", [0.0, -1e4])
def test_statistics_are_those_of_the_log_softmax(shift):
    token = torch.tensor([1, 3, 1, 2])
    expected = torch.distributions.Categorical(logits=(LOGITS + shift).double())
    logprob, entropy = NextToken(LOGITS + shift).statistics(token)
    torch.testing.assert_close(logprob, expected.log_prob(token).float(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(entropy, expected.entropy().float(), atol=1e-6, rtol=1e-6)


def test_statistics_stay_exact_over_a_large_vocabulary():
    logits = 3 * torch.randn(4, 50_000, generator=torch.Generator().manual_seed(0)) - 80
    token = logits.argmin(dim=-1)
    expected = torch.distributions.Categorical(logits=logits.double())
    logprob, entropy = NextToken(logits).statistics(token)
    torch.testing.assert_close(logprob, expected.log_prob(token).float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy, expected.entropy().float(), atol=1e-5, rtol=0)


def test_the_draw_inverts_the_distribution_function():
    following = NextToken(torch.tensor([0.0, 0.5, 0.2, 0.3]).log().repeat(6, 1))
    assert following.draw(torch.tensor([0.0, 0.49, 0.51, 0.69, 0.71, 1 - 2**-24])).tolist() == [1, 1, 2, 2, 3, 3]


def test_a_token_of_probability_zero_is_not_drawn_at_either_end():
    following = NextToken(torch.tensor([[-INF, 0.0, -INF]] * 2))
    assert following.draw(torch.tensor([0.0, 1 - 2**-24])).tolist() == [1, 1]


@pytest.mark.parametrize("broken", [[0.0, float("nan")], [0.0, INF], [-INF, -INF]])
def test_what_is_no_distribution_is_said_to_be_none(broken):
    assert NextToken(torch.tensor([broken, [0.0, 1.0]])).draw(torch.tensor([0.5, 0.5])).tolist() == [-1, 1]
