"""Responses read in one pass over what sampling has left of their prompts.

In bfloat16 the sampling loop's numbers are not those of a full pass, so that the old log-probabilities want a pass of
their own. The prompts need not be in it: sampling has read them in just such a pass, and keeps their keys and values.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lightning_rarlhf.cached_decoding.cached_decoder import CachedTrunk
from lightning_rarlhf.cached_decoding.kv_cache import PromptStates
from lightning_rarlhf.functional.sequences import position_ids
from lightning_rarlhf.language_model import LanguageModel
from lightning_rarlhf.layers.blocks import same_states

if TYPE_CHECKING:
    from transformers import Cache


@torch.no_grad()
def read_on(
    model: LanguageModel, prompts: PromptStates, sequences: Tensor, attention_mask: Tensor, response_length: int
) -> Tensor:
    """Hidden states that predict the last `response_length` = T tokens, [B, T, H], as `before_responses` gives them.

    Args:
        model: which the prompts were read by, with the weights that it had then.
        prompts: of these sequences.
        sequences: i64 [B, S], left-padded prompts, responses in the last T columns.
        attention_mask: bool [B, S].
        response_length: T.
    """
    start = sequences.shape[1] - response_length - 1
    output = model.lm.base_model(
        input_ids=sequences[:, start:],
        attention_mask=attention_mask.long(),
        position_ids=position_ids(attention_mask)[:, start:],
        past_key_values=_over(prompts, start),
        use_cache=True,
    )
    hidden: Tensor = output.last_hidden_state
    return hidden[:, :-1]


def reads_on(model: LanguageModel) -> bool:
    """Whether that is how a network is to be read, and its architecture gives the same states so.

    On a CPU they can be the same to the bit, see `rounds_alike`. An accelerator's attention is another kernel where
    there are more keys than queries, and rounds otherwise. States that leave frozen layers are known anyway.
    """
    if model.device.type != "cpu" or model.frozen is not None:
        return False
    if model not in _same:
        _same[model] = _gives_the_same(model)
    return _same[model]


_same: WeakKeyDictionary[LanguageModel, bool] = WeakKeyDictionary()


def rounds_alike(prompts: PromptStates, attention_mask: Tensor, response_length: int) -> bool:
    """Whether `read_on` gives these texts' states to the bit, so that KL starts at 0, and ratios at 1.

    torch's attention adds up in an order of its own for each number of queries and keys. A float32 sum that comes out
    one digit otherwise is another bfloat16 number now and then, and a log-probability another by 1e-2. Widths of 64 and
    112 tokens come out alike, for one, 40 and 64 do not.

    Args:
        prompts: what sampling kept.
        attention_mask: bool [B, S].
        response_length: T.
    """
    if not bool(attention_mask[:, 0].any()):  # a full pass leaves empty columns out, and has fewer keys
        return False
    sizes = {(keys.shape[-1], values.shape[-1]) for keys, values in prompts}
    columns = attention_mask.shape[1]
    return all(_attends_alike(columns - response_length, columns, *size) for size in sizes)


@lru_cache(maxsize=1024)
@torch.no_grad()
def _attends_alike(prompt: int, columns: int, size: int, value_size: int) -> bool:
    """Tried in float32, with and without a mask, on as many heads as are needed to see it."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, _HEADS, columns, size, generator=generator)
    value = torch.randn(1, _HEADS, columns, value_size, generator=generator)
    seen = torch.ones(columns, columns, dtype=torch.bool).tril()[None, None]

    def attend(first: int, end: int, mask: Tensor | None) -> Tensor:
        of = query[:, :, first:end], key[:, :, :end], value[:, :, :end]
        return scaled_dot_product_attention(*of, attn_mask=mask, is_causal=mask is None)

    with torch.autocast("cpu", enabled=False):
        whole = attend(0, columns, seen)
        first, last = whole[:, :, :prompt], whole[:, :, prompt - 1 :]
        return (
            torch.equal(attend(0, columns, None), whole)
            and torch.equal(attend(0, prompt, seen[..., :prompt, :prompt]), first)
            and torch.equal(attend(0, prompt, None), first)
            and torch.equal(attend(prompt - 1, columns, seen[..., prompt - 1 :, :]), last)
        )


_HEADS = 4


@torch.no_grad()
def _gives_the_same(model: LanguageModel) -> bool:
    """Tried on two rows of five tokens, one of them padded."""
    ids = torch.arange(10, device=model.device).view(2, 5) % 3
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 0] = False
    with torch.autocast(model.device.type, enabled=False):
        whole = model.before_responses(ids, mask, 2)
        try:
            trunk = CachedTrunk(model, keep_prompts=True)
            trunk.start(ids[:, :3], mask[:, :3])
            read = None if trunk.prompts is None else read_on(model, trunk.prompts, ids, mask, 2)
        # architectures that keep something else of what they have read
        except (TypeError, RuntimeError, AttributeError, IndexError, ValueError):
            return False
    return read is not None and same_states(whole, read)


def _over(prompts: PromptStates, columns: int) -> Cache:
    """The prompts' first columns as a cache to read one more piece of text over; it remembers nothing of that piece."""
    from transformers import Cache

    layer = _layer()
    return Cache(layers=[layer(keys[..., :columns, :], values[..., :columns, :]) for keys, values in prompts])


@cache
def _layer() -> type[Any]:
    from transformers.cache_utils import DynamicLayer

    class OverPrompts(DynamicLayer):
        """One layer's keys and values of the prompts."""

        def __init__(self, keys: Tensor, values: Tensor) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.keys, self.values = keys, values
            self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            """Those of the prompts and of what is read now."""
            assert self.keys is not None
            assert self.values is not None
            return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)

    return OverPrompts
