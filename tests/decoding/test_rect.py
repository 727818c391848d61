"""RECT's head: two ways of asking agree; a file of another policy is refused; the decoder caps and never lifts."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_rarlhf.decoding.method import Host
from lightning_rarlhf.decoding.plain import Plain
from lightning_rarlhf.decoding.rect import Rect
from lightning_rarlhf.decoding.risk_head import RISK_HEAD_FILE, RiskHead, load_risk_head, save_risk_head
from lightning_rarlhf.errors import ModelError, WriteError
from lightning_rarlhf.functional.decoding import rectify
from lightning_rarlhf.records.results_file import weights_sha256
from tests.decoding.hosts import SEED, drawn, host_of, save_expert
from tests.test_sampling import PROMPTS, batch_of


def some_head(hidden_size: int = 16, spread: float = 0.5) -> RiskHead:
    torch.manual_seed(0)
    head = RiskHead(hidden_size)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=spread)
    return head


def save_for(host: Host, folder: Path, head: RiskHead | None = None) -> str:
    """The folder of a head that was fitted on this policy."""
    policy_sha256 = weights_sha256(host.policy.lm)
    save_risk_head(head or some_head(), folder / RISK_HEAD_FILE, policy_sha256=policy_sha256)
    return str(folder)


def test_both_ways_of_asking_agree_and_know_nothing_at_first():
    hidden, embeddings, tokens = torch.randn(3, 4, 16), torch.randn(9, 16), torch.randint(9, (3, 4))
    assert (RiskHead(16)(hidden, embeddings) == 0).all()
    head = some_head()
    every = head(hidden, embeddings)
    assert every.shape == (3, 4, 9)
    torch.testing.assert_close(every.gather(2, tokens[..., None])[..., 0], head.of_tokens(hidden, embeddings[tokens]))


def test_a_head_comes_back_from_its_folder(tmp_path):
    head = some_head()
    save_risk_head(head, tmp_path / RISK_HEAD_FILE, policy_sha256="5" * 64)
    for name in (tmp_path, tmp_path / RISK_HEAD_FILE):
        again, fitted_on = load_risk_head(str(name), 16)
        assert fitted_on == "5" * 64
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
        save_risk_head(some_head(write), path, policy_sha256="5" * 64)
    with pytest.raises(ModelError, match=complaint):
        load_risk_head(str(path), 16)


@pytest.mark.parametrize("power", [1.0, 4.0])
def test_the_decoder_never_lifts_a_token_and_draws_from_the_capped_weights(policy_folder, tmp_path, power):
    host = host_of(policy_folder)
    method = Rect(save_for(host, tmp_path), power=power)
    samples = drawn(method, host)
    assert method.passes.per_token == method.forward_passes_per_token == 1
    capped, plain = method.decoder(), Plain()
    plain.load(host)
    base, batch = plain.decoder(), batch_of(PROMPTS)
    weights = capped.start(batch.input_ids, batch.attention_mask)
    logprobs = base.start(batch.input_ids, batch.attention_mask).log_softmax(-1)
    assert (weights <= logprobs + 1e-6).all()  # two products' rounding; `rectify` itself is exact, see its own test
    assert (weights < logprobs - 1e-3).any()
    first = weights.log_softmax(-1).gather(1, samples.sequences[:, 5:6])[:, 0]
    torch.testing.assert_close(samples.logprobs[:, 0], first)


@pytest.mark.parametrize(("family", "shared"), [("gpt2", True), ("gptj", False)])  # GPT-J's output layer has a bias
def test_one_product_for_logits_and_risks_gives_what_two_give(policy_folders, tmp_path, family, shared):
    host = host_of(policy_folders[family])
    assert host.policy.head_is_product == shared
    method, batch = Rect(save_for(host, tmp_path), power=2.0), batch_of(PROMPTS)
    method.load(host)
    with torch.no_grad():
        hidden = host.policy.trunk(batch.input_ids, batch.attention_mask)[:, -1]
        risk = some_head()(hidden, host.policy.lm.get_output_embeddings().weight)
        expected = rectify(host.policy.head(hidden), 2.0 * torch.nn.functional.logsigmoid(-risk))
        got = method.decoder().start(batch.input_ids, batch.attention_mask)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_a_head_that_sees_no_risk_leaves_the_policy_alone(policy_folder, tmp_path):
    head = RiskHead(16)
    torch.nn.init.constant_(head.of_state.bias, -60.0)
    host = host_of(policy_folder)
    rectified, plain = drawn(Rect(save_for(host, tmp_path, head)), host), drawn(Plain(), host)
    assert rectified.sequences.tolist() == plain.sequences.tolist()
    torch.testing.assert_close(rectified.logprobs, plain.logprobs)


def test_a_head_of_other_weights_needs_consent_and_results_tell_which_it_was(policy_folder, tmp_path):
    head = save_for(host_of(policy_folder), tmp_path)
    other = host_of(save_expert(tmp_path / "other", seed=1))
    with pytest.raises(ModelError, match=r"fitted on this policy, .*other: its policy .*method.other_policy: true"):
        drawn(Rect(head), other)
    method = Rect(head, other_policy=True)
    assert drawn(method, other).responses
    said = method.settings()
    assert said["head_policy_sha256"] == weights_sha256(host_of(policy_folder).policy.lm)
    assert said["head_sha256"] == weights_sha256(some_head())
    assert said["other_policy"] is True


def test_a_head_that_does_not_say_whose_it_is_needs_consent(policy_folder, tmp_path):
    save_file(some_head().state_dict(), tmp_path / RISK_HEAD_FILE)
    with pytest.raises(ModelError, match="it does not say on which"):
        drawn(Rect(str(tmp_path)), host_of(policy_folder))
    assert drawn(Rect(str(tmp_path), other_policy=True), host_of(policy_folder)).responses


def test_the_policys_weights_count_not_its_folder(policy_folder, tmp_path):
    """A checkpoint's weights are read after `load`."""
    host = host_of(policy_folder)
    method = Rect(save_for(host, tmp_path))
    method.load(host)
    with torch.no_grad():
        next(host.policy.lm.parameters()).add_(0.1)
    with pytest.raises(ModelError, match="not known to be fitted on this policy"):
        method.draw(batch_of(PROMPTS), SEED)


def test_a_full_disk_is_said_in_a_line_and_the_former_head_kept(tmp_path, monkeypatch):
    path = tmp_path / RISK_HEAD_FILE
    save_risk_head(some_head(), path, policy_sha256="5" * 64)
    before = path.read_bytes()

    def full(self, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteError, match=r"safetensors: it could not be written \(No space left on device\)"):
        save_risk_head(some_head(), path, policy_sha256="6" * 64)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
