"""Steps the trainer's optimizer by hand: several steps an iteration, on gradients that come in parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn

from lightning_rarlhf.distributed import world_size
from lightning_rarlhf.stepping.guards import gradient_norm


class ManualUpdater:
    """Backward, clip and step for a module, with its trainer's precision and strategy.

    Args:
        module: whose only optimizer steps.
        network: what it moves.
        max_grad_norm: clip the gradient to this global norm; None = no clipping.
    """

    def __init__(self, module: pl.LightningModule, network: nn.Module, max_grad_norm: float | None) -> None:
        self._module = module
        self._network = network
        self._max_grad_norm = max_grad_norm

    def add_gradient(self, loss: Tensor, *, last_part: bool) -> None:
        """Backward pass from a scalar; DDP sends gradients in the last part's only.

        DDP and FSDP average over the processes, where our parts must add up: hence the factor.
        """
        strategy = self._module.trainer.strategy
        alone = isinstance(strategy, ParallelStrategy) and not last_part
        with strategy.block_backward_sync() if alone else nullcontext():  # type: ignore[attr-defined]
            self._module.manual_backward(loss * world_size())

    def gradient_norm(self) -> Tensor:
        """Global norm of the gradient, a scalar, before clipping."""
        return gradient_norm(self._network.parameters())

    def step(self, norm: Tensor) -> None:
        """Clip and step. The trainer does not count it: its unit is the iteration, see `guarded`."""
        if self._max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._network.parameters(), self._max_grad_norm, norm)
        with _uncounted(self._optimizer):
            self._optimizer.step()

    def forget(self) -> None:
        """Begin anew with no gradient."""
        self._optimizer.zero_grad()

    @property
    def _optimizer(self) -> LightningOptimizer:
        optimizer = self._module.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer


@contextmanager
def _uncounted(optimizer: LightningOptimizer) -> Iterator[None]:
    """Keep Lightning's progress from seeing the steps taken inside."""
    before, after = optimizer._on_before_step, optimizer._on_after_step
    optimizer._on_before_step = optimizer._on_after_step = lambda: None
    try:
        yield
    finally:
        optimizer._on_before_step, optimizer._on_after_step = before, after
