"""Steps the trainer's optimizer by hand: several steps an iteration, on gradients that come in parts."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn

from lightning_rarlhf.distributed import world_size
from lightning_rarlhf.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch.core.optimizer import LightningOptimizer


class PPOUpdater:
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
        """Backward pass; DDP sends gradients in the last part's only.

        DDP and FSDP average over the processes, where our parts must add up: hence the factor.
        """
        strategy = self._module.trainer.strategy
        alone = isinstance(strategy, ParallelStrategy) and not last_part
        with strategy.block_backward_sync() if alone else nullcontext():  # type: ignore[attr-defined]
            self._module.manual_backward(loss * world_size())

    def step(self, *, last: bool) -> Tensor:
        """Clip and step. Only an iteration's last step is counted by the trainer, whose unit is the iteration.

        Returns:
            The gradient's global norm before clipping.
        """
        optimizer = self._module.optimizers()
        assert not isinstance(optimizer, list)
        parameters = [p for p in self._network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not torch.isfinite(norm):
            raise UserError(
                f"iteration {self._module.trainer.global_step}: the gradient is not finite, nothing was updated; "
                "lower the learning rate, or go on from the last checkpoint"
            )
        if self._max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._max_grad_norm, norm)
        _step_counted(optimizer, last)
        optimizer.zero_grad()
        return norm


def _step_counted(optimizer: LightningOptimizer, counts: bool) -> None:
    """Step; let Lightning's progress see the step only if it `counts`."""
    before, after = optimizer._on_before_step, optimizer._on_after_step
    if not counts:
        optimizer._on_before_step = optimizer._on_after_step = lambda: None
    try:
        optimizer.step()
    finally:
        optimizer._on_before_step, optimizer._on_after_step = before, after
