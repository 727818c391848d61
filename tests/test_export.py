from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_rarlhf.config import LoRAConfig, PolicyConfig, SamplingConfig
from lightning_rarlhf.errors import ModelError, WriteError
from lightning_rarlhf.export import export_policy
from lightning_rarlhf.loading.lora import WithoutAdapter
from lightning_rarlhf.loading.policy_loading import VALUE_HEAD_FILE, load_actor_critic
from lightning_rarlhf.loading.tokenizer import load_tokenizer
from tests.loading.test_lora import train_a_little
from tests.test_policy import PROMPTS, RESPONSES, samples_of
from tests.tiny_models import FAMILIES


def trained(folder):
    """A policy whose weights are not the folder's any more."""
    tokenizer = load_tokenizer(str(folder))
    actor = load_actor_critic(PolicyConfig(pretrained=str(folder)), tokenizer)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return actor, tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_is_plain_and_gives_the_same_logits(policy_folders, family, tmp_path):
    actor, tokenizer = trained(policy_folders[family])
    export_policy(actor, tokenizer, tmp_path / "out", with_critic=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(model(ids).logits, actor.lm(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode("the film was") == tokenizer.encode("the film was")


def test_the_value_head_lies_beside_and_is_taken_up_again(policy_folder, tmp_path):
    actor, tokenizer = trained(policy_folder)
    export_policy(actor, tokenizer, tmp_path / "out", with_critic=True)
    assert torch.equal(load_file(tmp_path / "out" / VALUE_HEAD_FILE)["weight"], actor.value_head.weight)
    again = load_actor_critic(PolicyConfig(pretrained=str(tmp_path / "out")), tokenizer)
    assert torch.equal(again.value_head.weight, actor.value_head.weight)


def test_a_critic_that_was_not_trained_is_left_out(policy_folder, tmp_path):
    actor, tokenizer = trained(policy_folder)
    export_policy(actor, tokenizer, tmp_path / "out", with_critic=False)
    assert not (tmp_path / "out" / VALUE_HEAD_FILE).exists()


def test_an_older_export_is_replaced_and_nothing_else_left(policy_folder, tmp_path):
    actor, tokenizer = trained(policy_folder)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    (tmp_path / "out" / "stale.txt").write_text("old")
    export_policy(actor, tokenizer, tmp_path / "out", with_critic=True)
    assert not (tmp_path / "out" / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_copy_that_answers_differently_is_refused_and_the_old_one_kept(policy_folder, tmp_path, monkeypatch):
    actor, tokenizer = trained(policy_folder)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    (tmp_path / "out" / "kept.txt").write_text("old")
    save = type(actor.lm).save_pretrained

    def broken(self, folder, **settings):
        other, _ = trained(policy_folder)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.neg_()
        save(other.lm, folder, **settings)

    monkeypatch.setattr(type(actor.lm), "save_pretrained", broken)
    with pytest.raises(ModelError, match="prompts differently; nothing was replaced"):
        export_policy(actor, tokenizer, tmp_path / "out", with_critic=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "kept.txt").exists()


def test_a_full_disk_is_said_in_a_line_and_the_old_export_kept(policy_folder, tmp_path, monkeypatch):
    actor, tokenizer = trained(policy_folder)
    (tmp_path / "out").mkdir()

    def full(tensors, path):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(WriteError, match="could not be written .*No space left on device.*; nothing was replaced"):
        export_policy(actor, tokenizer, tmp_path / "out", with_critic=True, training={"steps": 1})
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


LORA = LoRAConfig(r=4, alpha=8)
PROMPT = torch.tensor([[3, 4, 5], [9, 10, 11]])


def adapted(folder, **config):
    """A policy with an adapter that has learned."""
    tokenizer = load_tokenizer(str(folder))
    policy = PolicyConfig(pretrained=str(folder), lora=LORA, **config)
    actor = load_actor_critic(policy, tokenizer)
    train_a_little(actor)
    return actor, tokenizer, policy


def greedy(model) -> list[list[int]]:
    tokens = PROMPT
    for _ in range(12):
        tokens = torch.cat([tokens, model(tokens).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return tokens.tolist()


def assert_nearly_greedy(model, tokens) -> None:
    """Each token after the prompt is within a quarter of a standard deviation of the model's own choice."""
    logits = model(tokens).logits[:, PROMPT.shape[1] - 1 : -1]
    chosen = logits.gather(2, tokens[:, PROMPT.shape[1] :, None])[..., 0]
    assert ((logits.amax(2) - chosen) / logits.std(2)).max() < 0.25


@pytest.mark.parametrize("quantization", [None, "8bit"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_adapter_is_a_plain_model_with_the_same_answers(policy_folders, family, quantization, tmp_path):
    actor, tokenizer, _ = adapted(policy_folders[family], quantization=quantization)
    before = {name: value.clone() for name, value in actor.state_dict().items()}
    export_policy(actor, tokenizer, tmp_path / "out", with_critic=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    if quantization is None:
        assert greedy(model) == greedy(actor.lm)
    else:  # 8-bit layers round their inputs, so a near tie may fall the other way
        assert_nearly_greedy(actor.lm, torch.tensor(greedy(model)))
    assert all("lora" not in name and "base_layer" not in name for name in model.state_dict())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    after = actor.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())  # exporting changed nothing
    closeness = {"atol": 0.2, "rtol": 0.1} if quantization else {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(model(PROMPT).logits, actor.lm(PROMPT).logits, **closeness)


@pytest.mark.parametrize("quantization", [None, "8bit"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapters_folder_is_read_by_transformers_and_by_us(policy_folders, family, quantization, tmp_path):
    actor, tokenizer, policy = adapted(policy_folders[family], quantization=quantization)
    export_policy(actor, tokenizer, tmp_path / "out", with_critic=True, form="adapter", policy=policy)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    if quantization is None:
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
        assert greedy(model) == greedy(actor.lm)
    again = load_actor_critic(PolicyConfig(pretrained=str(tmp_path / "out"), quantization=quantization), tokenizer)
    assert greedy(again.lm) == greedy(actor.lm)
    assert torch.equal(again.value_head.weight, actor.value_head.weight)
    assert load_tokenizer(str(tmp_path / "out")).encode("the film was") == tokenizer.encode("the film was")


@pytest.mark.parametrize("quantization", [None, "8bit"])
def test_training_can_start_from_an_adapters_folder(policy_folders, quantization, tmp_path):
    """SFT left an adapter: the policy and the reference of RLHF are base and adapter together, to the bit."""
    sft, tokenizer, policy = adapted(policy_folders["gptj"], quantization=quantization)
    export_policy(sft, tokenizer, tmp_path / "sft", with_critic=False, form="adapter", policy=policy)
    start = PolicyConfig(pretrained=str(tmp_path / "sft"), quantization=quantization)
    alone = load_actor_critic(start, tokenizer)
    torch.testing.assert_close(alone.lm(PROMPT).logits, sft.lm(PROMPT).logits)
    actor = load_actor_critic(replace(start, lora=LORA), tokenizer)
    samples = samples_of(PROMPTS, RESPONSES)
    expected = alone.response_logprobs(samples, SamplingConfig())
    assert torch.equal(actor.response_logprobs(samples, SamplingConfig()), expected)
    assert {name.split(".")[-2] for name, p in actor.lm.named_parameters() if p.requires_grad} == {"policy"}
    train_a_little(actor)
    assert torch.equal(WithoutAdapter(actor).response_logprobs(samples, SamplingConfig()), expected)
    export_policy(actor, tokenizer, tmp_path / "both", with_critic=False)
    assert greedy(AutoModelForCausalLM.from_pretrained(tmp_path / "both").eval()) == greedy(actor.lm)
    with pytest.raises(ModelError, match="is their sum; export it merged"):
        export_policy(
            actor, tokenizer, tmp_path / "two", with_critic=False, form="adapter", policy=replace(start, lora=LORA)
        )
    assert not (tmp_path / "two").exists()


def test_without_an_adapter_there_is_none_to_export(policy_folder, tmp_path):
    actor, tokenizer = trained(policy_folder)
    policy = PolicyConfig(pretrained=str(policy_folder))
    with pytest.raises(ModelError, match=r"none was trained.*merged"):
        export_policy(actor, tokenizer, tmp_path / "out", with_critic=False, form="adapter", policy=policy)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_without_its_base_or_of_another_shape_is_refused(policy_folders, tmp_path):
    actor, tokenizer, policy = adapted(policy_folders["gptj"])
    export_policy(actor, tokenizer, tmp_path / "out", with_critic=False, form="adapter", policy=policy)
    settings = tmp_path / "out" / "adapter_config.json"
    for base, message in ((None, "names no base model"), ("/nowhere/base", "/nowhere/base: no such folder")):
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": base}))
        with pytest.raises(ModelError, match=message):
            load_actor_critic(PolicyConfig(pretrained=str(tmp_path / "out")), tokenizer)
