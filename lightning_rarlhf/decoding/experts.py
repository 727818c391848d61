"""Loads the other networks of a decoding method, and refuses those that do not speak the policy's tokens."""

from __future__ import annotations

from dataclasses import replace

from lightning_rarlhf.decoding.method import Host
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.language_model import LanguageModel
from lightning_rarlhf.loading.hub import require_model, split_revision
from lightning_rarlhf.loading.policy_loading import end_of_text_ids, load_causal_lm
from lightning_rarlhf.loading.tokenizer import load_tokenizer, require_same_tokens


def require_expert(name: str, role: str) -> None:
    """See that the language model `name` is there.

    Args:
        name: hub id or folder.
        role: what the method calls it, for messages.

    Raises:
        ModelError: nothing there.
    """
    try:
        require_model(*split_revision(name))
    except ModelError as error:
        raise ModelError(f"model.method.{role}: {error}") from None


def load_expert(name: str, role: str, host: Host) -> LanguageModel:
    """The frozen language model `name`, on the policy's device and in its dtype.

    Args:
        name: hub id or folder.
        role: what the method calls it, for messages.
        host: whose vocabulary it must share, token for token.

    Raises:
        ModelError: nothing there, or another vocabulary.
    """
    pretrained, revision = split_revision(name)
    require_same_tokens(host.tokenizer, load_tokenizer(pretrained, revision), f"{role} {name}")
    lm = load_causal_lm(replace(host.config, pretrained=pretrained, revision=revision, lora=None), host.device)
    rows, own = (int(each.config.get_text_config().vocab_size) for each in (lm, host.policy.lm))
    if rows != own:
        raise ModelError(
            f"{role} {name}: has logits for {rows} tokens, the policy {host.config.pretrained} for {own}; give a model "
            "of the policy's family"
        )
    model = LanguageModel(lm, end_of_text_ids(lm, host.tokenizer))
    return model.requires_grad_(False).to(host.device)
