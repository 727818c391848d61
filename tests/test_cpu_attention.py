"""On a CPU, bfloat16 attention is float32 attention, rounded once; everything else is as it was."""

from __future__ import annotations

import json

import pytest
import torch
from transformers.integrations import sdpa_attention

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

    monkeypatch.setattr("lightning_rarlhf.cpu_attention.pad", refused)
    model.trunk(IDS, MASK)
    with pytest.raises(AssertionError, match="padded by nothing"):
        model.trunk(IDS, MASK, read=2)
