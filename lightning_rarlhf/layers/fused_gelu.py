"""GPT-2's activation in a few passes over memory, in the policy as in a reward.

GELU by tanh is x · σ(2u) with u = √(2/π) (x + 0.044715 x³). On a CPU torch's kernel spends its time in tanh, of which
the logistic function takes a fifth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _LINEAR


def fuse_gelu(network: nn.Module) -> None:
    """Put it where transformers spells the same formula out in eight passes over memory."""
    from transformers.activations import NewGELUActivation

    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, TanhGELU())


class TanhGELU(nn.Module):
    """GELU by tanh: [...] → [...]; on a CPU by the logistic function, in float32, elsewhere by torch's own kernel."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu":
            return gelu(input, approximate="tanh")
        gelu_with_gradient: Callable[[Tensor], Tensor] = _GELU.apply
        return (gelu_with_gradient if torch.is_grad_enabled() else _gelu)(input)


def _gelu(inputs: Tensor) -> Tensor:
    wide = inputs.float()
    square = wide * wide
    # 2u = x · (2√(2/π) + its cubic part · x²), in place
    twice = torch.add(torch.tensor(_LINEAR, dtype=torch.float32), square, alpha=_CUBIC, out=square).mul_(wide)
    return twice.sigmoid_().mul_(wide).to(inputs.dtype)


class _GELU(torch.autograd.Function):
    """`_gelu` with torch's own gradient, whose kernel is one pass."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        return _gelu(inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        (inputs,) = ctx.saved_tensors
        result: Tensor = torch.ops.aten.gelu_backward(grads[0], inputs, approximate="tanh")
        return result
