"""What of a module's weights a checkpoint holds: everything, or where a part is frozen what is trained, no less."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_rarlhf.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_NETWORK = "actor.lm."


def left_out(module: nn.Module) -> set[str]:
    """Names in `module`'s state that a checkpoint need not hold: the frozen weights of the policy's network.

    They, and what quantisation keeps beside them, are read again from the policy's own folder.
    """
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    return {name for name in module.state_dict() if name.startswith(_NETWORK) and name not in trained}


def only_trained(module: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """`state` without what may be left out."""
    omitted = left_out(module)
    return {name: value for name, value in state.items() if name not in omitted}


def require_trained(
    module: nn.Module, state: Mapping[str, Tensor], *, trains_part: bool, made_by: str | None = None
) -> None:
    """See that a checkpoint's weights are those that `module` expects, name by name and shape by shape.

    Args:
        module: built as the run's settings say.
        state: the checkpoint's weights.
        trains_part: of the policy's network, so that its frozen weights are not to be there.
        made_by: class of the module that wrote the checkpoint, if it is known.

    Raises:
        UserError: with the first names that are missing, unknown, frozen or of another shape.
    """
    expected = module.state_dict()
    omitted = left_out(module) if trains_part else set()
    missing = sorted(expected.keys() - omitted - state.keys())
    unknown = sorted(state.keys() - expected.keys())
    frozen = sorted(omitted & state.keys())
    other = sorted(
        f"{name} {list(state[name].shape)} instead of {list(expected[name].shape)}"
        for name in state.keys() & expected.keys()
        if state[name].shape != expected[name].shape
    )
    cause = "it was made with other settings of model.policy (pretrained, lora, frozen_layers, quantization)"
    if made_by not in (None, type(module).__name__):
        cause = f"it was made by {made_by}, this is {type(module).__name__}"
    for fault, names in (
        ("lacks", missing),
        ("has unknown", unknown),
        ("has of another shape", other),
        ("has frozen", frozen),
    ):
        if names:
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            raise UserError(f"checkpoint: {fault} {', '.join(names[:2])}{more}; {cause}: give the run's own")
