"""Linear layers whose float32 products on a CPU are oneDNN's, as its bfloat16 ones are.

torch gives float32 matrices to MKL there, which takes a tenth longer over a minibatch and up to twice as long over the
few rows of a sampling step. oneDNN's product is the one that torch's own compiler calls.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


def multiply_by_onednn(network: nn.Module) -> None:
    """Let the network's plain linear layers, and GPT-2's, do so; elsewhere than in float32 on a CPU nothing changes.

    Layers keep their parameters and stay what they were to `isinstance`; only `forward` is another.
    """
    if not _available():
        return
    classes = _classes()
    for module in network.modules():
        module.__class__ = classes.get(type(module), type(module))


def multiply_by_torch(network: nn.Module) -> None:
    """Undo that: torch's compiler chooses a product of its own, and takes oneDNN's for constant weights only."""
    for module in network.modules():
        own = next((own for own, made in _classes().items() if type(module) is made), type(module))
        module.__class__ = own


@cache
def _available() -> bool:
    """Whether this build of torch has the product; no public function reaches it, so look and try."""
    if not torch.backends.mkldnn.is_available():
        return False
    with torch.device("cpu"):  # a network may be made on the meta device, and the answer holds for the whole process
        left, right, bias = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3), torch.arange(4.0)
    try:
        return torch.equal(_product(left, right, bias), left @ right.t() + bias)
    except (AttributeError, RuntimeError, TypeError):
        return False


def _product(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    """left [M, K] · right [N, K]ᵀ + bias [N] → [M, N]; of any strides."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return result


class _Linear(torch.autograd.Function):
    """`_product` with its gradient."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # a frozen weight has no gradient, for which the inputs would be needed
        ctx.save_for_backward(inputs if ctx.needs_input_grad[1] else None, weight)
        return _product(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        grad: Tensor = grads[0]
        of_inputs, of_weight, of_bias = ctx.needs_input_grad
        return (
            _input_gradient(grad, weight) if of_inputs else None,
            _weight_gradient(grad, inputs, weight) if of_weight else None,
            grad.sum(dim=0) if of_bias else None,
        )


def _input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """grad · weight, [M, K]."""
    return grad @ weight if grad.shape[1] > _LONG_SUM else _product(grad, weight.t(), None)


def _weight_gradient(grad: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
    """gradᵀ · inputs, [N, K], laid out in memory as the weight is: GPT-2's are transposed.

    A sum over many rows, which MKL divides among threads where oneDNN does not.
    """
    return grad.t() @ inputs if weight.is_contiguous() else (inputs.t() @ grad).t()


_LONG_SUM = 4096
"""terms, as of an output layer's vocabulary, from which on MKL is the faster one"""


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """inputs [..., K] · weight [N, K]ᵀ + bias; None where torch's own way is the one to take."""
    plain = inputs.dtype == weight.dtype == torch.float32 and inputs.device.type == weight.device.type == "cpu"
    if not plain or torch.is_autocast_enabled("cpu") or inputs.dim() < 2 or not inputs.numel():
        return None
    rows = inputs.reshape(-1, inputs.shape[-1])
    result: Tensor = (_Linear.apply if torch.is_grad_enabled() else _product)(rows, weight, bias)
    return result.view(*inputs.shape[:-1], result.shape[-1])


class OneDNNLinear(nn.Linear):
    """A linear layer as any other."""

    def forward(self, input: Tensor) -> Tensor:
        result = _linear(input, self.weight, self.bias)
        return super().forward(input) if result is None else result


@cache
def _classes() -> dict[type[nn.Module], type[nn.Module]]:
    """What each kind of layer becomes."""
    from transformers.pytorch_utils import Conv1D

    class OneDNNConv1D(Conv1D):
        """GPT-2's layer: a linear one whose weight is stored as [K, N]."""

        def forward(self, x: Tensor) -> Tensor:
            result = _linear(x, self.weight.t(), self.bias)
            return super().forward(x) if result is None else result  # type: ignore[no-untyped-call]

    OneDNNConv1D.__qualname__ = OneDNNConv1D.__name__  # see `__getattr__`
    return {nn.Linear: OneDNNLinear, Conv1D: OneDNNConv1D}


def __getattr__(name: str) -> Any:
    """Find `OneDNNConv1D` by its name, as pickle does; its base is imported on demand only."""
    found = [cls for cls in _classes().values() if cls.__name__ == name] if name.startswith("OneDNN") else []
    if not found:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found[0]
