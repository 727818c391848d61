"""Attention of bfloat16 on a CPU, computed in float32: torch's own kernel takes twice as long there in bfloat16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def attend_in_float32_on_cpu() -> None:
    """Let what transformers calls `sdpa` do so, in this process; on other devices, and in other types, nothing changes.

    Under its own name: architectures look for that one when they make their masks.
    """
    from transformers import AttentionInterface

    AttentionInterface.register("sdpa", _attention)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    with torch.autocast("cpu", enabled=False):
        wide = (query.float(), key.float(), value.float())
        output, _ = sdpa_attention_forward(module, *wide, attention_mask, **options)
    return output.to(query.dtype), None
