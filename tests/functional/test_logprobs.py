from __future__ import annotations

import pytest
import torch

from lightning_rarlhf.config import SamplingConfig
from lightning_rarlhf.functional.logprobs import chunk_of, eos_ban, token_logprobs, token_logprobs_and_entropy, warp

PLAIN = SamplingConfig()
EOS = torch.tensor([1])


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 5, 4), torch.randint(0, 11, (3, 5)), torch.randn(11, 4)


def test_logprobs_equal_the_full_log_softmax(case):
    hidden, tokens, weight = case
    got = token_logprobs(hidden, tokens, lambda h: h @ weight.T, PLAIN, EOS)
    expected = (hidden @ weight.T).log_softmax(-1).gather(2, tokens[..., None]).squeeze(-1)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("chunk", [1, 2, 4, 7, 100])
def test_chunks_change_neither_values_nor_gradients(case, chunk):
    hidden, tokens, weight = case
    results = []
    for size in (1024, chunk):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        logprobs = token_logprobs(h, tokens, lambda x, w=w: x @ w.T, PLAIN, EOS, chunk=size)
        (logprobs * torch.arange(15.0).view(3, 5)).sum().backward()
        results.append((logprobs.detach(), h.grad, w.grad))
    for whole, pieces in zip(*results, strict=True):
        torch.testing.assert_close(whole, pieces)


def test_gradients_reach_a_head_behind_a_frozen_trunk(case):
    hidden, tokens, weight = case
    weight = weight.requires_grad_()
    token_logprobs(hidden, tokens, lambda x: x @ weight.T, PLAIN, EOS).sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


def test_entropy_is_that_of_the_distribution(case):
    hidden, tokens, weight = case
    logprobs, entropy = token_logprobs_and_entropy(hidden, tokens, lambda h: h @ weight.T, PLAIN, EOS, chunk=4)
    expected = torch.distributions.Categorical(logits=hidden @ weight.T).entropy()
    torch.testing.assert_close(entropy, expected)
    torch.testing.assert_close(logprobs, token_logprobs(hidden, tokens, lambda h: h @ weight.T, PLAIN, EOS))


def test_entropy_is_finite_when_tokens_are_filtered(case):
    hidden, tokens, weight = case
    _, entropy = token_logprobs_and_entropy(hidden, tokens, lambda h: h @ weight.T, SamplingConfig(top_k=2), EOS)
    assert torch.isfinite(entropy).all()
    assert (entropy <= 1.0987).all()  # at most log 3: two tokens, and the one that is kept in whatever the filter


def test_temperature_divides_the_logits():
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    torch.testing.assert_close(warp(logits, SamplingConfig(temperature=0.5)), logits * 2)


def test_top_k_keeps_exactly_k_even_on_ties():
    kept = warp(torch.tensor([[1.0, 1.0, 1.0, 0.0]]), SamplingConfig(top_k=2))
    assert torch.isfinite(kept).tolist() == [[True, True, False, False]]


def test_top_p_keeps_the_fewest_tokens_that_hold_the_mass():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for top_p, kept in ((0.5, 1), (0.6, 2), (0.8, 2), (0.81, 3), (0.01, 1), (0.96, 4)):
        assert torch.isfinite(warp(logits, SamplingConfig(top_p=top_p))).sum() == kept, top_p


def test_a_drawn_token_stays_in_whatever_the_filter():
    warped = warp(torch.tensor([[3.0, 2.0, 1.0]]), SamplingConfig(top_k=1), keep=torch.tensor([2]))
    assert torch.isfinite(warped).tolist() == [[True, False, True]]


def test_eos_is_banned_before_the_minimum_length_only():
    ban = eos_ban(torch.arange(4), 3, EOS, SamplingConfig(min_new_tokens=2))
    assert ban is not None
    assert ban.tolist() == [[False, True, False]] * 2 + [[False] * 3] * 2
    assert eos_ban(torch.arange(4), 3, EOS, PLAIN) is None


def test_minimum_length_changes_the_logprobs_of_early_steps_only(case):
    hidden, _, weight = case
    tokens = torch.full((3, 5), 4)
    plain = token_logprobs(hidden, tokens, lambda h: h @ weight.T, PLAIN, EOS)
    banned = token_logprobs(hidden, tokens, lambda h: h @ weight.T, SamplingConfig(min_new_tokens=2), EOS)
    assert (banned[:, :2] > plain[:, :2]).all()  # EOS's mass goes to the others
    torch.testing.assert_close(banned[:, 2:], plain[:, 2:])


