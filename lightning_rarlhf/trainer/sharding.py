"""FSDP2: a network's weights, gradients and optimizer state divided among the processes, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shard(network: nn.Module, mesh: DeviceMesh, forward_methods: tuple[str, ...] = ()) -> None:
    """Divide each transformer block's weights, and then what is outside the blocks, over the processes of `mesh`.

    A block is whole only while it computes. The blocks are those that transformers itself keeps together
    (`_no_split_modules`). What is trained starts as process 0's: a new critic or adapter is drawn at random.

    Args:
        network: holds a transformers model; its weights are replaced by shards on the mesh's device.
        mesh: one dimension, all processes.
        forward_methods: methods, besides `forward`, that are called from outside and use the weights.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    device = torch.device(mesh.device_type, torch.cuda.current_device()) if mesh.device_type == "cuda" else None
    for parameter in network.parameters():
        if parameter.requires_grad:
            start = parameter.data.to(device) if device else parameter.data
            dist.broadcast(start, src=0)
            parameter.data.copy_(start)
    for block in _blocks(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    for method in forward_methods:
        register_fsdp_forward_method(network, method)
    # FSDP takes the part that runs first for the outermost, and in a rollout that would be a block: run the network.
    network.__dict__["_run_nothing"] = lambda: None
    register_fsdp_forward_method(network, "_run_nothing")
    network._run_nothing()  # type: ignore[operator]


@contextmanager
def unsharded(network: nn.Module) -> Iterator[None]:
    """Hold a sharded network's whole weights on every process; any other network is left as it is.

    Inside, processes may run different numbers of forward passes (responses end at different lengths), which would wait
    for each other forever on sharded weights; and `parameters()` are ordinary tensors. Gathering is one collective a
    block, however many passes follow. Not for backward passes; changes of the weights are lost.
    """
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            # the outermost keeps its weights from the forward to the backward pass, as `fully_shard` does by default
            part.set_reshard_after_forward(part is not network, recurse=False)
            part.reshard()


def whole(values: Tensor) -> Tensor:
    """An ordinary tensor: where `values` lies in parts on the processes, all of it, on each of them."""
    from torch.distributed.tensor import DTensor

    return values.full_tensor() if isinstance(values, DTensor) else values


def whole_state(network: nn.Module) -> dict[str, Any] | None:
    """State of a sharded network put together in the CPU memory of process 0, empty elsewhere; None if not sharded."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(network, FSDPModule):
        return None
    return get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def _blocks(network: nn.Module) -> list[nn.Module]:
    names = {name for module in network.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    return [module for module in network.modules() if type(module).__name__ in names]
