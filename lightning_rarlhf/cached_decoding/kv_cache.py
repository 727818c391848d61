"""A key-value cache that writes each step in place; transformers' own copies all that it holds at every token."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from transformers import Cache, DynamicCache, PreTrainedConfig
    from transformers.cache_utils import DynamicLayer

PromptStates = list[tuple[Tensor, Tensor]]
"""keys and values of each layer, [B, heads, P, D]"""

_ROOM = 64  # columns added at a time: what is held is copied once in so many tokens


def roomy_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for a model; layers that see a sliding window only stay transformers' own."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    roomy = _roomy_layer()
    held = DynamicCache(config=config)
    held.layers = [roomy() if type(layer) is DynamicLayer else layer for layer in held.layers]
    if held.layer_class_to_replicate is DynamicLayer:
        held.layer_class_to_replicate = roomy
    return held


def room_for(columns: int) -> int:
    """Columns that a layer takes when it needs `columns`."""
    return -(-columns // _ROOM) * _ROOM


def prompt_states(held: Cache, columns: int) -> PromptStates | None:
    """What a cache holds after prompts of P = `columns` tokens; None where that is not all of their keys and values."""
    states = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in held.layers]
    whole = all(isinstance(part, Tensor) and part.shape[-2] == columns for pair in states for part in pair)
    return states if states and whole else None  # type: ignore[return-value]


@cache
def _roomy_layer() -> type[DynamicLayer]:
    from transformers.cache_utils import DynamicLayer

    class RoomyLayer(DynamicLayer):
        """One layer's keys and values, [B, heads, S, D], as the first S columns of tensors that are wider."""

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            """Write the new columns behind the old ones; all columns so far."""
            start = self.get_seq_length()
            end = start + key_states.shape[-2]
            if not start:
                self.dtype, self.device = key_states.dtype, key_states.device
                self._all_keys, self._all_values = _wider(key_states, end), _wider(value_states, end)
                self.is_initialized = True
            elif end > self._all_keys.shape[-2]:
                self._all_keys, self._all_values = _wider(self._all_keys, end), _wider(self._all_values, end)
            self._all_keys[..., start:end, :] = key_states
            self._all_values[..., start:end, :] = value_states
            self.keys, self.values = self._all_keys[..., :end, :], self._all_values[..., :end, :]
            return self.keys, self.values

        def reorder_cache(self, beam_idx: Tensor) -> None:
            """Go on with these rows, i64 [b], and their room."""
            end = self.get_seq_length()
            if not end:
                return
            self._all_keys, self._all_values = self._all_keys[beam_idx], self._all_values[beam_idx]
            self.keys, self.values = self._all_keys[..., :end, :], self._all_values[..., :end, :]

    return RoomyLayer


def _wider(held: Tensor, columns: int) -> Tensor:
    """The same columns, with room behind them for `columns` in all or more."""
    wider = held.new_empty((*held.shape[:-2], room_for(columns), held.shape[-1]))
    wider[..., : held.shape[-2], :] = held
    return wider
