"""On a CPU, bfloat16 attention is float32 attention, rounded once; everything else is as it was."""

from __future__ import annotations

import json

import pytest
import torch
from transformers.integrations import sdpa_attention

from lightning_rarlhf.layers.cpu_attention import _attention, _of_one_query
from lightning_rarlhf.policy import ActorCritic
from tests.tiny_models import FAMILIES, causal_lm

IDS = torch.tensor([[2, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]])
MASK = torch.tensor([[False, False, True, True, True, True], [True] * 6])


@pytest.fixture
def attended(monkeypatch):
    """The type of every call to torch's attention."""
    seen = []
    torchs_own = torch.nn.functional.scaled_dot_product_attention

    def watched(query, *args, **options):
        seen.append(query.dtype)
        return torchs_own(query, *args, **options)

    monkeypatch.setattr(sdpa_attention.torch.nn.functional, "scaled_dot_product_attention", watched)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_passes_give_what_transformers_own_give(family):
    plain, ours = causal_lm(family).eval(), ActorCritic(causal_lm(family), [1])
    positions = (MASK.long().cumsum(1) - 1).clamp(min=0)
    expected = plain.base_model(IDS, attention_mask=MASK.long(), position_ids=positions).last_hidden_state
    torch.testing.assert_close(ours.trunk(IDS, MASK)[MASK], expected[MASK])


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gptj"])  # which has its own attention
def test_bfloat16_attends_in_float32_and_answers_in_bfloat16(family, attended):
    model = ActorCritic(causal_lm(family), [1])
    exact = model.trunk(IDS, MASK)
    attended.clear()
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.trunk(IDS, MASK)
    assert attended == [torch.float32] * 2
    torch.testing.assert_close(hidden[MASK].float(), exact[MASK], atol=0.1, rtol=0.05)
    hidden.float().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    weights = ActorCritic(causal_lm(family).bfloat16(), [1]).trunk(IDS, MASK)
    assert weights.dtype == torch.bfloat16
    assert set(attended) == {torch.float32}


def test_a_choice_of_the_users_stays_and_a_saved_model_says_nothing_of_ours(tmp_path):
    eager = causal_lm("gpt2")
    eager.set_attn_implementation("eager")
    assert ActorCritic(eager, [1]).lm.config._attn_implementation == "eager"
    ActorCritic(causal_lm("gpt2"), [1]).lm.save_pretrained(tmp_path)
    assert "float32_on_cpu" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))


def test_what_is_read_whole_is_not_copied(monkeypatch):
    model = ActorCritic(causal_lm("gpt2"), [1])

    def refused(*_args):
        raise AssertionError("padded by nothing")

    monkeypatch.setattr("lightning_rarlhf.layers.cpu_attention.pad", refused)
    model.trunk(IDS, MASK)
    with pytest.raises(AssertionError, match="padded by nothing"):
        model.trunk(IDS, MASK, read=2)


@pytest.mark.parametrize("heads", [1, 2, 6], ids="{} of keys".format)
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_one_query_attends_as_torchs_own_kernel_has_it(heads, mask, scaling):
    generator = torch.Generator().manual_seed(heads)
    query = torch.randn(3, 6, 1, 8, generator=generator)
    key, value = torch.randn(2, 3, heads, 5, 8, generator=generator)
    seen = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 0, 1, 0, 0]]).bool()[:, None, None]
    given = {"none": None, "bool": seen, "float": torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)}[mask]
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=given, scale=scaling, enable_gqa=True
    )
    torch.testing.assert_close(_of_one_query(query, key, value, given, scaling), expected.transpose(1, 2))
    rounded = _of_one_query(query.bfloat16(), key.bfloat16(), value.bfloat16(), given, scaling)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), expected.transpose(1, 2), atol=0.02, rtol=0.02)


def test_only_the_compilers_step_of_one_query_is_spelled_out(monkeypatch):
    query, key, value = torch.randn(3, 2, 4, 5, 8)
    calls = []

    def watched(*args):
        calls.append(args[0].shape[2])
        return _of_one_query(*args)

    def attend(query, **options):
        return _attention(torch.nn.Module(), query, key, value, None, is_causal=False, **options)[0]

    monkeypatch.setattr("lightning_rarlhf.layers.cpu_attention._of_one_query", watched)
    plain = attend(query[:, :, :1])
    assert calls == []
    compiled = torch.compile(attend, backend="eager")
    torch.testing.assert_close(compiled(query[:, :, :1]), plain)
    compiled(query[:, :, :2])
    biased = compiled(query[:, :, :1], position_bias=torch.zeros(1, 4, 1, 5))
    torch.testing.assert_close(biased, plain)
    assert calls == [1]
