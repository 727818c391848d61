"""Layers whose weights are packed multiply as those whose weights are not."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lightning_rarlhf.layers import packed_linear
from lightning_rarlhf.layers.packed_linear import _PACKED, PackedLinear, PackedWeight, can_pack, pack

LAYERS = {
    "linear": lambda: nn.Linear(24, 10),
    "no bias": lambda: nn.Linear(24, 10, bias=False),
    "of GPT-2": lambda: Conv1D(10, 24),
}
INPUTS = torch.linspace(-1, 1, 2 * 3 * 24).view(2, 3, 24)

pytestmark = pytest.mark.skipif(not can_pack(), reason="this machine has no bfloat16 products of oneDNN's")


@pytest.fixture(params=LAYERS)
def layers(request):
    """A layer in bfloat16, the float32 weights it was made of, and the same layer packed."""
    torch.manual_seed(0)
    layer = LAYERS[request.param]()
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    packed = copy.deepcopy(layer)
    weight = packed.weight
    pack(packed)
    return layer.bfloat16(), weight, packed.bfloat16()


def test_the_product_is_the_plain_ones(layers):
    plain, _, packed = layers
    with torch.no_grad():
        for inputs in (INPUTS, INPUTS[:, 0], INPUTS.bfloat16()):
            made = packed(inputs)
            assert made.dtype == torch.bfloat16
            assert torch.equal(made, plain(inputs.bfloat16()))


def test_it_follows_its_weight_when_it_is_told_to(layers):
    plain, weight, packed = layers
    with torch.no_grad():
        before = packed(INPUTS)
        weight.mul_(-2)
        assert torch.equal(packed(INPUTS), before)
        packed.packed.refresh()
        plain.weight.copy_(weight)
        assert torch.equal(packed(INPUTS), plain(INPUTS.bfloat16()))


def test_an_architecture_that_reads_the_weight_itself_finds_it_as_it_was(layers):
    plain, weight, packed = layers
    assert packed.weight.shape == plain.weight.shape
    assert torch.equal(packed.weight, weight)
    assert "weight" not in dict(packed.named_parameters()), "and there is no other copy of it"


def test_hooks_and_the_object_itself_stay(layers):
    torch.manual_seed(0)
    layer, seen = nn.Linear(24, 10), []
    layer.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    pack(layer)
    assert isinstance(layer, PackedLinear)
    layer.bfloat16()(INPUTS)
    assert seen == [(2, 3, 10)]


def test_the_compiler_takes_it_in_one_piece(layers):
    plain, _, packed = layers

    def step(inputs):
        return torch.tanh(packed(inputs + 1))

    with torch.no_grad():
        made = torch.compile(step, backend="aot_eager", fullgraph=True)(INPUTS)
        assert torch.equal(made, torch.tanh(plain((INPUTS + 1).bfloat16())))


def test_the_operator_is_what_it_says_it_is(layers):
    packed = layers[2]
    inputs = INPUTS.bfloat16()
    arguments = (inputs, packed.bias, packed.packed.number, packed.packed.columns)
    torch.library.opcheck(
        torch.ops.lightning_rarlhf.packed_linear, arguments, test_utils=("test_schema", "test_faketensor")
    )


def test_a_weight_goes_with_its_layer():
    weight = PackedWeight(torch.ones(2, 3))
    number = weight.number
    assert number in _PACKED
    del weight
    gc.collect()
    assert number not in _PACKED


def test_a_build_without_the_product_cannot(monkeypatch):
    def missing(*_):
        raise AttributeError("no such operator")

    monkeypatch.setattr(PackedWeight, "product", missing)
    assert not packed_linear.can_pack.__wrapped__()
