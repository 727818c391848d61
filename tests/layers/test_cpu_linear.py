"""Layers that multiply by oneDNN give what torch's give, value and gradient, and are still what they were."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lightning_rarlhf.layers import cpu_linear
from lightning_rarlhf.layers.cpu_linear import multiply_by_onednn
from lightning_rarlhf.policy import ActorCritic
from lightning_rarlhf.reward_models import ClassifierReward
from tests.tiny_models import FAMILIES, causal_lm

LAYERS = {
    "linear": lambda: nn.Linear(24, 10),
    "no bias": lambda: nn.Linear(24, 10, bias=False),
    "of GPT-2": lambda: Conv1D(10, 24),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    torch.manual_seed(0)
    return LAYERS[request.param]()


@pytest.fixture
def calls(monkeypatch):
    """Shapes of the left operands of oneDNN's products."""
    assert cpu_linear._available(), "tries the product once"
    seen = []
    product = cpu_linear._product

    def watched(left, right, bias):
        seen.append(list(left.shape))
        return product(left, right, bias)

    monkeypatch.setattr(cpu_linear, "_product", watched)
    return seen


def converted(layer):
    ours = copy.deepcopy(layer)
    multiply_by_onednn(ours)
    return ours


def with_gradients(layer, inputs):
    """The result, and the gradients of inputs and parameters."""
    inputs = inputs.clone().requires_grad_()
    result = layer(inputs)
    result.backward(torch.linspace(-1, 1, result.numel()).view_as(result))
    return [result, inputs.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize("shape", [(1, 24), (7, 24), (3, 5, 24)])
def test_values_and_gradients_are_torchs(layer, shape, calls):
    inputs = torch.randn(shape)
    ours = converted(layer)
    torch.testing.assert_close(with_gradients(ours, inputs), with_gradients(layer, inputs), rtol=1e-5, atol=1e-6)
    assert len(calls) == 2, "forward, and the gradient of the inputs"
    with torch.no_grad():
        torch.testing.assert_close(ours(inputs), layer(inputs), rtol=1e-5, atol=1e-6)
    assert all(p.grad.stride() == p.stride() for p in ours.parameters())


def test_an_output_layers_gradients_are_torchs_too(calls):
    layer = nn.Linear(4, cpu_linear._LONG_SUM + 1, bias=False)
    inputs = torch.randn(3, 4)
    torch.testing.assert_close(with_gradients(converted(layer), inputs), with_gradients(layer, inputs))
    assert calls == [[3, 4]], "the long sum is MKL's"


def test_results_may_be_overwritten(layer, calls):
    """In place, as torch's own may: what was overwritten gives no gradient, the rest gives its own."""

    class Overwritten(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, inputs):
            result = self.inner(inputs)
            result[..., :2] = 0.0
            return result

    inputs = torch.randn(2, 3, 24)
    found = with_gradients(Overwritten(converted(layer)), inputs)
    torch.testing.assert_close(found, with_gradients(Overwritten(layer), inputs), rtol=1e-5, atol=1e-6)
    assert found[0][..., :2].count_nonzero() == 0
    assert len(calls) == 2


def test_inputs_of_any_strides(layer):
    inputs = torch.randn(3, 48)[:, ::2]
    torch.testing.assert_close(with_gradients(converted(layer), inputs), with_gradients(layer, inputs))


def test_no_gradient_is_made_for_what_is_frozen(layer, calls):
    ours = converted(layer)
    ours.weight.requires_grad_(False)
    inputs = torch.randn(4, 24, requires_grad=True)
    ours(inputs).sum().backward()
    assert ours.weight.grad is None
    assert inputs.grad is not None
    assert len(calls) == 2


@pytest.mark.parametrize("case", ["bfloat16", "autocast", "float64", "no rows", "one row without a batch"])
def test_everything_else_is_torchs_own(layer, case, calls):
    kind = {"bfloat16": torch.bfloat16, "float64": torch.float64}.get(case, torch.float32)
    shape = {"no rows": (0, 24), "one row without a batch": (24,)}.get(case, (3, 24))
    layer, inputs = layer.to(kind), torch.randn(shape).to(kind)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        assert torch.equal(converted(layer)(inputs), layer(inputs))
    assert not calls


def test_a_layer_stays_what_it_was(layer):
    ours = converted(layer)
    assert isinstance(ours, type(layer))
    assert list(ours.state_dict()) == list(layer.state_dict())
    twin = copy.deepcopy(ours)
    twin.weight.data.zero_()
    assert ours.weight.any()
    assert type(nn.Bilinear(2, 2, 2)) is type(converted(nn.Bilinear(2, 2, 2))), "other layers are left alone"


def test_a_layer_can_be_sent_to_another_process(layer):
    ours = converted(layer)
    again = pickle.loads(pickle.dumps(ours))
    assert type(again) is type(ours)
    assert torch.equal(again(torch.ones(1, 24)), ours(torch.ones(1, 24)))
    with pytest.raises(AttributeError, match="no attribute 'OneDNNBilinear'"):
        _ = cpu_linear.OneDNNBilinear


@pytest.mark.parametrize("family", FAMILIES)
def test_policies_use_it_in_trunk_and_head(family, calls):
    plain, ours = causal_lm(family).eval(), ActorCritic(causal_lm(family), [1])
    ids = torch.tensor([[2, 3, 4, 5], [6, 7, 8, 9]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    calls.clear()
    logits = ours.head(ours.trunk(ids, mask))
    torch.testing.assert_close(logits, plain(ids).logits, rtol=1e-5, atol=1e-5)
    assert [8, ours.hidden_size] in calls
    assert len(calls) > 4


def test_rewards_use_it(classifier_folder, calls):
    reward = ClassifierReward(str(classifier_folder), label="toxic")
    reward.load(torch.device("cpu"))
    reward(["a b"], ["c"])
    assert calls


def test_without_the_product_nothing_changes(layer, monkeypatch):
    monkeypatch.setattr(cpu_linear, "_available", lambda: False)
    assert type(converted(layer)) is type(layer)
