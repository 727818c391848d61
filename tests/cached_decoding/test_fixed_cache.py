from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, Lfm2Config, MistralConfig

from lightning_rarlhf.cached_decoding.fixed_cache import FixedCache
from lightning_rarlhf.errors import ModelError

CPU = torch.device("cpu")


def states(rows, width, seed=0):
    return torch.randn(rows, 2, width, 4, generator=torch.Generator().manual_seed(seed))


def test_prompts_are_stored_and_steps_written_behind_them_at_one_address():
    fixed = FixedCache(GPT2Config(n_layer=1), rows=3, columns=8, device=CPU)
    prompt, step = states(2, 5), states(3, 1, seed=1)
    addresses = set()
    for _ in range(2):
        fixed.read_prompts()
        keys, _ = fixed.held.update(prompt, -prompt, 0)
        assert keys is prompt  # a prompt attends to itself, as without a cache
        assert fixed.held.get_seq_length() == 0
        assert fixed.held.get_mask_sizes(5, 0) == (5, 0)
        fixed.read_steps(5)
        keys, values = fixed.held.update(step, -step, 0)
        assert torch.equal(keys[:2, :, :5], prompt)
        assert torch.equal(values[:, :, 5], -step[:, :, 0])
        assert not keys[2, :, :5].any()
        assert not keys[:, :, 6:].any()
        assert fixed.held.get_mask_sizes(1, 0) == (8, 0)
        assert int(fixed.held.get_seq_length()) == 5
        addresses |= {keys.data_ptr()}
    assert len(addresses) == 1


def test_what_a_broken_iteration_left_is_forgotten():
    fixed = FixedCache(GPT2Config(n_layer=1), rows=2, columns=8, device=CPU)
    fixed.held.update(states(2, 5) * torch.nan, states(2, 5), 0)
    fixed.read_prompts()
    fixed.held.update(states(2, 3), states(2, 3), 0)
    fixed.read_steps(3)
    keys, _ = fixed.held.update(states(2, 1), states(2, 1), 0)
    assert keys.isfinite().all()


def test_a_window_as_wide_as_the_cache_is_none():
    fixed = FixedCache(MistralConfig(num_hidden_layers=2, sliding_window=8), rows=1, columns=8, device=CPU)
    assert fixed.held.is_sliding == [True, True]


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (MistralConfig(num_hidden_layers=2, sliding_window=7), "mistral.*a window of 7 tokens"),
        (Lfm2Config(num_hidden_layers=2, layer_types=["conv", "full_attention"]), "lfm2"),
    ],
)
def test_layers_that_hold_something_else_are_refused(config, what):
    with pytest.raises(ModelError, match=f"compile_sampling: {what}.*leave it out"):
        FixedCache(config, rows=1, columns=8, device=CPU)
