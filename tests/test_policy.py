from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lightning_rarlhf.config import PolicyConfig, SamplingConfig
from lightning_rarlhf.data_types import PromptBatch, Samples
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.language_model import LanguageModel
from lightning_rarlhf.loading.policy_loading import end_of_text_ids, load_actor_critic, load_causal_lm
from lightning_rarlhf.loading.tokenizer import load_tokenizer
from lightning_rarlhf.policy import ActorCritic
from lightning_rarlhf.reference import FrozenModel
from tests.tiny_models import FAMILIES, causal_lm, save_policy

PLAIN = SamplingConfig()


def actor_of(folder, **config):
    return load_actor_critic(PolicyConfig(pretrained=str(folder), **config), load_tokenizer(str(folder)))


def samples_of(
    prompts: list[list[int]], responses: list[list[int]], *, extra_left: int = 0, extra_right: int = 0
) -> Samples:
    """Rows of token ids, padded with token 2 on the prompt's left and the response's right."""
    width = max(map(len, prompts)) + extra_left
    length = max(map(len, responses)) + extra_right
    ids = torch.tensor([[2] * (width - len(row)) + row for row in prompts])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in prompts])
    tokens = torch.tensor([row + [2] * (length - len(row)) for row in responses])
    rows = len(prompts)
    return Samples(
        batch=PromptBatch(
            input_ids=ids,
            attention_mask=mask,
            index=torch.arange(rows),
            prompts=("",) * rows,
            labels=torch.full((rows,), -1),
            source_scores=torch.full((rows,), torch.nan),
        ),
        sequences=torch.cat([ids, tokens], 1),
        response_mask=torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in responses]),
        responses=("",) * rows,
    )


PROMPTS = [[3, 4, 5, 6, 7], [8, 9]]
RESPONSES = [[10, 11, 1], [12, 13, 14, 15]]


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_logprobs_equal_the_plain_models_on_the_bare_sequence(self, policy_folders, family):
        actor = actor_of(policy_folders[family])
        got = actor.statistics(samples_of(PROMPTS, RESPONSES), PLAIN).logprobs
        for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
            logits = actor.lm(torch.tensor([prompt + response])).logits[0]
            expected = logits.log_softmax(-1)[range(len(prompt) - 1, len(prompt + response) - 1), response]
            torch.testing.assert_close(got[row, : len(response)], expected, atol=2e-5, rtol=1e-5)

    def test_padding_columns_change_nothing(self, policy_folders, family):
        actor = actor_of(policy_folders[family])
        tight = actor.statistics(samples_of(PROMPTS, RESPONSES), PLAIN)
        wide = actor.statistics(samples_of(PROMPTS, RESPONSES, extra_left=3, extra_right=2), PLAIN)
        for one, other in zip(tight, wide, strict=True):
            mask = samples_of(PROMPTS, RESPONSES).response_mask
            torch.testing.assert_close(one[mask], other[:, : mask.shape[1]][mask], atol=2e-5, rtol=1e-5)

    def test_the_gradient_pass_repeats_the_rollouts_numbers_to_the_bit(self, policy_folders, family):
        actor = actor_of(policy_folders[family]).train()
        samples = samples_of(PROMPTS, RESPONSES)
        old = actor.statistics(samples, PLAIN)
        new = actor(samples.sequences, samples.attention_mask, samples.response_mask, PLAIN)
        assert torch.equal(old.logprobs, new.logprobs)
        assert torch.equal(old.values, new.values)

    def test_the_reference_agrees_with_the_policy_it_is_a_copy_of(self, policy_folders, family):
        config = PolicyConfig(pretrained=str(policy_folders[family]))
        lm = load_causal_lm(config)
        reference = FrozenModel(LanguageModel(lm, end_of_text_ids(lm, load_tokenizer(config.pretrained))))
        samples = samples_of(PROMPTS, RESPONSES)
        policy = actor_of(policy_folders[family]).statistics(samples, PLAIN).logprobs
        assert torch.equal(reference.response_logprobs(samples, PLAIN), policy)

    def test_gradients_reach_trunk_head_and_critic(self, policy_folders, family):
        actor = actor_of(policy_folders[family])
        samples = samples_of(PROMPTS, RESPONSES)
        logprobs, values = actor(samples.sequences, samples.attention_mask, samples.response_mask, PLAIN)
        (logprobs.sum() + values.sum()).backward()
        without = [name for name, p in actor.named_parameters() if p.grad is None]
        assert not without


def test_values_are_those_before_the_token(policy_folder):
    actor = actor_of(policy_folder)
    one = actor.statistics(samples_of([[3, 4]], [[5, 6, 7]]), PLAIN).values
    other = actor.statistics(samples_of([[3, 4]], [[5, 6, 9]]), PLAIN).values
    assert torch.equal(one, other)  # V(s_2) has not seen the token a_2
    changed = actor.statistics(samples_of([[3, 4]], [[9, 6, 7]]), PLAIN).values
    assert torch.equal(one[:, 0], changed[:, 0])
    assert not torch.isclose(one[:, 1:], changed[:, 1:]).any()


