"""Linear layers whose bfloat16 weights oneDNN has laid out beforehand, for the few rows of a sampling step on a CPU.

oneDNN multiplies by weights in an order of its own. Given a plain one it puts it into that order first, at every
product, which for a few rows takes as long as the product. It is done here once a batch. The products are the same to
the bit.
"""

from __future__ import annotations

from functools import cache
from itertools import count
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

_NUMBERS = count()
_PACKED: WeakValueDictionary[int, PackedWeight] = WeakValueDictionary()


class PackedWeight:
    """A linear layer's weight in bfloat16 and in oneDNN's order.

    Attributes:
        number: by which `lightning_rarlhf::packed_linear` finds it. torch's compiler can follow a number, but not a
            tensor in an order that it does not know.
        weight: what it is made of, [N, K].
        columns: N of the result.
    """

    def __init__(self, weight: Tensor) -> None:
        """Pack it as it is now.

        Args:
            weight: [N, K] of any type and strides; held, and read again by `refresh`.
        """
        self.weight = weight.detach()
        self.columns = len(weight)
        self.number = next(_NUMBERS)
        _PACKED[self.number] = self
        self.refresh()

    def refresh(self) -> None:
        """Bring it up to date with the weight, which has moved in place."""
        self._held: Tensor | None = None  # before the new one is made
        self._held = torch.ops.mkldnn._reorder_linear_weight(self.weight.to(torch.bfloat16).contiguous())

    def product(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """inputs [..., K] · weightᵀ + bias [N], all in bfloat16 → [..., N]."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._held, bias, "none", [], "")
        return result


def _product(inputs: Tensor, bias: Tensor | None, number: int, _columns: int) -> Tensor:
    return _PACKED[number].product(inputs, bias)


def _shape(inputs: Tensor, _bias: Tensor | None, _number: int, columns: int) -> Tensor:
    return inputs.new_empty(*inputs.shape[:-1], columns)


_LIBRARY = torch.library.Library("lightning_rarlhf", "DEF")
_LIBRARY.define("packed_linear(Tensor inputs, Tensor? bias, int number, int columns) -> Tensor")
_LIBRARY.impl("packed_linear", _product, "CPU")
torch.library.register_fake("lightning_rarlhf::packed_linear", _shape, lib=_LIBRARY)


class PackedLinear(nn.Module):
    """What a linear layer becomes: [..., K] → bfloat16 [..., N], without gradients."""

    bias: Tensor | None
    packed: PackedWeight
    transposed: bool

    @property
    def weight(self) -> Tensor:
        """The weight as the layer had it, for architectures that read it themselves."""
        return self.packed.weight.t() if self.transposed else self.packed.weight

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = torch.ops.lightning_rarlhf.packed_linear(
            inputs.to(torch.bfloat16), self.bias, self.packed.number, self.packed.columns
        )
        return result


def pack(layer: nn.Module) -> PackedWeight:
    """Let a linear layer, or GPT-2's, multiply by its packed weight; its bias must be in bfloat16 by the first product.

    The layer stays the object that it is, so that hooks on it and names of it hold.
    """
    transposed = not isinstance(layer, nn.Linear)  # GPT-2's is stored as [K, N]
    packed = PackedWeight(layer.weight.t() if transposed else layer.weight)  # type: ignore[operator, arg-type]
    del layer.weight
    layer.__class__ = PackedLinear
    layer.packed, layer.transposed = packed, transposed  # type: ignore[assignment]
    return packed


@cache
def can_pack() -> bool:
    """Whether this machine and this build of torch can; no public function reaches the product, so look and try."""
    if not torch.backends.mkldnn.is_available():
        return False
    with torch.device("cpu"), torch.no_grad():
        left, right = torch.arange(6.0).view(2, 3).bfloat16(), torch.arange(12.0).view(4, 3)
        try:
            made = PackedWeight(right).product(left, torch.arange(4.0).bfloat16())
            return torch.equal(made, (left.float() @ right.t() + torch.arange(4.0)).bfloat16())
        except (AttributeError, RuntimeError, TypeError):
            return False
