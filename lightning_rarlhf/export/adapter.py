"""A trained adapter as peft itself writes it: a few megabytes that are loaded on top of the base model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.loading.lora import START, TRAINED, is_adapted

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor
    from transformers import PreTrainedModel

_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."


def save_adapter(lm: PreTrainedModel, folder: Path, base: str, revision: str | None) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``, and read the weights back.

    Args:
        lm: a policy's network.
        folder: an existing folder.
        base: hub id or folder of the model that the adapter belongs to.
        revision: the base's, on the hub.

    Raises:
        ModelError: no adapter was trained, or it stands on another adapter, or the file does not hold what was written.
    """
    from safetensors.torch import load_file, save_file

    if not is_adapted(lm):
        raise ModelError("export as an adapter: none was trained (model.policy.lora); export the model merged")
    settings = _settings(lm)
    settings.base_model_name_or_path, settings.revision = base, revision
    settings.inference_mode = True
    weights = _weights(lm)
    save_file(weights, folder / _FILE)
    settings.save_pretrained(str(folder))
    again = load_file(folder / _FILE)
    if again.keys() != weights.keys() or not all(torch.equal(again[name], weights[name]) for name in weights):
        raise ModelError(f"export to {folder.name}: its file does not hold what was written; nothing was replaced")


def _settings(lm: PreTrainedModel) -> LoraConfig:
    adapters = cast("dict[str, LoraConfig]", lm.peft_config)
    if START in adapters:
        raise ModelError(
            "export as an adapter: this policy started from an adapter on quantised weights, so it is the sum of two; "
            "export it merged"
        )
    return copy.deepcopy(adapters[TRAINED])


def _weights(lm: PreTrainedModel) -> dict[str, Tensor]:
    """The trained adapter's matrices under the names that peft gives them."""
    return {
        f"{_PREFIX}{name.replace(f'.{TRAINED}.', '.')}": weight.detach().cpu().contiguous()
        for name, weight in lm.named_parameters()
        if f".{TRAINED}." in name
    }
