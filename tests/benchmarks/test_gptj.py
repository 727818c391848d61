from __future__ import annotations

import json

import pytest

import train
from benchmarks import gptj
from benchmarks.peak import RESULT

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def test_a_shipped_configuration_is_measured_beside_its_estimate(tmp_path):
    gptj.make_world(tmp_path, "tiny")
    arguments = gptj.arguments_of(tmp_path, "tiny", "lora_bf16", 2)
    train.main(["fit", *arguments])
    measured = json.loads((tmp_path / "lora_bf16" / RESULT).read_text())
    assert len(measured["iterations"]) == 2
    assert all(0 < entry["tokens"] <= 8 * 8 and entry["seconds"] > 0 for entry in measured["iterations"])
    assert measured["peak"] > 0
    estimate = gptj.estimated(arguments)
    assert 2**20 < estimate < 2**23  # 170,000 weights in bfloat16, a classifier in float16, adapters, activations


def test_the_row_leaves_out_the_first_iteration():
    iterations = [{"seconds": s, "tokens": 100.0} for s in (50.0, 2.0, 4.0)]
    row = gptj.line("fsdp2", {"iterations": iterations, "peak": 2**30, "device": "cpu"}, 9 * 2**27)
    assert row == "fsdp2 (cpu) | 1152.0 | 1024.0 | 1.12 | 3.00 | 38"


def test_6b_is_gpt_j():
    import torch
    from transformers import GPTJConfig, GPTJForCausalLM

    with torch.device("meta"):
        lm = GPTJForCausalLM(GPTJConfig(**gptj.SIZES["6b"]["policy"]))
    assert sum(weight.numel() for weight in lm.parameters()) == 6_050_882_784
