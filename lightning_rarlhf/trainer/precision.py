"""The precisions in which the methods compute what they say."""

from __future__ import annotations

from lightning_rarlhf.errors import UserError

_SUPPORTED = ("32-true", "bf16-mixed")
PRECISIONS = " or ".join(_SUPPORTED)
"""in words, for messages"""


def require_asked_precision(precision: str, asked: object) -> None:
    """Refuse float16 where the trainer would take bfloat16 in its place, and the run's records would name float16.

    Args:
        precision: the trainer's.
        asked: what it was asked for.

    Raises:
        UserError: with the precisions to choose from.
    """
    if str(asked) in ("16", "16-mixed") and precision != "16-mixed":
        raise UserError(
            f"trainer.precision={asked}: Lightning has no float16 on this device and would compute in {precision}; "
            f"expected {PRECISIONS}"
        )


def require_precision(precision: str, *, keeps_weights: bool = False) -> None:
    """Refuse what rounds the wrong things: float16 overflows, and bf16-true rounds every buffer, and most updates away.

    Args:
        precision: the trainer's.
        keeps_weights: the module has no setting for weights in bfloat16.

    Raises:
        UserError: with the precisions to choose from.
    """
    if precision in _SUPPORTED:
        return
    if precision.startswith("16"):
        why = "float16 overflows"
    elif keeps_weights:
        why = "weights that train are kept in float32"
    else:
        why = "for weights in bfloat16 set model.policy.dtype: bfloat16 and keep 32-true"
    raise UserError(f"trainer.precision={precision}: expected {PRECISIONS}; {why}")