def test_half_precision_logits_are_normalised_in_float32(case):
    hidden, tokens, weight = case
    logprobs = token_logprobs(hidden, tokens, lambda h: (h @ weight.T).bfloat16(), PLAIN, EOS)
    assert logprobs.dtype == torch.float32
    exact = (hidden @ weight.T).bfloat16().double().log_softmax(-1).gather(2, tokens[..., None]).squeeze(-1)
    torch.testing.assert_close(logprobs.double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spread", [0.2, 4.0])
@pytest.mark.parametrize("step", [None, 0.25])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.9), (0, 0.999), (7, 1.0), (40, 0.6), (500, 0.5)])
def test_the_filter_is_that_of_a_stable_sort(spread, step, top_k, top_p):
    """Against a full sort with indices; rounded logits have many ties, and one token is banned."""
    logits = spread * torch.randn(6, 300, generator=torch.Generator().manual_seed(0))
    logits = logits if step is None else (logits / step).round() * step
    ban = torch.zeros_like(logits, dtype=torch.bool)
    ban[:, 3] = True
    ordered, order = logits.masked_fill(ban, -torch.inf).sort(dim=-1, descending=True, stable=True)
    out = torch.arange(300).expand(6, -1) >= (top_k or 300)
    if top_p < 1.0:
        probs = ordered.masked_fill(out, -torch.inf).softmax(dim=-1)
        out = out | (probs.cumsum(dim=-1) - probs >= top_p)
    removed = torch.zeros_like(ban).scatter(1, order, out) | ban
    warped = warp(logits, SamplingConfig(top_k=top_k, top_p=top_p), ban=ban)
    assert ((warped == -torch.inf) == removed).all()


@pytest.mark.parametrize("sampling", [PLAIN, SamplingConfig(temperature=0.6), SamplingConfig(top_k=4, top_p=0.9)])
def test_gradients_are_those_of_the_plain_formula(case, sampling):
    hidden, tokens, weight = case
    results = []
    for own in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if own:
            logprobs = token_logprobs(h, tokens, lambda x, w=w: x @ w.T, sampling, EOS, chunk=6)
        else:
            logits = warp((h @ w.T).flatten(0, 1), sampling, keep=tokens.flatten())
            logprobs = logits.log_softmax(-1).gather(1, tokens.flatten()[:, None]).view(tokens.shape)
        (logprobs * torch.linspace(-1, 2, 15).view(3, 5)).sum().backward()
        results.append((h.grad, w.grad))
    for mine, plain in zip(*results, strict=True):
        torch.testing.assert_close(mine, plain)


def test_what_the_mask_leaves_out_is_zero_and_costs_nothing(case):
    hidden, tokens, weight = case
    mask = torch.tensor([[True] * 5, [True, True, False, False, False], [True] + [False] * 4])
    seen = []

    def head(part):
        seen.append(len(part))
        return part @ weight.T

    whole = token_logprobs(hidden, tokens, head, PLAIN, EOS)
    with_entropy = token_logprobs_and_entropy(hidden, tokens, head, PLAIN, EOS)
    seen.clear()
    part = token_logprobs(hidden, tokens, head, PLAIN, EOS, mask=mask)
    logprobs, entropy = token_logprobs_and_entropy(hidden, tokens, head, PLAIN, EOS, mask=mask, chunk=3)
    assert seen == [8, 3, 3, 2]
    torch.testing.assert_close(part, whole * mask)
    torch.testing.assert_close(logprobs, whole * mask)
    torch.testing.assert_close(entropy, with_entropy[1] * mask)


@pytest.mark.parametrize("vocabulary", [100, 8_000, 50_257, 256_000, 10**9])
def test_a_chunk_of_logits_is_bounded_in_bytes_and_without_gradients_in_tokens_too(vocabulary):
    with_gradients = chunk_of(vocabulary, with_gradients=True)
    without = chunk_of(vocabulary, with_gradients=False)
    assert with_gradients == max(1, 2**27 // (4 * vocabulary))
    assert without == max(1, min(256, 2**25 // (4 * vocabulary)))


def test_memory_does_not_grow_with_the_vocabulary_beyond_one_chunk():
    """The largest tensor that the backward pass finds saved is one chunk of logits, whatever T."""
    torch.manual_seed(0)
    weight = torch.randn(1000, 8, requires_grad=True)
    saved = []

    def keep(tensor):
        saved.append(tensor.numel())
        return tensor

    hidden, tokens = torch.randn(4, 25, 8, requires_grad=True), torch.randint(0, 1000, (4, 25))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_logprobs(hidden, tokens, lambda x: x @ weight.T, PLAIN, EOS, chunk=10)
    wide = [numel for numel in saved if numel > weight.numel()]
    assert wide == [10 * 1000]


def test_logits_of_many_pieces_give_autograds_own_result():
    """So wide a vocabulary that a cache holds one row; one token is far below what float32 calls possible."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(150_000, 3, generator=draw)
    tokens = torch.tensor([[5, 149_999, 7]])
    gradients, values = [], []
    for own in (True, False):
        hidden = torch.tensor([[[0.1, 0.2, 0.3], [1.0, -1.0, 0.5], [90.0, 0.0, 0.0]]], requires_grad=True)
        if own:
            logprobs = token_logprobs(hidden, tokens, lambda x: x @ weight.T, PLAIN, EOS)
        else:
            logprobs = (hidden @ weight.T).log_softmax(-1).gather(2, tokens[..., None]).squeeze(2)
        (logprobs * torch.tensor([1.0, -2.0, 0.5])).sum().backward()
        gradients.append(hidden.grad)
        values.append(logprobs.detach())
    assert values[0].min() < -200
    torch.testing.assert_close(values[0], values[1], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-5)