def test_dropout_stays_off_in_train_mode(tmp_path):
    lm = causal_lm("gpt2")
    lm.config.attn_pdrop = lm.config.resid_pdrop = lm.config.embd_pdrop = 0.5
    lm.save_pretrained(save_policy(tmp_path / "dropout"))
    actor = actor_of(tmp_path / "dropout").train()
    samples = samples_of(PROMPTS, RESPONSES)
    first, second = (actor(samples.sequences, samples.attention_mask, samples.response_mask, PLAIN) for _ in range(2))
    assert torch.equal(first.logprobs, second.logprobs)


def test_gradient_checkpointing_recomputes_and_keeps_the_gradients(tmp_path):
    lm = causal_lm("gpt2")
    lm.config.attn_pdrop = lm.config.resid_pdrop = lm.config.embd_pdrop = 0.5
    lm.save_pretrained(save_policy(tmp_path / "dropout"))
    samples = samples_of(PROMPTS, RESPONSES)
    gradients, calls = [], []
    for checkpointing in (False, True):
        actor = actor_of(tmp_path / "dropout", gradient_checkpointing=checkpointing).train()
        count = 0

        def counted(*_: object) -> None:
            nonlocal count
            count += 1

        first_block = next(m for m in actor.modules() if isinstance(m, nn.LayerNorm))
        first_block.register_forward_hook(counted)
        actor(samples.sequences, samples.attention_mask, samples.response_mask, PLAIN).logprobs.sum().backward()
        calls.append(count)
        gradients.append(next(p.grad for p in actor.lm.parameters() if p.dim() > 1))
    assert calls == [1, 2]
    torch.testing.assert_close(*gradients)


def test_gradient_checkpointing_switches_no_dropout_on():
    """OPT's blocks drop out by their own `training`."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 2}
    lm = OPTForCausalLM(OPTConfig(vocab_size=17, num_attention_heads=2, dropout=0.5, **sizes))
    samples, outputs = samples_of(PROMPTS, RESPONSES), []
    for checkpointing in (False, True):
        actor = ActorCritic(copy.deepcopy(lm), [1])
        if checkpointing:
            actor.lm.activation_checkpointing_enable()
        logprobs = actor(samples.sequences, samples.attention_mask, samples.response_mask, PLAIN).logprobs
        logprobs.sum().backward()
        outputs.append([logprobs, *(p.grad for p in actor.lm.parameters() if p.grad is not None)])
    assert len(outputs[0]) > 20
    torch.testing.assert_close(*outputs)


def test_bfloat16_policy_gives_float32_numbers(policy_folder):
    actor = actor_of(policy_folder, dtype="bfloat16")
    samples = samples_of(PROMPTS, RESPONSES)
    logprobs, values = actor(samples.sequences, samples.attention_mask, samples.response_mask, PLAIN)
    assert logprobs.dtype == values.dtype == torch.float32
    (logprobs.sum() + values.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in actor.parameters())


def test_an_architecture_that_changes_its_logits_is_refused(policy_folder):
    lm = load_causal_lm(PolicyConfig(pretrained=str(policy_folder)))
    forward = lm.forward

    def scaled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output

    lm.forward = scaled
    with pytest.raises(ModelError, match="changes its logits after the output layer"):
        LanguageModel(lm, [1])


def test_pad_columns_are_not_read_and_change_nothing(policy_folder):
    """Empty columns on both sides: the trunk sees neither, and the response's numbers stay."""
    tokenizer = load_tokenizer(str(policy_folder))
    actor = load_actor_critic(PolicyConfig(pretrained=str(policy_folder)), tokenizer)
    read = []
    trunk = actor.trunk
    actor.trunk = lambda ids, mask, **options: read.append(ids.shape[1]) or trunk(ids, mask, **options)
    ids = torch.tensor([[1, 1, 3, 4, 5, 6, 1, 1], [1, 1, 1, 7, 8, 1, 1, 1]])
    counts = torch.tensor([[False] * 2 + [True] * 4 + [False] * 2, [False] * 3 + [True] * 2 + [False] * 3])
    padded = actor(ids, counts, counts[:, 4:], SamplingConfig())
    tight = actor(ids[:, 2:6], counts[:, 2:6], counts[:, 4:6], SamplingConfig())
    assert read == [4, 4]
    torch.testing.assert_close(padded.logprobs[:, :2], tight.logprobs)
    assert padded.logprobs.shape == padded.values.shape == (2, 4)
    assert padded.logprobs[:, 2:].eq(0).all()


def test_a_share_without_rows_still_carries_a_gradient(policy_folder):
    actor = load_actor_critic(PolicyConfig(pretrained=str(policy_folder)), load_tokenizer(str(policy_folder)))
    none = torch.zeros(1, 6, dtype=torch.bool)
    output = actor(torch.ones(1, 6, dtype=torch.int64), none, none[:, 3:], SamplingConfig())
    (output.logprobs * none[:, 3:]).sum().backward()
    assert output.logprobs.shape == (1, 3)
