"""A pass of which only the last columns are read gives them unchanged, and does less."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.integrations import sdpa_attention

from lightning_rarlhf.layers.last_block import LastBlock, last_block, reading_last
from lightning_rarlhf.policy import ActorCritic
from tests.tiny_models import FAMILIES, causal_lm

IDS = torch.tensor([[2, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]])
MASK = torch.tensor([[False, False, True, True, True, True], [True] * 6])


def gradients(model: ActorCritic, read: int | None) -> torch.Tensor:
    """Of the last two columns' hidden states in every weight."""
    model.zero_grad()
    model.trunk(IDS, MASK, read=read)[:, -2:].square().sum().backward()
    return torch.cat([p.grad.flatten() for p in model.lm.base_model.parameters()])


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_the_columns_that_are_read_and_their_gradients_are_the_same(self, family):
        model = ActorCritic(causal_lm(family), [1])
        torch.testing.assert_close(model.trunk(IDS, MASK, read=2)[:, -2:], model.trunk(IDS, MASK)[:, -2:])
        torch.testing.assert_close(gradients(model, 2), gradients(model, None))

    def test_its_parts_compute_those_columns_only(self, family):
        model = ActorCritic(causal_lm(family), [1])
        assert model._last_block == last_block(model.lm)[0], "the whole of it can be cut"
        widths: list[list[int]] = []
        for module in model._last_block.columnwise:
            own = []
            module.register_forward_hook(lambda _module, args, _output, own=own: own.append(args[0].shape[1]))
            widths.append(own)
        for read in (None, 2, None):
            model.trunk(IDS, MASK, read=read)
        assert widths == [[6, 2, 6], [6, 2, 6]]

    def test_padding_and_bfloat16_change_nothing_either(self, family):
        model = ActorCritic(causal_lm(family), [1])
        for mask in (MASK, torch.ones_like(MASK)):
            for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 3e-2)):
                with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
                    cut, whole = model.trunk(IDS, mask, read=2)[:, -2:], model.trunk(IDS, mask)[:, -2:]
                torch.testing.assert_close(cut, whole, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])  # GPT-J's attention is its own
def test_the_last_attention_has_queries_for_those_columns_only(family, monkeypatch):
    model = ActorCritic(causal_lm(family), [1])
    queries: list[int] = []
    torchs_own = torch.nn.functional.scaled_dot_product_attention

    def watched(query, *args, **options):
        queries.append(query.shape[2])
        return torchs_own(query, *args, **options)

    monkeypatch.setattr(sdpa_attention.torch.nn.functional, "scaled_dot_product_attention", watched)
    model.trunk(IDS, MASK, read=2)
    model.trunk(IDS, MASK)
    assert queries == [6, 2, 6, 6]


def test_what_is_not_read_is_not_computed():
    mlp = Counting()
    with reading_last(LastBlock((mlp,)), 2):
        output = mlp(torch.ones(3, 5, 4))
    assert mlp.columns == 2
    assert output.shape == (3, 5, 4)
    assert output[:, :3].eq(0).all()
    assert output[:, 3:].eq(1).all()
    mlp(torch.ones(3, 5, 4))
    assert mlp.columns == 5


def test_recomputed_blocks_are_left_whole():
    model = ActorCritic(causal_lm("gpt2"), [1])
    plain = gradients(model, 2)
    model.lm.activation_checkpointing_enable()
    torch.testing.assert_close(gradients(model, 2), plain)


def test_a_projection_of_another_kind_leaves_the_mlp_alone_to_be_cut():
    lm = causal_lm("gpt2")
    lm.transformer.h[-1].attn.c_proj = Mixing()
    model = ActorCritic(lm, [1])
    assert model._last_block == LastBlock((lm.transformer.h[-1].mlp,))
    torch.testing.assert_close(model.trunk(IDS, MASK, read=2)[:, -2:], model.trunk(IDS, MASK)[:, -2:])


def test_an_mlp_of_another_kind_is_left_alone():
    lm = causal_lm("gpt2")
    lm.transformer.h[-1].mlp = Mixing()
    model = ActorCritic(lm, [1])
    assert model._last_block is None
    torch.testing.assert_close(model.trunk(IDS, MASK, read=2), model.trunk(IDS, MASK))


class Counting(nn.Module):
    """The identity; remembers how many columns it saw."""

    columns = 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.columns = hidden.shape[1]
        return hidden


class Mixing(nn.Module):
    """Not position-wise: every column hears of all before it."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.cumsum(dim=1)
