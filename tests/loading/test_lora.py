"""Adapters on tiny models of each family, with plain and with quantised weights."""

from __future__ import annotations

import pytest
import torch

from lightning_rarlhf.config import LoRAConfig, PolicyConfig, SamplingConfig
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.loading.empty_policy import empty_policy
from lightning_rarlhf.loading.lora import WithoutAdapter, without_adapter
from lightning_rarlhf.loading.policy_loading import load_actor_critic, load_causal_lm
from lightning_rarlhf.loading.tokenizer import load_tokenizer
from tests.test_policy import PROMPTS, RESPONSES, samples_of
from tests.tiny_models import FAMILIES, save_tokenizer

PLAIN = SamplingConfig()
SMALL = LoRAConfig(r=4, alpha=8)
EXPECTED = {
    "gpt2": {"c_attn"},
    "gptj": {"q_proj", "v_proj"},
    "llama": {"q_proj", "v_proj"},
    "qwen2": {"q_proj", "v_proj"},
}


def adapted(folder, *, lora=SMALL, **config):
    return load_actor_critic(PolicyConfig(pretrained=str(folder), lora=lora, **config), load_tokenizer(str(folder)))


def train_a_little(actor) -> None:
    """Give the adapters weights as if they had learned."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in actor.named_parameters():
            if parameter.requires_grad and "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))


@pytest.mark.parametrize("quantization", [None, "8bit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_at_the_start_the_reference_is_the_policy_to_the_bit(policy_folders, family, dtype, quantization):
    samples = samples_of(PROMPTS, RESPONSES)
    config = PolicyConfig(pretrained=str(policy_folders[family]), dtype=dtype, quantization=quantization)
    alone = load_actor_critic(config, load_tokenizer(config.pretrained)).response_logprobs(samples, PLAIN)
    actor = adapted(policy_folders[family], dtype=dtype, quantization=quantization)
    reference = WithoutAdapter(actor)
    assert torch.equal(actor.response_logprobs(samples, PLAIN), alone)
    assert torch.equal(reference.response_logprobs(samples, PLAIN), alone)
    assert torch.equal(actor.statistics(samples, PLAIN).logprobs, alone)
    train_a_little(actor)
    assert torch.equal(reference.response_logprobs(samples, PLAIN), alone)
    assert not torch.allclose(actor.response_logprobs(samples, PLAIN), alone, atol=1e-2)


@pytest.mark.parametrize("quantization", [None, "8bit"])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_and_critic_learn_and_nothing_else(policy_folders, family, quantization):
    actor = adapted(policy_folders[family], dtype="bfloat16", quantization=quantization)
    trained = {name for name, p in actor.named_parameters() if p.requires_grad}
    targets = {name.split(".lora_")[0].rpartition(".")[2] for name in trained if "lora_" in name}
    assert targets == EXPECTED[family]
    assert {name for name in trained if "lora_" not in name} == {"value_head.weight", "value_head.bias"}
    assert {p.dtype for p in actor.parameters() if p.requires_grad} == {torch.float32}
    samples = samples_of(PROMPTS, RESPONSES)
    logprobs, values = actor.train()(samples.sequences, samples.attention_mask, samples.response_mask, PLAIN)
    (logprobs.sum() + values.sum()).backward()
    assert {name for name, p in actor.named_parameters() if p.grad is not None} == trained


def test_what_learns_still_learns_after_the_reference_was_asked(policy_folder):
    actor = adapted(policy_folder)
    before = {name: p.requires_grad for name, p in actor.named_parameters()}
    with without_adapter(actor.lm):
        assert not any(p.requires_grad for name, p in actor.named_parameters() if ".policy." in name)
    assert {name: p.requires_grad for name, p in actor.named_parameters()} == before


@pytest.mark.parametrize("quantization", [None, "8bit"])
def test_gradient_checkpointing_gives_the_same_gradients(policy_folders, quantization):
    """The embedding is frozen, so no input of a block needs a gradient; the adapters inside must get theirs anyway."""
    samples = samples_of(PROMPTS, RESPONSES)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        actor = adapted(policy_folders["gptj"], gradient_checkpointing=checkpointing, quantization=quantization).train()
        train_a_little(actor)
        actor(samples.sequences, samples.attention_mask, samples.response_mask, PLAIN).logprobs.sum().backward()
        gradients.append({n: p.grad for n, p in actor.named_parameters() if p.grad is not None})
    assert len(gradients[0]) == 8
    assert all(grad.abs().max() > 0 for grad in gradients[1].values())
    torch.testing.assert_close(*gradients)


def test_a_target_that_matches_nothing_is_refused_with_the_candidates(policy_folders):
    with pytest.raises(ModelError, match=r"'c_attn' matches no linear layer.*fc_in, fc_out, k_proj, out_proj, q_proj"):
        adapted(policy_folders["gptj"], lora=LoRAConfig(target_modules=["q_proj", "c_attn"]))


@pytest.mark.parametrize("targets", [["q_proj", "c_attn"], ["lm_head"]])
def test_it_is_refused_before_the_weights_are_loaded(policy_folders, monkeypatch, targets):
    monkeypatch.setattr("lightning_rarlhf.loading.policy_loading.load_causal_lm", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ModelError, match=rf"{targets[-1]!r} matches no linear layer"):
        adapted(policy_folders["gptj"], lora=LoRAConfig(target_modules=targets))


def test_what_is_asked_before_the_weights_are_loaded_draws_no_random_number(policy_folder):
    before = torch.get_rng_state()
    empty_policy(PolicyConfig(pretrained=str(policy_folder), lora=SMALL, frozen_layers=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_architecture_that_takes_no_adapters_is_refused_in_one_line(tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "conv_kernel": 2}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **sizes)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(ModelError, match=r"^lora\.target_modules: .*'out_proj' is incompatible with Mamba") as caught:
        adapted(tmp_path, lora=LoRAConfig(target_modules=["all-linear"]))
    assert "\n" not in str(caught.value)


def test_an_architecture_without_usual_targets_asks_for_them(policy_folders, monkeypatch):
    lm = load_causal_lm(PolicyConfig(pretrained=str(policy_folders["gptj"])))
    lm.config.model_type = "brand_new"
    monkeypatch.setattr("lightning_rarlhf.loading.policy_loading.load_causal_lm", lambda *_: lm)
    with pytest.raises(ModelError, match=r"no usual targets are known for brand_new.*q_proj"):
        adapted(policy_folders["gptj"])


def test_all_linear_layers_can_be_adapted_but_not_the_output(policy_folders):
    actor = adapted(policy_folders["gptj"], lora=LoRAConfig(target_modules=["all-linear"]))
    targets = {n.split(".lora_")[0].rpartition(".")[2] for n, _ in actor.named_parameters() if "lora_" in n}
    assert targets == {"q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"}


@pytest.mark.parametrize("family", FAMILIES)
def test_head_and_critic_are_not_quantised(policy_folders, family):
    actor = adapted(policy_folders[family], quantization="8bit")
    assert actor.lm.get_output_embeddings().weight.dtype == torch.float32
    assert actor.value_head.weight.dtype == torch.float32
    assert any(p.dtype == torch.int8 for p in actor.parameters())
