"""The last block, run only on the columns whose hidden states somebody reads.

A block's attention mixes columns; its queries, its output's projection and its MLP do not. What the last block's make
of a prompt's columns is thrown away when only the response's are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.functional import pad

from lightning_rarlhf.layers.blocks import blocks_of
from lightning_rarlhf.layers.cpu_attention import last_queries

_ATTENTIONS = ("attn", "self_attn", "attention", "self_attention")
_PROJECTIONS = ("c_proj", "o_proj", "out_proj", "dense")
"""what architectures call them in a block, and in its attention"""


class LastBlock(NamedTuple):
    """The parts of a last block that can read fewer columns than they are given."""

    columnwise: tuple[nn.Module, ...]
    """the MLP and the projection of the attention's output: [B, S, H] → [B, S, H], column by column"""
    attention: nn.Module | None = None
    """which reads all columns, and answers for those that are read"""


def last_block(network: nn.Module) -> list[LastBlock]:
    """What the architecture's names say of it: whole first, then the MLP alone; empty if that has no such name."""
    blocks = blocks_of(network)
    mlp = _child(blocks[-1], ("mlp",)) if blocks else None
    if mlp is None:
        return []
    attention = _child(blocks[-1], _ATTENTIONS)
    projection = None if attention is None else _child(attention, _PROJECTIONS)
    whole = [] if projection is None else [LastBlock((mlp, projection), attention)]
    return [*whole, LastBlock((mlp,))]


def _child(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    found = (getattr(module, name, None) for name in names)
    return next((child for child in found if isinstance(child, nn.Module)), None)


@contextmanager
def reading_last(block: LastBlock, columns: int) -> Iterator[None]:
    """Inside, the block answers for the last `columns` columns of [B, S, H]; the others may hold anything."""
    with ExitStack() as stack:
        for module in block.columnwise:
            stack.enter_context(_cut(module, columns))
        if block.attention is not None:
            stack.enter_context(last_queries(block.attention, columns))
        yield


@contextmanager
def _cut(module: nn.Module, columns: int) -> Iterator[None]:
    """Inside, `module` reads the last `columns` columns and answers 0 for the others."""
    width = 0

    def cut(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal width
        width = args[0].shape[1]
        return (args[0][:, -columns:].contiguous(), *args[1:])

    def fill(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
        return pad(output, (0, 0, width - output.shape[1], 0))

    handles = [module.register_forward_pre_hook(cut), module.register_forward_hook(fill)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
