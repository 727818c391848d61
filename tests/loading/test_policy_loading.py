from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_rarlhf.config import PolicyConfig
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.loading.empty_policy import empty_policy
from lightning_rarlhf.loading.policy_loading import (
    VALUE_HEAD_FILE,
    end_of_text_ids,
    load_actor_critic,
    load_causal_lm,
)
from lightning_rarlhf.loading.tokenizer import load_tokenizer
from tests.tiny_models import causal_lm, save_classifier, save_policy


def actor_of(folder, **config):
    return load_actor_critic(PolicyConfig(pretrained=str(folder), **config), load_tokenizer(str(folder)))


def test_dtype_is_the_users_not_the_checkpoints(tmp_path):
    causal_lm("gpt2").bfloat16().save_pretrained(save_policy(tmp_path / "half"))
    assert load_causal_lm(PolicyConfig(pretrained=str(tmp_path / "half"))).dtype == torch.float32
    assert load_causal_lm(PolicyConfig(pretrained=str(tmp_path / "half"), dtype="bfloat16")).dtype == torch.bfloat16


def test_a_saved_critic_is_taken_up(tmp_path):
    from safetensors.torch import save_file

    folder = save_policy(tmp_path / "policy")
    save_file({"weight": torch.full((1, 16), 0.5), "bias": torch.tensor([2.0])}, folder / VALUE_HEAD_FILE)
    assert actor_of(folder).value_head.bias.item() == 2.0


def test_generation_configs_with_several_ends_are_respected(policy_folder):
    lm = load_causal_lm(PolicyConfig(pretrained=str(policy_folder)))
    lm.generation_config.eos_token_id = [7, 1]
    assert end_of_text_ids(lm, load_tokenizer(str(policy_folder))) == [1, 7]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nowhere/at/all", "no such folder"),
        ("./missing", "no such folder"),
        ("someone/some-model", "HF_HUB_OFFLINE=1.*local folder"),
        ("not a name!", "local folder"),
    ],
)
def test_a_name_that_is_nowhere_is_refused_in_one_line(name, message):
    with pytest.raises(ModelError, match=message) as caught:
        load_causal_lm(PolicyConfig(pretrained=name))
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_causal_lm(PolicyConfig(pretrained=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="not a causal language model") as caught:
        load_causal_lm(PolicyConfig(pretrained=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_layers_too_narrow_for_four_bits_are_refused(policy_folder):
    with pytest.raises(ModelError, match=r"blocks of 64 weights, its layers have 16 inputs; .*8bit"):
        load_causal_lm(PolicyConfig(pretrained=str(policy_folder), quantization="4bit"))


@pytest.fixture
def loud():
    """transformers as a user has it, table of missing weights included; the tests' own silence would hide it."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_warning()
    yield
    logging.set_verbosity(before)


@pytest.mark.usefixtures("loud")
@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "GPT2ForSequenceClassification"])
def test_a_classifier_is_no_policy(tmp_path, policy_folder, capfd, kind):
    if kind.startswith("GPT2"):  # has all weights of the language model, tied as its output layer is
        from transformers import AutoModelForSequenceClassification

        AutoModelForSequenceClassification.from_pretrained(policy_folder).save_pretrained(save_policy(tmp_path))
    else:
        save_classifier(tmp_path)
    config = PolicyConfig(pretrained=str(tmp_path))
    capfd.readouterr()
    for load in (load_causal_lm, empty_policy):
        with pytest.raises(
            ModelError, match=f"holds {kind}, expected a causal language model; give the language model"
        ):
            load(config)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("loud")
def test_missing_weights_are_not_made_up(tmp_path, capfd):
    weights = load_file(save_policy(tmp_path) / "model.safetensors")
    lost = weights.pop("transformer.h.1.mlp.c_fc.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    capfd.readouterr()
    with pytest.raises(
        ModelError, match=r"lacks 1 of its network's weights, .*random, transformer\.h\.1\.mlp\.c_fc\.weight"
    ):
        load_causal_lm(PolicyConfig(pretrained=str(tmp_path)))
    assert "LOAD REPORT" not in capfd.readouterr().err
    own = {"transformer.h.1.mlp.c_fc.weight": lost, "v_head.summary.weight": torch.zeros(1, 16)}  # as TRL saves it
    save_file(weights | own, tmp_path / "model.safetensors", metadata={"format": "pt"})
    load_causal_lm(PolicyConfig(pretrained=str(tmp_path)))
    assert "LOAD REPORT" not in capfd.readouterr().err
