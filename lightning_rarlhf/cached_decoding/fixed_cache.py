"""A key-value cache of one size at one address: a decoding step over it can be compiled once and replayed."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_rarlhf.cached_decoding.kv_cache import PromptStates
from lightning_rarlhf.errors import ModelError

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedConfig


_STEP = 16
"""columns between two widths of cache: every step reads all, and attention kernels like even widths"""


def columns_for(columns: int) -> int:
    """Columns of the cache for texts of so many tokens: nearly equal widths share one, and what is compiled for it."""
    return -(-columns // _STEP) * _STEP


class FixedCache:
    """Room for `rows` sequences of `columns` tokens, in every layer.

    Prompts are read as without a cache, and their keys and values stored; later each step writes one column and attends
    to all of them, so whoever calls must mask those that hold no token.

    Attributes:
        held: what transformers takes as `past_key_values`.
        column: i64 [1], where the next step writes; the step's own to move.
    """

    def __init__(self, config: PreTrainedConfig, rows: int, columns: int, device: torch.device) -> None:
        """Nothing but `column` is allocated before the first prompts show types and heads.

        Raises:
            ModelError: layers that hold something else than every token's keys and values.
        """
        from transformers import Cache

        self.column = torch.zeros(1, dtype=torch.int64, device=device)
        fixed = _fixed_layer()
        windows = _windows(config, columns)
        self._layers = [fixed(rows, columns, self.column, is_sliding=sliding) for sliding in windows]
        self.held: Cache = Cache(layers=list(self._layers))

    def read_prompts(self) -> None:
        """Forget all: the next forward pass is over prompts, of at most as many rows as there is room for."""
        for layer in self._layers:
            layer.prompts = True
            layer.reset()  # a column that a broken iteration left may hold NaN, which no mask hides

    def prompts(self, rows: int, columns: int) -> PromptStates:
        """Keys and values of the first `columns` tokens of the first `rows` rows, until the next prompts are read."""
        return [(layer.keys[:rows, :, :columns], layer.values[:rows, :, :columns]) for layer in self._layers]

    def read_steps(self, column: int) -> None:
        """The next forward passes are over one token a row, written from this column on."""
        self.column.fill_(column)
        for layer in self._layers:
            layer.prompts = False


def static_address(tensor: Tensor) -> Tensor:
    """Tell CUDA graphs that this tensor stays where it is, and may be written."""
    import torch._dynamo

    torch._dynamo.mark_static_address(tensor)
    return tensor


def _windows(config: PreTrainedConfig, columns: int) -> list[bool]:
    """Of each layer whether it sees a window only; one as wide as the cache is none."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    layers: list[Any] = (
        DynamicCache(config=config).layers or [DynamicLayer()] * config.get_text_config().num_hidden_layers
    )
    for layer in layers:
        narrow = isinstance(layer, DynamicSlidingWindowLayer) and layer.sliding_window < columns
        if narrow or type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            what = f"a window of {layer.sliding_window} tokens" if narrow else type(layer).__name__
            raise ModelError(
                f"policy.compile_sampling: {config.model_type} has layers that do not hold all of {columns} tokens' "
                f"keys and values ({what}); leave it out"
            )
    return [bool(layer.is_sliding) for layer in layers]


@cache
def _fixed_layer() -> Any:
    from transformers.cache_utils import CacheLayerMixin

    class FixedLayer(CacheLayerMixin):
        """One layer's keys and values, [rows, heads, columns, D]."""

        is_compileable = True

        def __init__(self, rows: int, columns: int, column: Tensor, *, is_sliding: bool) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.is_sliding = is_sliding
            self.prompts = True
            self._rows, self._columns, self._column = rows, columns, column

        def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
            self.keys, self.values = self._room_for(key_states), self._room_for(value_states)
            self.is_initialized = True

        def _room_for(self, states: Tensor) -> Tensor:
            return static_address(states.new_zeros(self._rows, states.shape[1], self._columns, states.shape[3]))

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            assert self.keys is not None
            assert self.values is not None
            if not self.prompts:
                self.keys.index_copy_(2, self._column, key_states)
                self.values.index_copy_(2, self._column, value_states)
                return self.keys, self.values
            rows, width = key_states.shape[0], key_states.shape[2]
            self.keys[:rows, :, :width] = key_states
            self.values[:rows, :, :width] = value_states
            return key_states, value_states

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return (query_length if self.prompts else self._columns), 0

        def get_seq_length(self) -> Any:
            return 0 if self.prompts else self._column[0]

        def get_max_length(self) -> int:
            return self._columns

    return FixedLayer
