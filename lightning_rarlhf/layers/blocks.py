"""The transformer blocks of a network, whatever its architecture calls them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[..., Any]


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The transformer blocks, from the first on."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def instead(blocks: list[nn.Module], make: Callable[[Forward], Forward]) -> Iterator[None]:
    """Inside, each block does what `make` makes of its `forward`; hooks, such as a sharding strategy's, still run."""
    own = [vars(block).get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = make(block.forward)
        yield
    finally:
        for block, before in zip(blocks, own, strict=True):
            vars(block).pop("forward", None)
            if before is not None:
                block.forward = before


def same_states(whole: Tensor, cut: Tensor) -> bool:
    """Whether two passes gave the same hidden states but for rounding."""
    tolerance = 1e-5 if whole.dtype == torch.float32 else 2e-2
    return whole.shape == cut.shape and torch.allclose(whole.float(), cut.float(), rtol=tolerance, atol=tolerance)
