"""Attention on a CPU: in bfloat16 computed in float32, and for the queries that are read only.

torch's own kernel takes twice as long there in bfloat16, and for one query, as a sampling step has it, longer than the
loop that torch's compiler makes of the formula. On an accelerator nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

_read: dict[nn.Module, int] = {}
"""how many columns of an attention's output are read, where not all are"""


def attend_well_on_cpu() -> None:
    """Let what transformers calls `sdpa` do so, in this process.

    Under its own name: architectures look for that one when they make their masks.
    """
    from transformers import AttentionInterface

    AttentionInterface.register("sdpa", _attention)


@contextmanager
def last_queries(attention: nn.Module, columns: int) -> Iterator[None]:
    """Inside, an attention that calls `sdpa` answers for its last `columns` columns, and 0 for the others."""
    _read[attention] = columns
    try:
        yield
    finally:
        del _read[attention]


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    if query.device.type != "cpu":
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    width = query.shape[2]
    if width == 1 and torch.compiler.is_compiling() and _is_plain(attention_mask, options):
        return _of_one_query(query, key, value, attention_mask, options.get("scaling")), None
    columns = _read.get(module, width)
    if columns < width == key.shape[2] and options.get("position_bias") is None:
        attention_mask = _last_rows(attention_mask, width, columns, causal=_is_causal(module, options))
        options["is_causal"] = False
        query = query[:, :, -columns:]
    output = _in_float32(module, query, key, value, attention_mask, **options)
    unread = width - output.shape[1]
    return pad(output, (0, 0, 0, 0, unread, 0)) if unread else output, None


def _is_plain(mask: Tensor | None, options: dict[str, Any]) -> bool:
    """Whether all heads see alike, and nothing is asked for but what `_of_one_query` does."""
    asked = any(options.get(name) is not None for name in ("position_bias", "cache", "softcap"))
    return not asked and not options.get("dropout") and (mask is None or mask.shape[1] == 1)


def _of_one_query(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Attention of the latest token, spelled out for the compiler, which reads keys and values once and casts nothing.

    Args:
        query: [B, h, 1, D].
        key: [B, k, S, D]; each of the k heads serves h / k of the queries'.
        value: [B, k, S, E].
        mask: [B, 1, 1, S], True or 0 = attended to; None = all are.
        scaling: of the scores; None = 1/√D.

    Returns:
        [B, 1, h, E] in the query's own type, computed in float32.
    """
    grouped = query.view(len(query), key.shape[1], -1, 1, query.shape[-1]).float()
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (grouped * key[:, :, None].float()).sum(dim=-1) * scale  # [B, k, h / k, S]
    if mask is not None:
        scores = scores.where(mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    attended = (scores.softmax(dim=-1)[..., None] * value[:, :, None].float()).sum(dim=-2)
    return attended.flatten(1, 2)[:, None].to(query.dtype)


def _in_float32(module: nn.Module, query: Tensor, *others: Any, **options: Any) -> Tensor:
    """[B, S, h, D] in the query's own type, computed in float32 where that is bfloat16."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if query.dtype != torch.bfloat16:
        return sdpa_attention_forward(module, query, *others, **options)[0]
    key, value, mask = others
    with torch.autocast("cpu", enabled=False):
        output, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), mask, **options)
    return output.to(query.dtype)


def _is_causal(module: nn.Module, options: dict[str, Any]) -> bool:
    asked = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if asked is None else asked)


def _last_rows(mask: Tensor | None, width: int, columns: int, *, causal: bool) -> Tensor | None:
    """The mask of the last `columns` queries over `width` keys, [..., columns, width]; None = all are attended to."""
    if mask is not None:
        return mask[..., -columns:, :]
    return torch.ones(columns, width, dtype=torch.bool).tril(width - columns)[None, None] if causal else None
