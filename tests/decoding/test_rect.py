"""RECT's head: two ways of asking agree; a file of another policy is refused; the decoder caps and never lifts."""

from __future__ import annotations

import pytest
import torch

from lightning_rarlhf.decoding.plain import Plain
from lightning_rarlhf.decoding.rect import Rect
from lightning_rarlhf.decoding.risk_head import RISK_HEAD_FILE, RiskHead, load_risk_head, save_risk_head
from lightning_rarlhf.errors import ModelError
from tests.decoding.hosts import drawn, host_of
from tests.test_sampling import PROMPTS, batch_of


def some_head(hidden_size: int = 16, spread: float = 0.5) -> RiskHead:
    torch.manual_seed(0)
    head = RiskHead(hidden_size)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=spread)
    return head


def test_both_ways_of_asking_agree_and_know_nothing_at_first():
    hidden, embeddings, tokens = torch.randn(3, 4, 16), torch.randn(9, 16), torch.randint(9, (3, 4))
    assert (RiskHead(16)(hidden, embeddings) == 0).all()
    head = some_head()
    every = head(hidden, embeddings)
    assert every.shape == (3, 4, 9)
    torch.testing.assert_close(every.gather(2, tokens[..., None])[..., 0], head.of_tokens(hidden, embeddings[tokens]))


def test_a_head_comes_back_from_its_folder(tmp_path):
    head = some_head()
    save_risk_head(head, tmp_path / RISK_HEAD_FILE)
    for name in (tmp_path, tmp_path / RISK_HEAD_FILE):
        again = load_risk_head(str(name), 16)
        assert all(torch.equal(a, b) for a, b in zip(head.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("write", "complaint"),
    [
        (None, "no such file; fit RectModule"),
        (b"no safetensors", "cannot be read"),
        (8, "made for another policy"),
    ],
)
def test_a_head_that_does_not_fit_is_named(tmp_path, write, complaint):
    path = tmp_path / RISK_HEAD_FILE
    if isinstance(write, bytes):
        path.write_bytes(write)
    elif write is not None:
        save_risk_head(some_head(write), path)
    with pytest.raises(ModelError, match=complaint):
        load_risk_head(str(path), 16)


@pytest.mark.parametrize("power", [1.0, 4.0])
def test_the_decoder_never_lifts_a_token_and_draws_from_the_capped_weights(policy_folder, tmp_path, power):
    save_risk_head(some_head(), tmp_path / RISK_HEAD_FILE)
    host = host_of(policy_folder)
    method = Rect(str(tmp_path), power=power)
    samples = drawn(method, host)
    assert method.passes.per_token == method.forward_passes_per_token == 1
    capped, plain = method.decoder(), Plain()
    plain.load(host)
    base, batch = plain.decoder(), batch_of(PROMPTS)
    weights = capped.start(batch.input_ids, batch.attention_mask)
    logprobs = base.start(batch.input_ids, batch.attention_mask).log_softmax(-1)
    assert (weights <= logprobs).all()
    assert (weights < logprobs - 1e-3).any()
    first = weights.log_softmax(-1).gather(1, samples.sequences[:, 5:6])[:, 0]
    torch.testing.assert_close(samples.logprobs[:, 0], first)


def test_a_head_that_sees_no_risk_leaves_the_policy_alone(policy_folder, tmp_path):
    head = RiskHead(16)
    torch.nn.init.constant_(head.of_state.bias, -60.0)
    save_risk_head(head, tmp_path / RISK_HEAD_FILE)
    rectified, plain = drawn(Rect(str(tmp_path)), host_of(policy_folder)), drawn(Plain(), host_of(policy_folder))
    assert rectified.sequences.tolist() == plain.sequences.tolist()
    torch.testing.assert_close(rectified.logprobs, plain.logprobs)
