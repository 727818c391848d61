"""Architectures that scale their logits are refused, with weights and without; a known cap is the head's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_rarlhf.config import PolicyConfig
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.language_model import LanguageModel
from lightning_rarlhf.layers.plain_logits import require_plain_logits
from lightning_rarlhf.loading.empty_policy import empty_policy
from tests.tiny_models import FAMILIES, causal_lm

SIZES = {
    "vocab_size": 17,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": None,
}
CHANGED = {"cohere": {}, "granite": {"logits_scaling": 2.0}}


@pytest.mark.parametrize("family", CHANGED)
def test_what_changes_its_logits_is_refused_also_before_its_weights_are_there(family: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **SIZES, **CHANGED[family])
    config.save_pretrained(tmp_path)
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config).eval()
    said = "ForCausalLM changes its logits after the output layer .*not supported"
    with pytest.raises(ModelError, match=said):
        LanguageModel(lm, [1])
    with pytest.raises(ModelError, match=said):
        empty_policy(PolicyConfig(pretrained=str(tmp_path)))


@pytest.mark.parametrize(("family", "scale"), [("cohere", {"logit_scale": 1.0}), ("granite", {"logits_scaling": 1.0})])
def test_a_scale_of_1_is_none(family: str, scale: dict[str, float]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    LanguageModel(AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES, **scale)), [1])


def test_an_output_layer_that_only_asks_for_a_type_is_plain(tmp_path: Path) -> None:
    """Mamba's does; without contents that is an operation of its own."""
    from transformers import MambaConfig

    sizes = {"vocab_size": 17, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 1, "intermediate_size": 32}
    MambaConfig(**sizes, architectures=["MambaForCausalLM"]).save_pretrained(tmp_path)
    require_plain_logits(empty_policy(PolicyConfig(pretrained=str(tmp_path))).lm, "mamba")


@pytest.mark.parametrize("cap", [None, 3.0])
def test_a_cap_is_the_heads_own_however_large_the_logits(cap: float | None) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("gemma2", **SIZES, final_logit_softcapping=cap, attn_logit_softcapping=None)
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config).eval()
    torch.nn.init.normal_(lm.get_output_embeddings().weight, std=2.0)
    model = LanguageModel(lm, [1])
    ids = torch.tensor([[3, 4, 5, 6]])
    expected = lm(input_ids=ids).logits
    assert expected.abs().max() <= cap if cap else expected.abs().max() > 3
    torch.testing.assert_close(model.head(model.trunk(ids, torch.ones_like(ids, dtype=torch.bool))), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_supported_architectures_are_let_through(family: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        require_plain_logits(causal_lm(family).to(dtype), family)
