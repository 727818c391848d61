from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lightning_rarlhf.config import LoRAConfig, PolicyConfig, SamplingConfig
from lightning_rarlhf.loading.empty_policy import empty_policy
from lightning_rarlhf.loading.policy_loading import load_causal_lm
from lightning_rarlhf.memory.estimate import RewardSettings, Run, estimate
from lightning_rarlhf.memory.networks import weight_bytes
from tests.tiny_models import FAMILIES, WORDS, save_tokenizer

ROOT = Path(__file__).resolve().parents[2]
CASES = [(False, False, 0), (True, False, 0), (False, True, 0), (False, False, 4)]
"""gradient checkpointing, LoRA, frozen layers of six"""
SIZES = {"rows": 16, "prompt_tokens": 32, "max_new_tokens": 32}


@pytest.fixture(scope="module")
def middling(tmp_path_factory) -> Path:
    """A network of 60 MB: large enough to stand out from what a process needs anyway."""
    folder = tmp_path_factory.mktemp("middling")
    settings = {"n_embd": 384, "n_layer": 6, "n_head": 6, "n_positions": 128, "vocab_size": 12_000}
    tokens = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": None}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **settings, **tokens)).save_pretrained(folder)
    save_tokenizer(folder, context=128)
    return folder


def run_of(folder, **policy) -> Run:
    settings = PolicyConfig(pretrained=str(folder), **policy)
    return Run(
        policy=settings,
        reference=None if settings.lora else settings,
        reward=None,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-5),
        rows=SIZES["rows"],
        update_rows=SIZES["rows"],
        prompt_tokens=SIZES["prompt_tokens"],
        sampling=SamplingConfig(max_new_tokens=SIZES["max_new_tokens"]),
        on_gpu=False,
    )


@pytest.fixture(scope="module")
def measured(middling) -> dict[tuple[bool, bool, int], int]:
    """Bytes of each case, from one process of its own that has loaded the libraries once."""
    words = [str(middling), json.dumps(CASES), json.dumps([*SIZES.values()])]
    script = [sys.executable, str(ROOT / "tests" / "memory" / "measured.py"), *words]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(zip(CASES, map(int, done.stdout.split()), strict=True))


@pytest.mark.parametrize(("checkpointing", "lora", "frozen"), CASES)
def test_the_update_needs_what_was_estimated_within_15_percent(middling, measured, checkpointing, lora, frozen):
    adapters = LoRAConfig(r=16) if lora else None
    policy = {"gradient_checkpointing": checkpointing, "lora": adapters, "frozen_layers": frozen}
    said = estimate(replace(run_of(middling, **policy), reference=None)).peak("update")
    print(said / 2**20, measured[checkpointing, lora, frozen] / 2**20)
    assert said == pytest.approx(measured[checkpointing, lora, frozen], rel=0.15)


@pytest.mark.parametrize("quantization", [None, "8bit"])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_counted_to_the_byte(policy_folders, family, quantization):
    config = PolicyConfig(pretrained=str(policy_folders[family]), quantization=quantization)
    lm = load_causal_lm(config)
    real = sum(p.numel() * p.element_size() for p in lm.parameters())
    real += sum(b.numel() * b.element_size() for n, b in lm.state_dict().items() if n.endswith(".SCB"))
    head = 4 * (lm.get_output_embeddings().weight.shape[1] + 1)
    assert weight_bytes(empty_policy(config), quantization) == pytest.approx(
        real + head, abs=0 if not quantization else 4096
    )


def test_adapters_need_no_reference_and_little_state(middling):
    full, adapted = estimate(run_of(middling)), estimate(run_of(middling, lora=LoRAConfig(r=8)))
    assert full.held["reference"] == pytest.approx(full.held["policy"], rel=1e-3)
    assert "reference" not in adapted.held
    assert full.held["optimizer state"] == pytest.approx(2 * full.held["policy"], rel=1e-3)
    assert adapted.held["optimizer state"] < 0.02 * full.held["optimizer state"]


def test_more_rows_more_activations_and_checkpointing_fewer(middling):
    one = run_of(middling)
    base = estimate(one).phases["update"]["activations"]
    assert estimate(replace(one, update_rows=32)).phases["update"]["activations"] == pytest.approx(2 * base, rel=0.05)
    assert estimate(run_of(middling, gradient_checkpointing=True)).phases["update"]["activations"] < 0.3 * base


def test_the_cache_is_two_numbers_a_layer_head_and_token(middling):
    cache = estimate(run_of(middling)).phases["sampling"]["key-value cache"]
    assert cache == pytest.approx(2 * 6 * 384 * 4 * 16 * (32 + 32), rel=0.01)


