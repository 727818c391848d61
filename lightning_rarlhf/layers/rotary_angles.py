"""Rotary angles that depend on how long a text is, and with them what a model says of a token."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def same_angles_up_to(config: PreTrainedConfig) -> int | None:
    """Tokens of the longest text that a model turns as it turns each shorter one; None = as long as any can be.

    Beyond it transformers turns all tokens of a batch by its longest text. What was read before, with a cache, stays
    turned as it was: sampling then draws from other probabilities than a pass over the whole text gives, and that pass
    gives others in each batch.

    Only of the kinds `dynamic` (Llama) and `longrope` (Phi-3); the latter not where both its lists of factors are one.
    """
    config = config.get_text_config()
    given = getattr(config, "rope_parameters", None) or {}
    kinds = [given, *(part for part in given.values() if isinstance(part, dict))]  # of all layers, or a kind of layer
    limits = [limit for kind in kinds if (limit := _same_up_to(kind, config)) is not None]
    return min(limits, default=None)


def _same_up_to(kind: dict[str, object], config: PreTrainedConfig) -> int | None:
    limit: object = None
    if kind.get("rope_type") == "dynamic":
        limit = config.max_position_embeddings
    elif kind.get("rope_type") == "longrope" and kind["short_factor"] != kind["long_factor"]:
        limit = kind["original_max_position_embeddings"]
    return limit if isinstance(limit, int) else None
