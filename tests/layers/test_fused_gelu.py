"""GPT-2's activation is the formula that transformers spells out, value and gradient."""

from __future__ import annotations

import pytest
import torch
from transformers.activations import NewGELUActivation

from lightning_rarlhf.layers.fused_gelu import TanhGELU, fuse_gelu
from lightning_rarlhf.policy import ActorCritic
from tests.tiny_models import causal_lm

INPUTS = torch.linspace(-12, 12, 2001)


def test_the_policys_is_replaced():
    actor = ActorCritic(causal_lm("gpt2"), [1])
    assert {type(block.mlp.act) for block in actor.lm.transformer.h} == {TanhGELU}


def test_others_are_left_alone():
    network = torch.nn.Sequential(torch.nn.GELU(), NewGELUActivation())
    fuse_gelu(network)
    assert [type(child) for child in network] == [torch.nn.GELU, TanhGELU]


@pytest.mark.parametrize("inputs", [INPUTS, INPUTS.view(3, 29, 23), torch.zeros(0, 4)], ids=["line", "3-D", "empty"])
def test_value_and_gradient_are_the_formulas(inputs):
    ours, its = inputs.clone().requires_grad_(), inputs.double().requires_grad_()
    value, exact = TanhGELU()(ours), NewGELUActivation()(its)
    torch.testing.assert_close(value.double(), exact, atol=2e-6, rtol=1e-6)
    weights = torch.linspace(-1, 2, inputs.numel(), dtype=torch.float64).view(inputs.shape)
    value.backward(weights.float())
    exact.backward(weights)
    torch.testing.assert_close(ours.grad.double(), its.grad, atol=2e-5, rtol=1e-5)
    with torch.no_grad():
        assert TanhGELU()(ours).equal(value)


def test_its_input_is_left_as_it_was():
    inputs = INPUTS.clone()
    with torch.no_grad():
        TanhGELU()(inputs)
    assert inputs.equal(INPUTS)


def test_bfloat16_is_rounded_once():
    inputs = INPUTS.bfloat16()
    value = TanhGELU()(inputs.requires_grad_())
    exact = NewGELUActivation()(inputs.detach().double())
    assert value.dtype == torch.bfloat16
    torch.testing.assert_close(value.double(), exact.bfloat16().double(), atol=1e-6, rtol=8e-3)
    value.sum().backward()
    assert inputs.grad.isfinite().all()


def test_broken_numbers_stay_broken():
    with torch.no_grad():
        value = TanhGELU()(torch.tensor([torch.nan, torch.inf, -torch.inf]))
    assert value[0].isnan()
    assert value[1] == torch.inf


def test_it_stays_of_float32_whatever_the_default_type():
    expected = TanhGELU()(INPUTS)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert TanhGELU()(INPUTS).equal(expected)
    finally:
        torch.set_default_dtype(torch.float32)
