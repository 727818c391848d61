"""The frozen policy that KL is measured from: which one a run means, whether it can be compared, and its loading."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from lightning_rarlhf.config import PolicyConfig, SamplingConfig
from lightning_rarlhf.data_types import Samples
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.language_model import LanguageModel
from lightning_rarlhf.loading.empty_policy import causal_configuration
from lightning_rarlhf.loading.hub import require_model, split_revision
from lightning_rarlhf.loading.lora import WithoutAdapter
from lightning_rarlhf.loading.policy_loading import load_causal_lm
from lightning_rarlhf.loading.tokenizer import load_tokenizer, require_same_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Reference(Protocol):
    """The frozen distribution that KL is measured against."""

    def response_logprobs(self, samples: Samples, sampling: SamplingConfig) -> Tensor:
        """log π_ref(a_t | s_t) of every response token; f32 [B, T], without gradient."""


class FrozenModel:
    """Holds a network out of Lightning's sight: in no checkpoint, no optimizer and no wrapper."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model.requires_grad_(False)

    def to(self, device: torch.device) -> FrozenModel:
        self.model.to(device)
        return self

    @torch.no_grad()
    def response_logprobs(self, samples: Samples, sampling: SamplingConfig) -> Tensor:
        """log π_ref(a_t | s_t) of every response token; f32 [B, T]."""
        return self.model.response_logprobs(samples, sampling)


def is_start(policy: PolicyConfig, named: str | None) -> bool:
    """Whether a reference of that name, None = none named, is the network that the policy starts from."""
    return reference_of(policy, named) == (policy.pretrained, policy.revision)


def reference_of(policy: PolicyConfig, named: str | None) -> tuple[str, str | None]:
    """Name and revision of the reference that is named so; None = the policy's own."""
    return (policy.pretrained, policy.revision) if named is None else split_revision(named)


def require_same_words(policy: PolicyConfig, named: str | None, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a reference that means other texts by the policy's ids, where its folder can tell; before any weights.

    Args:
        policy: the policy's settings.
        named: hub id[@revision] or folder of the reference; None = the policy's own start.
        tokenizer: the policy's.

    Raises:
        ModelError: nothing there, or with the first token that differs.
    """
    if is_start(policy, named):
        return
    name, revision = reference_of(policy, named)
    require_model(name, revision)
    try:
        theirs = load_tokenizer(name, revision)
    except ModelError:  # weights alone
        return
    require_same_tokens(tokenizer, theirs, f"reference {name}", may_lack=True)


def load_reference(
    policy: PolicyConfig,
    named: str | None,
    actor: LanguageModel,
    device: torch.device | None = None,
) -> Reference:
    """The starting policy, unless another is named: KL is then 0 at iteration 0.

    Of its own start an adapted policy is the reference itself, with its adapter off; one with frozen layers shares
    those with the reference.

    Args:
        policy: the policy's settings; its quantisation, dtype and attention are the reference's too.
        named: hub id[@revision] or folder of the reference; None = the policy's own start.
        actor: the policy, not trained yet.
        device: where quantised weights are made; None = the CPU.

    Raises:
        ModelError: nothing there, no causal language model, or one of another vocabulary.
    """
    own = is_start(policy, named)
    if own and policy.lora is not None:
        return WithoutAdapter(actor)
    if own and policy.frozen_layers:
        return FrozenModel(actor.twin())
    name, revision = reference_of(policy, named)
    vocabulary = int(causal_configuration(name, revision).get_text_config().vocab_size)
    if vocabulary != actor.vocabulary:
        raise ModelError(
            f"reference {name} has {vocabulary} tokens, the policy {policy.pretrained} "
            f"{actor.vocabulary}: KL needs one vocabulary; name a reference of the policy's family"
        )
    config = PolicyConfig(
        pretrained=name,
        revision=revision,
        quantization=policy.quantization,
        dtype=policy.dtype,
        attn_implementation=policy.attn_implementation,
    )
    lm = load_causal_lm(config, device)
    # the policy's list of ends, not its own: before the least length both must ban the same tokens
    return FrozenModel(LanguageModel(lm, actor.eos_token_ids.tolist()))
