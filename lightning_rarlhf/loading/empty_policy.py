"""The policy without contents, made from its configuration alone: what need not wait for weights is found out on it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_rarlhf.config import PolicyConfig
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.layers.frozen_layers import require_left
from lightning_rarlhf.layers.plain_logits import require_plain_logits
from lightning_rarlhf.loading.hub import base_of_adapter, require_model
from lightning_rarlhf.loading.lora import add_adapter
from lightning_rarlhf.loading.own_code import load_failure, load_pretrained, may_run_code
from lightning_rarlhf.loading.rehearsal import rehearsed
from lightning_rarlhf.policy import ActorCritic

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
        ModelError: no such model, one with another head or that changes its logits after the output layer, adapters for
            layers that it does not have, or layers to freeze that are not there or cannot be told from the others.
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


def read_configuration(name: str, revision: str | None, what: str = "a model's configuration") -> Any:
    """The configuration of a model, or of the base of an adapter, by hub id or folder; `what` it is, for a message.

    Raises:
        ModelError: nothing there that transformers knows.
    """
    from transformers import AutoConfig

    require_model(name, revision)
    base = base_of_adapter(name, revision)
    if base is not None:
        require_model(*base)
    base_name, pinned = base or (name, revision)
    return load_pretrained(AutoConfig, base_name, what, revision=pinned)


def causal_configuration(name: str, revision: str | None) -> Any:
    """As `read_configuration`, of a language model.

    Raises:
        ModelError: nothing there, or a network that was saved with another head: transformers would put a new one, of
            random weights, in its place.
    """
    config = read_configuration(name, revision, "a causal language model")
    saved_as = list(getattr(config, "architectures", None) or [])
    if saved_as and all(_OTHER_HEAD.search(kind) for kind in saved_as):
        raise ModelError(
            f"{name}: holds {saved_as[0]}, expected a causal language model; give the language model that it was made "
            "from, or another"
        )
    return config


_OTHER_HEAD = re.compile(r"For(Sequence|Token)Classification$|ForQuestionAnswering$|ForMultipleChoice$|ForMaskedLM$")
"""in what a model's own configuration calls it"""


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
    config = causal_configuration(policy.pretrained, policy.revision)
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
