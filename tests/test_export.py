from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_rarlhf.config import PolicyConfig
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.export import export_policy
from lightning_rarlhf.policy_loading import VALUE_HEAD_FILE, load_actor_critic
from lightning_rarlhf.tokenizer import load_tokenizer
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
    (tmp_path / "out" / "stale.txt").write_text("old")
    export_policy(actor, tokenizer, tmp_path / "out", with_critic=True)
    assert not (tmp_path / "out" / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_copy_that_answers_differently_is_refused_and_the_old_one_kept(policy_folder, tmp_path, monkeypatch):
    actor, tokenizer = trained(policy_folder)
    (tmp_path / "out").mkdir()
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
