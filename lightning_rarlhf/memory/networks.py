"""The networks of a run, made from their configurations alone, and the bytes of their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lightning_rarlhf.loading.empty_policy import read_configuration
from lightning_rarlhf.loading.lora import linear_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BYTES_PER_WEIGHT = {"8bit": 1.0, "4bit": 0.5 + 1 / 64 + 4 / 64 / 256}
"""with nf4: half a byte, and for each 64 weights a scale of 8 bits, doubly quantised in blocks of 256"""


def empty_classifier(name: str, revision: str | None, dtype: str) -> PreTrainedModel:
    """A sequence classifier without contents."""
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
            read_configuration(name, revision), dtype=getattr(torch, dtype)
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
