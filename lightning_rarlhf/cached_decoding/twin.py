"""A network's modules once more, on the same weights or on copies in autocast's type, to be compiled."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_rarlhf.language_model import LanguageModel
from lightning_rarlhf.layers.cpu_linear import multiply_by_torch
from lightning_rarlhf.layers.packed_linear import PackedLinear, PackedWeight, can_pack, pack


class Twin:
    """The twin of a network. Hooks that come and go on the network itself are not compiled.

    Weights are shared. Under autocast the twin's linear layers have bfloat16 copies of their own, on a CPU in oneDNN's
    order, which are written anew for each batch: cast inside the step, the weights would be read in float32 at every
    token. The copies take half of those weights' memory, for as long as the run goes on.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._setting = _setting(model)
        self._shared = _tensors(model)
        self._addresses = _addresses(self._shared)
        shared: dict[int, Any] = {id(tensor): tensor for tensor in self._shared}
        self.model = copy.deepcopy(model, shared)
        """on the network's own weights alone, until `copy_weights`"""
        multiply_by_torch(self.model)
        self.packed: list[PackedWeight] = []
        self.copied: list[tuple[Tensor, Tensor]] = []

    def serves(self, model: LanguageModel) -> bool:
        """Whether device, precision and the tensors that it reads are still those that it was made for."""
        now = _tensors(model)
        same = len(now) == len(self._shared) and all(map(operator.is_, now, self._shared))
        return same and _addresses(now) == self._addresses and self._setting == _setting(model)

    def copy_weights(self) -> None:
        """Give the linear layers weights of autocast's type, if there is one; `refresh` fills them."""
        self.packed = _pack_linear_weights(self.model, *self._setting)
        self.copied = _cast_linear_weights(self.model, self._setting[1])

    def refresh(self) -> None:
        """Bring the copies of the weights up to date; each stays at its address."""
        if self.copied:
            copies, weights = zip(*self.copied, strict=True)
            torch._foreach_copy_(copies, weights)
        for packed in self.packed:
            packed.refresh()


def copies_bytes(model: LanguageModel) -> int:
    """Bytes of the copies that bf16-mixed sampling keeps of the linear layers' weights."""
    return sum(weight.numel() * torch.bfloat16.itemsize for _, _, weight in _cast_weights(model))


def _setting(model: LanguageModel) -> tuple[torch.device, torch.dtype | None]:
    kind = model.device.type
    return model.device, torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _tensors(model: LanguageModel) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _addresses(tensors: list[Tensor]) -> list[tuple[int, torch.dtype]]:
    """What a compiled step has fixed of them."""
    return [(tensor.data_ptr(), tensor.dtype) for tensor in tensors]


def _pack_linear_weights(twin: LanguageModel, device: torch.device, dtype: torch.dtype | None) -> list[PackedWeight]:
    """Pack the weights of a twin's linear layers, where autocast is to bfloat16 on a CPU that can; none elsewhere."""
    if device.type != "cpu" or dtype != torch.bfloat16 or not can_pack():
        return []
    from transformers.pytorch_utils import Conv1D

    modules = [
        module
        for name, module in twin.lm.named_modules()
        # a subclass may multiply otherwise, and peft looks at its small layers' weights
        if type(module) in (nn.Linear, Conv1D) and ".lora_" not in name and module.weight.dtype == torch.float32
    ]
    return [pack(module) for module in modules]


def _cast_linear_weights(twin: LanguageModel, dtype: torch.dtype | None) -> list[tuple[Tensor, Tensor]]:
    """Give a twin's linear layers weights of autocast's type, None = leave them; each with the one it is a copy of."""
    copied: list[tuple[Tensor, Tensor]] = []
    for module, name, weight in list(_cast_weights(twin)) if dtype is not None else ():
        small = nn.Parameter(torch.empty_like(weight, dtype=dtype), requires_grad=False)
        setattr(module, name, small)
        copied.append((small, weight))
    return copied


def _cast_weights(model: LanguageModel) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """What autocast would cast: the linear layers' float32 weights."""
    from transformers.pytorch_utils import Conv1D

    for module in model.lm.modules():
        if isinstance(module, nn.Linear | Conv1D | PackedLinear):
            for name, weight in module.named_parameters(recurse=False):
                if weight.dtype == torch.float32:
                    yield module, name, weight
