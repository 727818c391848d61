"""Attention on a CPU: in bfloat16 computed in float32, and for the queries that are read only.

torch's own kernel takes twice as long there in bfloat16. On an accelerator nothing changes.
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
    columns = _read.get(module, width)
    if columns < width == key.shape[2] and options.get("position_bias") is None:
        attention_mask = _last_rows(attention_mask, width, columns, causal=_is_causal(module, options))
        options["is_causal"] = False
        query = query[:, :, -columns:]
    output = _in_float32(module, query, key, value, attention_mask, **options)
    unread = width - output.shape[1]
    return pad(output, (0, 0, 0, 0, unread, 0)) if unread else output, None


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