@pytest.mark.parametrize(("frozen", "trained_blocks"), [(0, 6), (4, 2)])
def test_in_bf16_mixed_what_is_trained_is_there_in_bfloat16_too_while_sampling(middling, frozen, trained_blocks):
    run = replace(run_of(middling, frozen_layers=frozen), autocast=True)
    block = 12 * 384 * 384 + 9 * 384  # weights and biases of the linear layers
    output_layer = 0 if frozen else 12_000 * 384  # it is tied to the embeddings
    copies = 2 * (trained_blocks * block + output_layer)
    name = "bfloat16 copies to sample from"
    assert estimate(run).phases["sampling"][name] == copies
    assert estimate(replace(run, processes=4, shards=True)).phases["sampling"][name] == copies  # of whole weights
    assert estimate(replace(run, autocast=False)).phases["sampling"][name] == 0
    assert all(name not in parts for phase, parts in estimate(run).phases.items() if phase != "sampling")


def test_compiled_sampling_keeps_its_cache_and_its_copies(middling):
    plain, compiled = (replace(run_of(middling, compile_sampling=on), autocast=True) for on in (False, True))
    before, after = estimate(plain), estimate(compiled)
    cache = before.phases["sampling"]["key-value cache"]
    assert after.held["key-value cache"] == cache
    layers = 6 * (12 * 384 * 384 + 9 * 384)  # weights and biases
    assert after.held["bfloat16 copies to sample from"] == 2 * (layers + 12_000 * 384)
    assert after.peak("update") == before.peak("update") + cache + 2 * (layers + 12_000 * 384)
    in_float32 = estimate(replace(compiled, autocast=False))
    assert in_float32.held["bfloat16 copies to sample from"] == 0
    assert in_float32.peak("sampling") == estimate(replace(plain, autocast=False)).peak("sampling")


def test_on_a_cpu_in_bfloat16_the_cache_stays_until_the_responses_are_read_over_it(middling):
    def parts(phase, cpu=True, **policy):
        run = replace(run_of(middling, **policy), autocast=True, on_gpu=not cpu, prompt_tokens=70)
        return estimate(run).phases[phase]

    prompts, whole = 2 * 6 * 384 * 2 * 16 * 128, "key-value cache"  # room for 128 tokens, of 70 and of 102
    assert parts("log-probabilities and values")[whole] == parts("sampling")[whole] == pytest.approx(prompts, rel=0.01)
    for other in ({"cpu": False}, {"frozen_layers": 1}, {"lora": LoRAConfig(r=4)}, {"compile_sampling": True}):
        assert whole not in parts("log-probabilities and values", **other), other
    run = replace(run_of(middling), autocast=True)  # responses go beyond the room that 32 tokens have
    long = replace(run, sampling=SamplingConfig(max_new_tokens=64))
    of_64 = estimate(run).phases["sampling"][whole]
    assert estimate(long).phases["sampling"][whole] == pytest.approx(3 * of_64, rel=0.01)  # both places, of 64 and 128
    assert estimate(replace(long, on_gpu=True)).phases["sampling"][whole] == pytest.approx(2 * of_64, rel=0.01)


def test_sampled_in_parts_the_cache_is_that_of_one_part(middling, classifier_folder):
    run = replace(run_of(middling), reward=RewardSettings(pretrained=str(classifier_folder), beside_sampling=True))
    whole, parts = estimate(run), estimate(replace(run, most_sampled=4))
    for name in ("key-value cache", "logits"):
        assert parts.phases["sampling"][name] == pytest.approx(whole.phases["sampling"][name] / 4, rel=0.02)
    assert parts.phases["sampling"]["scoring beside it"] == parts.phases["scoring"]["forward pass"]
    assert "scoring beside it" not in whole.phases["sampling"]
    others = [phase for phase in whole.phases if phase != "sampling"]
    assert [parts.phases[phase] for phase in others] == [whole.phases[phase] for phase in others]


def test_sharding_divides_what_is_held(middling):
    run = run_of(middling)
    alone, two = estimate(run), estimate(replace(run, processes=2, shards=True))
    assert two.held["policy"] == alone.held["policy"] // 2
    assert two.held["optimizer state"] == alone.held["optimizer state"] // 2
    assert two.phases["sampling"]["policy made whole"] == alone.held["policy"]


def test_an_optimizer_is_asked_not_known(middling):
    from bitsandbytes.optim import AdamW8bit

    run = replace(run_of(middling), optimizer=lambda parameters: AdamW8bit(parameters, lr=1e-5))
    assert estimate(run).held["optimizer state"] == pytest.approx(0.5 * estimate(run).held["policy"], rel=0.1)
    sgd = replace(run, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-5))
    assert estimate(sgd).held["optimizer state"] == 0
    assert len(WORDS) > 0
