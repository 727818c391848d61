"""A policy's network as transformers would make it: adapters merged, quantised weights turned back into numbers."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def plain_model(lm: PreTrainedModel) -> PreTrainedModel:
    """`lm` without adapters and quantisation, for saving: its buffers that no file holds stay empty.

    Weights that need no change are shared with `lm`, so that only the adapted and the quantised layers cost memory.
    A merge is computed in float32 and rounded once to the network's dtype.
    """
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(lm.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=lm.dtype)
    weights = {name: _weight(lm, plain, name).to(lm.dtype) for name in plain.state_dict()}
    plain.load_state_dict(weights, assign=True)
    plain.tie_weights()
    plain.generation_config = lm.generation_config
    return plain


def _weight(lm: PreTrainedModel, plain: PreTrainedModel, name: str) -> Tensor:
    """What `plain` needs under `name`."""
    from peft.tuners.lora import LoraLayer

    path, _, kind = name.rpartition(".")
    layer = lm.get_submodule(path)
    base: nn.Module = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
    if kind != "weight" or not _is_linear(base):
        found: Tensor = getattr(base, kind)
        return found
    weight = _in_numbers(base)
    for delta in _deltas(layer):
        weight = weight.float() + delta.float()
    # GPT-2 stores [in, out]; quantised, its layers are ordinary ones with [out, in]
    return weight if _is_transposed(plain.get_submodule(path)) == _is_transposed(base) else weight.T.contiguous()


def _in_numbers(layer: Any) -> Tensor:
    """A linear layer's weight, turned back into floating point if bitsandbytes holds it."""
    from peft.utils.integrations import dequantize_bnb_weight, get_bnb_param_type

    if not get_bnb_param_type(layer.weight):
        return cast("Tensor", layer.weight)
    return dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None))


def _deltas(layer: Any) -> list[Tensor]:
    """What each active adapter of a layer adds to its weight."""
    if not hasattr(layer, "lora_A"):
        return []
    return [layer.get_delta_weight(adapter) for adapter in layer.active_adapters if adapter in layer.lora_A]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or _is_transposed(module)


def _is_transposed(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)
