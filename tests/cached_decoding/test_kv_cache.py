"""The cache that writes in place holds what transformers' own holds."""

from __future__ import annotations

import torch
from transformers import DynamicCache, GPT2Config, MistralConfig

from lightning_rarlhf.cached_decoding.kv_cache import room_for, roomy_cache

CONFIG = GPT2Config(n_layer=2, n_embd=8, n_head=2)


def fed(cache, widths):
    """What a layer answers to columns of random keys and values."""
    generator = torch.Generator().manual_seed(0)
    return [cache.update(*torch.randn(2, 3, 2, width, 4, generator=generator), 1) for width in widths]


def test_it_holds_what_transformers_own_holds_across_growths():
    widths = [60, 1, 1, 1, 1, 1, 70, 1]
    ours, theirs = fed(roomy_cache(CONFIG), widths), fed(DynamicCache(config=CONFIG), widths)
    for mine, its in zip(ours, theirs, strict=True):
        assert mine[0].equal(its[0])
        assert mine[1].equal(its[1])


def test_a_step_moves_nothing_until_the_room_is_used_up():
    cache = roomy_cache(CONFIG)
    places = [keys.data_ptr() for keys, _ in fed(cache, [5, *[1] * 59, 1])]
    assert len(set(places[:60])) == 1
    assert places[60] != places[0]
    assert (room_for(5), room_for(64), room_for(65)) == (64, 64, 128)
    assert cache.get_seq_length(1) == 65


def test_rows_that_are_kept_go_on_as_in_transformers_own():
    ours, theirs = roomy_cache(CONFIG), DynamicCache(config=CONFIG)
    generator = torch.Generator().manual_seed(1)
    rows, step = torch.tensor([2, 0]), torch.randn(2, 2, 2, 1, 4, generator=generator)
    for cache in (ours, theirs):
        cache.reorder_cache(rows)  # empty, as before the prompts are read
        fed(cache, [5, 1])
        cache.reorder_cache(rows)
    for mine, its in zip(ours.update(*step, 1), theirs.update(*step, 1), strict=True):
        assert mine.equal(its)


def test_layers_of_a_sliding_window_stay_transformers_own():
    config = MistralConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=2, sliding_window=4)
    assert type(roomy_cache(config).layers[0]) is type(DynamicCache(config=config).layers[0])
