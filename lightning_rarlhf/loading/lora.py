"""Low-rank adapters inside a policy's network: what is trained, and the reference that is left when they are off.

The layers are peft's. They are put into the network in place, so that the network stays an ordinary transformers model
with a trunk and a head.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_rarlhf.config import LoRAConfig, SamplingConfig
from lightning_rarlhf.data_types import Samples
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.language_model import LanguageModel
from lightning_rarlhf.layers.blocks import blocks_of
from lightning_rarlhf.terminal.plain_text import first_line

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer
    from transformers import PreTrainedModel

TRAINED = "policy"
"""Name of the adapter that learns."""
START = "start"
"""Name of a frozen adapter that belongs to the starting policy: one that could not be merged into quantised weights."""


def add_adapter(lm: PreTrainedModel, config: LoRAConfig, frozen_layers: int = 0) -> None:
    """Put the adapter that learns into `lm` and freeze the rest; it changes no output until it was trained (B = 0).

    Args:
        lm: changed in place.
        config: of the adapter.
        frozen_layers: blocks, from the first on, that get none.

    Raises:
        ModelError: a target that names no linear layer; the layers that there are stand in the message.
    """
    import peft

    frozen = _inside(lm, frozen_layers)
    targets = _targets(lm, config, frozen)
    settings = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        exclude_modules=frozen or None,
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=_stores_transposed(lm, targets),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():  # a starting adapter may be there, and is meant
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        try:
            peft.inject_adapter_in_model(settings, lm, adapter_name=TRAINED)
        except ValueError as error:  # layers that an architecture of peft's list cannot have adapters in
            raise ModelError(f"lora.target_modules: {first_line(error)}") from error
    for layer in _layers(lm):
        layer.set_adapter([START, TRAINED])
    for name, parameter in lm.named_parameters():
        learns = f".{TRAINED}." in name
        parameter.requires_grad_(learns)
        if learns:
            parameter.data = parameter.data.float()  # a step of 1e-5 would vanish in bfloat16


def is_adapted(lm: nn.Module) -> bool:
    """Whether an adapter learns inside `lm`."""
    return any(f".{TRAINED}." in name for name, _ in lm.named_parameters())


@contextlib.contextmanager
def without_adapter(lm: PreTrainedModel) -> Iterator[None]:
    """Inside, `lm` is the network that training started from."""
    layers = _layers(lm)
    learning = [parameter for parameter in lm.parameters() if parameter.requires_grad]
    try:
        for layer in layers:
            layer.set_adapter([START], inference_mode=True)
        yield
    finally:
        for layer in layers:
            layer.set_adapter([START, TRAINED])
        lm.requires_grad_(False)  # peft lets the adapters that it switches on learn
        for parameter in learning:
            parameter.requires_grad_(True)


class WithoutAdapter:
    """The starting policy as a reference: the policy's own network with its adapter off; no second copy in memory."""

    def __init__(self, policy: LanguageModel) -> None:
        self._policy = policy

    @torch.no_grad()
    def response_logprobs(self, samples: Samples, sampling: SamplingConfig) -> Tensor:
        """log π_ref(a_t | s_t) of every response token; f32 [B, T]."""
        with without_adapter(self._policy.lm):
            return self._policy.response_logprobs(samples, sampling)


def linear_layers(lm: PreTrainedModel) -> dict[str, nn.Module]:
    """Every layer that may get an adapter, by its full name: the linear ones, without the output layer."""
    from transformers.pytorch_utils import Conv1D

    head = lm.get_output_embeddings()
    return {name: m for name, m in lm.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head}


def _targets(lm: PreTrainedModel, config: LoRAConfig, frozen: list[str]) -> list[str]:
    """Ends of the names of the layers to adapt, each of which there is outside the `frozen` ones."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL

    if config.target_modules == ["all-linear"]:
        return ["all-linear"]
    kind = str(lm.config.model_type)
    # a network with a starting adapter shows its layers as NAME.base_layer
    own = [name for name in linear_layers(lm) if name not in frozen and ".lora_" not in name]
    names = [name.removesuffix(".base_layer") for name in own]
    candidates = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
    wanted = config.target_modules if config.target_modules is not None else USUAL.get(kind)
    if not wanted:
        raise ModelError(
            f"lora: no usual targets are known for {kind}; set policy.lora.target_modules to some of: {candidates}"
        )
    where = f"{kind} above its frozen layers" if frozen else kind
    for target in wanted:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ModelError(
                f"lora.target_modules: {target!r} matches no linear layer of this {where}; expected of: {candidates}"
            )
    return list(wanted)


def _inside(lm: PreTrainedModel, count: int) -> list[str]:
    """Full names of all that is in the first blocks."""
    inside = {module for block in blocks_of(lm)[:count] for module in block.modules()}
    return [name for name, module in lm.named_modules() if module in inside]


def _stores_transposed(lm: PreTrainedModel, targets: list[str]) -> bool:
    """Whether the targets are GPT-2's kind of layer, whose weight is [in, out]."""
    from transformers.pytorch_utils import Conv1D

    return any(
        isinstance(layer, Conv1D)
        for name, layer in linear_layers(lm).items()
        if targets == ["all-linear"] or name.removesuffix(".base_layer").endswith(tuple(targets))
    )


def _layers(lm: PreTrainedModel) -> list[LoraLayer]:
    from peft.tuners.lora import LoraLayer

    return [module for module in lm.modules() if isinstance(module, LoraLayer)]
