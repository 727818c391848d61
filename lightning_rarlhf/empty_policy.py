"""The policy without contents, made from its configuration alone: what need not wait for weights is found out on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_rarlhf.config import PolicyConfig
from lightning_rarlhf.frozen_layers import require_left
from lightning_rarlhf.hub import base_of_adapter, require_model
from lightning_rarlhf.lora import add_adapter
from lightning_rarlhf.own_code import load_failure, load_pretrained, may_run_code
from lightning_rarlhf.plain_logits import require_plain_logits
from lightning_rarlhf.policy import ActorCritic
from lightning_rarlhf.rehearsal import rehearsed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class EmptyPolicy(ActorCritic):
    """A policy that reads every column: which of them are padding cannot be asked of tensors without contents."""

    def before_responses(
        self, sequences: Tensor, attention_mask: Tensor, response_length: int, frozen_states: Tensor | None = None
    ) -> Tensor:
        with self.above(frozen_states):
            return self.trunk(sequences, attention_mask, read=response_length + 1)[:, -response_length - 1 : -1]


def empty_policy(policy: PolicyConfig) -> ActorCritic:
    """The policy without contents, on the meta device, ready to be rehearsed; quantised weights keep their full shape.

    Raises:
        ModelError: no such model, one that changes its logits after the output layer, adapters for layers that it does
            not have, or layers to freeze that are not there or cannot be told from the others.
    """
    with torch.device("meta"):
        lm = _empty_network(policy)
        require_left(lm, policy.frozen_layers)
        if policy.lora is not None:
            add_adapter(lm, policy.lora, policy.frozen_layers)
        if policy.gradient_checkpointing:
            lm.activation_checkpointing_enable()
        if policy.quantization is not None:
            lm.requires_grad_(False)
            for name, parameter in lm.named_parameters():
                parameter.requires_grad_(".lora_" in name)
        actor = EmptyPolicy(lm, [0], policy.frozen_layers)
    _require_known_way(actor, policy.pretrained)
    return actor


def read_configuration(name: str, revision: str | None) -> Any:
    """The configuration of a model, or of the base of an adapter, by hub id or folder.

    Raises:
        ModelError: nothing there that transformers knows.
    """
    from transformers import AutoConfig

    require_model(name, revision)
    base, pinned = base_of_adapter(name, revision) or (name, revision)
    return load_pretrained(AutoConfig, base, "a model's configuration", revision=pinned)


def _require_known_way(actor: ActorCritic, name: str) -> None:
    """Refuse logits that are not the output layer's, and layers that cannot be frozen.

    An architecture that cannot be rehearsed is asked with its weights.
    """
    ids = torch.zeros(1, 3, dtype=torch.int64)
    with rehearsed(actor), torch.no_grad():
        try:
            actor.trunk(ids, torch.ones_like(ids, dtype=torch.bool))
            require_plain_logits(actor.lm, name)
        except RuntimeError:
            return
        actor.require_separable()


def _empty_network(policy: PolicyConfig) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    options = {} if policy.attn_implementation is None else {"attn_implementation": policy.attn_implementation}
    config = read_configuration(policy.pretrained, policy.revision)
    try:
        lm: PreTrainedModel = AutoModelForCausalLM.from_config(
            config,
            dtype=getattr(torch, policy.dtype),
            trust_remote_code=may_run_code(policy.pretrained, policy.revision),
            **options,
        )
    except (ValueError, ImportError) as error:
        raise load_failure(policy.pretrained, "a causal language model", error) from error
    return lm
