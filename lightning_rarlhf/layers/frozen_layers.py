"""The lower layers of a network that do not train: embeddings and the first blocks.

Policy and reference have them in common, as in TRL's `create_reference_model(num_shared_layers=...)`: their weights are
in memory once, and the hidden states that leave them, once computed, serve every later pass over the same sequences,
which then begins above them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.layers.blocks import blocks_of, instead, same_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FrozenLayers:
    """Freezes the embeddings and the first blocks of a network, and runs it below or above that boundary only.

    Attributes:
        count: frozen blocks.
    """

    def __init__(self, lm: PreTrainedModel, count: int) -> None:
        """Freeze them. An output layer that is tied to the embeddings is frozen with them.

        Args:
            lm: a causal language model.
            count: blocks, from the first on.

        Raises:
            ModelError: no block would be left to train.
        """
        require_left(lm, count)
        blocks = blocks_of(lm)
        self.count = count
        self._below, self._above = blocks[:count], blocks[count:]
        inside = {module for block in blocks for module in block.modules()}
        tables = [module for module in lm.modules() if isinstance(module, nn.Embedding) and module not in inside]
        for part in (*tables, *self._below):
            part.requires_grad_(False)
        if lm.is_activation_checkpointing:
            lm.disable_input_require_grads()  # else the backward pass would go down to the embeddings' output

    @contextmanager
    def alone(self) -> Iterator[list[Tensor]]:
        """Inside, a forward pass computes nothing above; the list then holds the states that leave the frozen layers.

        What the pass itself returns means nothing.
        """
        states: list[Tensor] = []
        outputs: list[Any] = []
        hooks = (
            self._below[-1].register_forward_hook(lambda _block, _args, output: outputs.append(output)),
            self._above[0].register_forward_pre_hook(lambda _block, args: states.append(args[0])),
        )
        try:
            with instead(self._above, lambda _own: lambda *_, **__: outputs[-1]):
                yield states
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def skipped(self, states: Tensor) -> Iterator[None]:
        """Inside, a forward pass over sequences begins with these states of theirs, [B, S, H], as `alone` gave them."""
        hook = self._above[0].register_forward_pre_hook(lambda _block, args: (states, *args[1:]))
        try:
            # a tuple, for models that take a block's first
            with instead(self._below, lambda _own: lambda *_, **__: (states,)):
                yield
        finally:
            hook.remove()

    def require_separable(self, run: Callable[[], Tensor], architecture: str) -> None:
        """Refuse an architecture that cannot be run from above its frozen layers.

        In a `rehearsal`, on tensors without contents, what can be seen is that nothing learns below the boundary and
        that both ways of running go through; that their results are equal is seen with weights only.

        Args:
            run: makes a forward pass; → last hidden states.
            architecture: its name, for the message.

        Raises:
            ModelError: something below the boundary that is neither an embedding nor a block, or blocks that are called
                in another way than with the hidden states first.
        """
        try:
            with torch.enable_grad(), self.alone() as below:
                run()
            with self.skipped(below[0]):
                split = run()
            sound = not below[0].requires_grad and same_states(run(), split)
        except (DataDependentOutputException, DynamicOutputShapeException):  # a question to contents that are not there
            sound = not below or not below[0].requires_grad
        # blocks that are called otherwise
        except (TypeError, RuntimeError, AttributeError, LookupError):
            sound = False
        if not sound:
            raise ModelError(
                f"policy.frozen_layers: {architecture} has more below its upper layers than embeddings and blocks, or "
                "calls its blocks in a way of its own; leave frozen_layers out"
            )


def require_left(lm: PreTrainedModel, frozen_layers: int) -> None:
    """Refuse to freeze every block.

    Raises:
        ModelError: with the numbers.
    """
    blocks = len(blocks_of(lm))
    if frozen_layers and frozen_layers >= blocks:
        raise ModelError(
            f"policy.frozen_layers={frozen_layers}: {lm.name_or_path} has {blocks} layers, of which one at least must "
            f"train; expected 0 to {max(0, blocks - 1)}"
        )


def copy_sharing_frozen(lm: PreTrainedModel) -> PreTrainedModel:
    """A copy of `lm` whose frozen weights are those of `lm` itself; the others are its own."""
    return copy.deepcopy(lm, {id(weight): weight for weight in lm.parameters() if not weight.requires_grad})
