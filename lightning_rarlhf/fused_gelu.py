"""GPT-2's activation as one kernel, in the policy as in a reward."""

from __future__ import annotations

from torch import nn


def fuse_gelu(network: nn.Module) -> None:
    """Put torch's own tanh-GELU where transformers spells the same formula out in eight passes over memory."""
    from transformers.activations import NewGELUActivation

    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
