"""Runs a network's own code on tensors without contents, and counts what it would allocate.

Nothing is computed and nothing but shapes is held, so that a network of any size is rehearsed in seconds; and since the
code is the real one, what it keeps for the backward pass, recomputes or frees is counted as it is.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.terminal.plain_text import first_line


class Allocations(TorchDispatchMode):
    """Bytes of all storages that operations inside have made, until they are freed.

    Attributes:
        now: bytes that are held.
        peak: the most that was held at one time.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        # the network's own weights are there before and after, and are counted by whoever asks
        self._known = {tensor.untyped_storage()._cdata: 0 for tensor in _tensors(network)}

    def __enter__(self) -> Allocations:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)


class _AllCount(TorchFunctionMode):
    """Answers the one question that is asked of a mask's contents, whether all of it is True: in a rehearsal it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.all and len(args) == 1 and args[0].dtype == torch.bool and not kwargs:
            return True
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def rehearsed(network: nn.Module) -> Iterator[Callable[[], Allocations]]:
    """Inside, `network`, made on the meta device, can be run on tensors that are made there.

    Yields:
        A function that opens a new count of allocations, to be entered by `with`.

    Raises:
        ModelError: an operation that asks for contents, or that torch knows no shapes of, as some mixtures of experts'.
    """
    with _unheard(), FakeTensorMode(allow_non_fake_inputs=True), _AllCount():
        _give_shapes(network)
        try:
            yield lambda: Allocations(network)
        except RuntimeError as error:
            name = type(getattr(network, "lm", network)).__name__
            raise ModelError(
                f"{name} cannot be rehearsed without its weights ({first_line(error)}), so what it needs is not known; "
                "try a short run: --trainer.max_steps 2"
            ) from error


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Inside, torch writes no page to the log about an operation that it cannot rehearse: the error says it."""
    log = logging.getLogger(fake_tensor.__name__)
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before


def _give_shapes(network: nn.Module) -> None:
    """Put tensors of the same shapes in place of the meta device's, on which some operations refuse to run."""
    made: dict[int, Tensor] = {}
    for module in network.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:  # tied weights stay tied
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    is_weight = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
                table[name] = made[id(tensor)]  # type: ignore[assignment]


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
