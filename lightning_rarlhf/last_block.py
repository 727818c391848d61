"""The last block's MLP, run only on the columns whose hidden states somebody reads.

A block's attention mixes columns, its MLP does not: what the last block's MLP makes of a prompt's columns is thrown
away when only the response's are read. That MLP is two thirds of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lightning_rarlhf.blocks import blocks_of


def last_mlp(network: nn.Module) -> nn.Module | None:
    """The MLP of the last block; None where the architecture does not call it so."""
    blocks = blocks_of(network)
    found = getattr(blocks[-1], "mlp", None) if blocks else None
    return found if isinstance(found, nn.Module) else None


@contextmanager
def reading_last(mlp: nn.Module, columns: int) -> Iterator[None]:
    """Inside, `mlp` reads the last `columns` columns of [B, S, H] and answers 0 for the others."""
    width = 0

    def cut(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal width
        width = args[0].shape[1]
        return (args[0][:, -columns:].contiguous(), *args[1:])

    def fill(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
        return pad(output, (0, 0, width - output.shape[1], 0))

    handles = [mlp.register_forward_pre_hook(cut), mlp.register_forward_hook(fill)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def same_states(whole: Tensor, cut: Tensor) -> bool:
    """Whether two passes gave the same hidden states but for rounding."""
    tolerance = 1e-5 if whole.dtype == torch.float32 else 2e-2
    return whole.shape == cut.shape and torch.allclose(whole.float(), cut.float(), rtol=tolerance, atol=tolerance)
