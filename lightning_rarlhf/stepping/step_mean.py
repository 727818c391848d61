"""The mean loss of an optimizer step that is gathered from several batches (accumulate_grad_batches)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class StepMean:
    """Mean over all that a step learns from (tokens, labels, pairs), however it is cut into batches.

    How many there are is known at the step's end only. So each batch's losses are divided by the count of the first
    one, and the gradient is brought to the count of all before the step; a step of one batch is left as it is.
    """

    def __init__(self) -> None:
        self._batches = 0

    def share(self, losses: Tensor, count: Tensor, *, begins: bool) -> Tensor:
        """What to differentiate of a batch.

        Args:
            losses: a scalar, their sum on this process.
            count: a scalar, of how many on all processes.
            begins: the batch is its step's first.
        """
        if begins or not self._batches:
            self._batches, self._first, self._count = 0, count.clamp(min=1), torch.zeros_like(count)
        self._batches += 1
        self._count = self._count + count
        return losses / self._first

    def settle(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Bring the gradient of the shares to their mean; to be called once, before the step."""
        if self._batches > 1:
            factor = (self._first / self._count.clamp(min=1)).item()
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        self._batches = 0
