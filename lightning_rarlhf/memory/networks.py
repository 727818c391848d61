"""The networks of a run, made from their configurations alone, and the bytes of their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_rarlhf.config import PolicyConfig
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.frozen_layers import require_left
from lightning_rarlhf.hub import base_of_adapter, require_model
from lightning_rarlhf.lora import add_adapter, linear_layers
from lightning_rarlhf.own_code import load_pretrained
from lightning_rarlhf.plain_text import first_line
from lightning_rarlhf.policy import ActorCritic

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BYTES_PER_WEIGHT = {"8bit": 1.0, "4bit": 0.5 + 1 / 64 + 4 / 64 / 256}
"""with nf4: half a byte, and for each 64 weights a scale of 8 bits, doubly quantised in blocks of 256"""


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
        ModelError: no such model, or adapters for layers that it does not have.
    """
    from transformers import AutoModelForCausalLM

    options = {} if policy.attn_implementation is None else {"attn_implementation": policy.attn_implementation}
    config = _config(policy.pretrained, policy.revision)
    with torch.device("meta"):
        try:
            lm: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, policy.dtype), **options
            )
        except ValueError as error:
            raise ModelError(f"{policy.pretrained}: not a causal language model ({first_line(error)})") from error
        require_left(lm, policy.frozen_layers)
        if policy.lora is not None:
            add_adapter(lm, policy.lora, policy.frozen_layers)
        if policy.gradient_checkpointing:
            lm.activation_checkpointing_enable()
        if policy.quantization is not None:
            lm.requires_grad_(False)
            for name, parameter in lm.named_parameters():
                parameter.requires_grad_(".lora_" in name)
        return EmptyPolicy(lm, [0], policy.frozen_layers)


def empty_classifier(name: str, revision: str | None, dtype: str) -> PreTrainedModel:
    """A sequence classifier without contents."""
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
            _config(name, revision), dtype=getattr(torch, dtype)
        )
    model.eval().requires_grad_(False)
    return model


def weight_bytes(network: nn.Module, quantization: str | None = None) -> int:
    """Bytes of a network's weights; its linear layers, but for the output layer, may be quantised."""
    total = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    if quantization is None:
        return total
    lm: Any = getattr(network, "lm", network)
    for name, layer in linear_layers(lm).items():
        if ".lora_" not in name:
            weight: Any = layer.weight
            scales = 4 * max(weight.shape) if quantization == "8bit" else 0
            total += int(weight.numel() * _BYTES_PER_WEIGHT[quantization]) + scales
            total -= weight.numel() * weight.element_size()
    return total


def trained_bytes(network: nn.Module) -> int:
    """Bytes of what learns, and so of its gradient."""
    return sum(p.numel() * p.element_size() for p in network.parameters() if p.requires_grad)


def largest_block(network: nn.Module) -> int:
    """Bytes of the largest part that a sharded network makes whole at once: a block, or all outside them."""
    names = {name for module in network.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    blocks = [weight_bytes(module) for module in network.modules() if type(module).__name__ in names]
    return max([weight_bytes(network) - sum(blocks), *blocks])


def _config(name: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    require_model(name, revision)
    base, pinned = base_of_adapter(name, revision) or (name, revision)
    return load_pretrained(AutoConfig, base, "a model's configuration", revision=pinned)
