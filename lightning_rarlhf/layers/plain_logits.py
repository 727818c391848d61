"""Whether a language model's logits are what its output layer says, or what a known cap makes of that."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_rarlhf.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAME_NUMBERS = {
    *("_to_copy", "alias", "clone", "detach", "reshape", "slice", "squeeze", "unsqueeze", "_unsafe_view", "view"),
}


class _Changes(TorchDispatchMode):
    """Follows a tensor through the operations that take it.

    Attributes:
        by: name of the first operation that makes other numbers of it; None = none did.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by: str | None = None
        self._followed: dict[int, Tensor] = {}

    def follow(self, tensor: Tensor) -> None:
        """From now on."""
        self._followed[tensor.untyped_storage()._cdata] = tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._followed and any(map(self._is_followed, _tensors((args, kwargs)))):
            name = func.overloadpacket.__name__
            if name in _SAME_NUMBERS or (name in ("mul", "div") and _is_one(args[1])):
                for made in _tensors(result):
                    self.follow(made)
            elif any(True for _ in _tensors(result)):  # else it only asked, as for the device
                self.by = self.by or name
        return result

    def _is_followed(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._followed


def cap_of(lm: PreTrainedModel) -> float | None:
    """The c of logits that are c · tanh(x / c) of what the output layer says, as Gemma 2's; None = they are x."""
    cap: float | None = getattr(lm.config.get_text_config(), "final_logit_softcapping", None)
    return cap


def require_plain_logits(lm: PreTrainedModel, name: str) -> None:
    """Refuse an architecture that scales its logits, or changes them otherwise than by the cap that is known.

    Seen in what it does, not in its numbers: what changes small logits by less than rounding does may grow with them.

    Args:
        lm: with or without contents.
        name: hub id or folder, for the message.

    Raises:
        ModelError: naming the architecture.
    """
    head: Any = lm.get_output_embeddings()
    if head is None or cap_of(lm) is not None:
        return
    ids = torch.zeros(1, 2, dtype=torch.int64, device=head.weight.device)
    with _Changes() as changes, torch.no_grad():
        hook = head.register_forward_hook(lambda _module, _given, logits: changes.follow(logits))
        try:
            lm(input_ids=ids, attention_mask=torch.ones_like(ids))
        finally:
            hook.remove()
    if changes.by is not None:
        raise ModelError(
            f"{name}: {type(lm).__name__} changes its logits after the output layer ({changes.by}); this architecture "
            "is not supported"
        )


def _is_one(factor: Any) -> bool:
    return isinstance(factor, int | float) and factor == 1


def _tensors(tree: Any) -> Iterable[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
