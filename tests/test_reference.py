"""Which network a reference is; how runs refuse what cannot be compared is in `test_bad_input`."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from lightning_rarlhf.config import LoRAConfig, PolicyConfig
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.loading.lora import WithoutAdapter
from lightning_rarlhf.loading.policy_loading import load_actor_critic
from lightning_rarlhf.loading.tokenizer import load_tokenizer
from lightning_rarlhf.reference import FrozenModel, is_start, load_reference, reference_of


@pytest.mark.parametrize(
    ("reference", "revision", "same"),
    [(None, "v2", True), ("x", None, True), ("x@v2", "v2", True), ("x", "v2", False), ("x@v2", None, False)],
)
def test_a_reference_is_the_start_if_its_revision_is_too(reference, revision, same):
    assert is_start(PolicyConfig(pretrained="x", revision=revision), reference) == same


def test_a_name_may_pin_a_revision_and_none_is_the_policys_own() -> None:
    policy = PolicyConfig(pretrained="x", revision="v2")
    assert reference_of(policy, None) == ("x", "v2")
    assert reference_of(policy, "y@v3") == ("y", "v3")


def frozen_weights(reference, actor) -> list[bool]:
    """Of each of the reference's parameters, whether it is the policy's own memory."""
    own = {parameter.data_ptr() for parameter in actor.parameters()}
    return [parameter.data_ptr() in own for parameter in reference.model.parameters()]


def test_the_start_is_a_frozen_copy_that_shares_what_the_policy_never_moves(policy_folder) -> None:
    tokenizer = load_tokenizer(str(policy_folder))
    shared = []
    for settings in ({}, {"frozen_layers": 1}):
        policy = PolicyConfig(pretrained=str(policy_folder), **settings)
        actor = load_actor_critic(policy, tokenizer)
        reference = load_reference(policy, None, actor)
        assert isinstance(reference, FrozenModel)
        assert not any(parameter.requires_grad for parameter in reference.model.parameters())
        shared.append(frozen_weights(reference, actor))
        for theirs, ours in zip(reference.model.lm.parameters(), actor.lm.parameters(), strict=True):
            assert torch.equal(theirs, ours)
    assert not any(shared[0])
    assert any(shared[1])
    assert not all(shared[1])


def test_of_its_own_start_an_adapted_policy_is_the_reference_itself(policy_folder) -> None:
    policy = PolicyConfig(pretrained=str(policy_folder), lora=LoRAConfig())
    tokenizer = load_tokenizer(str(policy_folder))
    actor = load_actor_critic(policy, tokenizer)
    assert isinstance(load_reference(policy, None, actor), WithoutAdapter)


def test_a_reference_that_is_not_there_is_refused(policy_folder, tmp_path) -> None:
    policy = PolicyConfig(pretrained=str(policy_folder))
    tokenizer = load_tokenizer(str(policy_folder))
    with pytest.raises(ModelError):
        load_reference(policy, str(tmp_path), load_actor_critic(policy, tokenizer))


def test_another_reference_is_asked_about_the_tokens_that_end_the_policys_responses(policy_folder, tmp_path) -> None:
    """Both are renormalised without them before the least length, or the KL of equal weights would not be 0."""
    other = shutil.copytree(policy_folder, tmp_path / "other")
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5]}))
    tokenizer, policy = load_tokenizer(str(policy_folder)), PolicyConfig(pretrained=str(policy_folder))
    actor = load_actor_critic(policy, tokenizer)
    reference = load_reference(policy, str(other), actor)
    assert reference.model.eos_token_ids.tolist() == actor.eos_token_ids.tolist() == [1]
