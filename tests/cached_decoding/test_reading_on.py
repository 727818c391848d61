"""Responses read over what sampling left of their prompts give what one pass over the whole texts gives."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from lightning_rarlhf import ppo_module
from lightning_rarlhf.cached_decoding import compiled_step
from lightning_rarlhf.cached_decoding.cached_decoder import CachedDecoder, CachedTrunk
from lightning_rarlhf.cached_decoding.compiled_decoding import CompiledDecoding
from lightning_rarlhf.cached_decoding.kv_cache import prompt_states
from lightning_rarlhf.cached_decoding.reading_on import read_on, reads_on, rounds_alike
from lightning_rarlhf.config import PolicyConfig, PPOConfig, SamplingConfig
from lightning_rarlhf.loading.policy_loading import load_actor_critic
from lightning_rarlhf.loading.tokenizer import load_tokenizer
from lightning_rarlhf.policy import ActorCritic
from lightning_rarlhf.sampling import SamplingSeed, sample
from tests.test_ppo_module import fit, module_of
from tests.test_sampling import PROMPTS, batch_of
from tests.tiny_models import FAMILIES

TOKENS = 12
SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.fixture
def as_it_is(monkeypatch) -> None:
    """Compiled steps without the compiler."""
    monkeypatch.setattr(compiled_step, "compile_step", lambda step, device: step)


def decoder_of(kind, actor):
    return CachedDecoder(actor, keep_prompts=True) if kind == "plain" else CompiledDecoding().decoder(actor, TOKENS)


def mistral(**config) -> ActorCritic:
    torch.manual_seed(0)
    return ActorCritic(MistralForCausalLM(MistralConfig(vocab_size=17, num_hidden_layers=2, **SHAPE, **config)), [1])


@pytest.mark.usefixtures("as_it_is")
@pytest.mark.parametrize("dtype", ["mixed", "bfloat16"])
@pytest.mark.parametrize("kind", ["plain", "compiled"])
@pytest.mark.parametrize("family", FAMILIES)
def test_ragged_prompts_and_rows_that_end_early(policy_folders, family, kind, dtype):
    tokenizer = load_tokenizer(str(policy_folders[family]))
    weights = "bfloat16" if dtype == "bfloat16" else "float32"
    actor = load_actor_critic(PolicyConfig(pretrained=str(policy_folders[family]), dtype=weights), tokenizer)
    assert reads_on(actor)
    ends, batch = torch.arange(0, actor.vocabulary, 4), batch_of(PROMPTS * 6)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "mixed", cache_enabled=False), torch.no_grad():
        decoder = decoder_of(kind, actor)
        sampling = SamplingConfig(max_new_tokens=TOKENS)
        samples = sample(decoder, batch, sampling, SamplingSeed(base=5), tokenizer, ends)
        width, mask = samples.response_mask.shape[1], samples.attention_mask
        assert len(set(samples.lengths.tolist())) > 3, "rows end early, and fall out of the plain loop"
        whole = actor.before_responses(samples.sequences, mask, width)
        read = read_on(actor, decoder.prompts(), samples.sequences, mask, width)
    counted = samples.response_mask
    torch.testing.assert_close(read[counted], whole[counted], atol=2e-2, rtol=2e-2)


def test_an_iteration_in_bf16_is_to_the_bit_what_it_is_by_a_pass_over_everything(policy_folder, tmp_path, monkeypatch):
    def outputs(folder):
        watch, _ = fit(module_of(policy_folder), tmp_path / folder, batches=2, precision="bf16-mixed")
        return watch.outputs

    read = []
    monkeypatch.setattr(ppo_module, "read_on", lambda *args: read.append(len(args[2])) or read_on(*args))
    monkeypatch.setattr(ppo_module, "rounds_alike", lambda *_: True)  # so do networks as small as this
    mine = outputs("read on")
    assert read == [8, 8]
    monkeypatch.setattr(ppo_module, "reads_on", lambda model: False)
    theirs = outputs("all")
    assert read == [8, 8]
    for ours, its in zip(mine, theirs, strict=True):
        assert ours["stats"] == its["stats"]
        for name in ("logprobs", "values", "entropy", "ref_logprobs"):
            assert torch.equal(getattr(ours["rollout"], name), getattr(its["rollout"], name)), name


def test_float32_keeps_what_sampling_had(policy_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(ppo_module, "read_on", None)
    fit(module_of(policy_folder), tmp_path, batches=1)


@pytest.mark.parametrize(("prompt", "response"), [(64, 48), (64, 16), (40, 24), (63, 20), (5, 60)])
def test_widths_at_which_attention_rounds_alike_are_to_the_bit(prompt, response):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=31, n_embd=384, n_layer=2, n_head=6, n_positions=128)
    actor = ActorCritic(GPT2LMHeadModel(config), [1])
    ids = torch.randint(31, (6, prompt + response))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[torch.arange(6), :3] = torch.arange(6)[:, None] < 3
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), torch.no_grad():
        trunk = CachedTrunk(actor, keep_prompts=True)
        trunk.start(ids[:, :prompt], mask[:, :prompt])
        whole = actor.before_responses(ids, mask, response)
        read = read_on(actor, trunk.prompts, ids, mask, response)
    assert torch.equal(read, whole) or not rounds_alike(trunk.prompts, mask, response)


def test_widths_at_which_it_does_not_are_read_whole(policy_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(ppo_module, "rounds_alike", lambda *_: False)
    monkeypatch.setattr(ppo_module, "read_on", None)
    watch, _ = fit(module_of(policy_folder), tmp_path, batches=1, precision="bf16-mixed")
    assert not watch.outputs[0]["rollout"].kl.any()


def test_so_are_batches_that_a_full_pass_reads_fewer_columns_of():
    states = [(torch.zeros(1, 1, 64, 8), torch.zeros(1, 1, 64, 8))]
    mask = torch.ones(1, 112, dtype=torch.bool)
    mask[:, 0] = False
    assert not rounds_alike(states, mask, 48)


def test_so_are_episodes_that_were_drawn_in_parts(policy_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(ppo_module, "read_on", None)
    module = module_of(policy_folder, ppo=PPOConfig(micro_rollout_batch_size=3))
    watch, _ = fit(module, tmp_path, batches=1, precision="bf16-mixed")
    assert not watch.outputs[0]["rollout"].kl.any()


def test_a_window_narrower_than_the_prompts_leaves_less_than_them():
    trunk = CachedTrunk(mistral(sliding_window=3), keep_prompts=True)
    trunk.start(torch.tensor([[3, 4, 5, 6]]), torch.ones(1, 4, dtype=torch.bool))
    assert trunk.prompts is None


def test_a_window_wider_than_the_prompts_counts_over_them():
    actor = mistral(sliding_window=6)
    ids, mask = torch.arange(20).view(2, 10) % 17, torch.ones(2, 10, dtype=torch.bool)
    with torch.no_grad():
        trunk = CachedTrunk(actor, keep_prompts=True)
        trunk.start(ids[:, :5], mask[:, :5])
        for column in range(5, 10):
            trunk.advance(ids[:, column], mask[:, : column + 1])
        whole = actor.before_responses(ids, mask, 5)
        read = read_on(actor, trunk.prompts, ids, mask, 5)
    torch.testing.assert_close(read, whole, atol=1e-5, rtol=0)


def test_what_is_not_kept_is_not_there():
    trunk = CachedTrunk(mistral())
    trunk.start(torch.tensor([[3, 4]]), torch.ones(1, 2, dtype=torch.bool))
    assert trunk.prompts is None
    assert prompt_states(DynamicCache(), 2) is None


def test_architectures_that_keep_something_else_are_read_whole():
    config = Lfm2Config(vocab_size=9, num_hidden_layers=2, layer_types=["conv", "full_attention"], **SHAPE)
    assert not reads_on(ActorCritic(Lfm2ForCausalLM(config), [1]))


def test_so_are_those_that_give_other_states(monkeypatch):
    actor = mistral()
    right = actor.lm.base_model.forward

    def wrong(*args, past_key_values=None, **kwargs):
        output = right(*args, past_key_values=past_key_values, **kwargs)
        if past_key_values is not None:
            output.last_hidden_state = output.last_hidden_state + 0.01
        return output

    monkeypatch.setattr(actor.lm.base_model, "forward", wrong)
    assert not reads_on(actor)


def test_so_are_those_with_frozen_layers_whose_states_are_known_anyway(policy_folder):
    tokenizer = load_tokenizer(str(policy_folder))
    assert not reads_on(load_actor_critic(PolicyConfig(pretrained=str(policy_folder), frozen_layers=1), tokenizer))
