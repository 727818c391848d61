from __future__ import annotations

import pytest

from lightning_rarlhf.base_modules.policy_rules import require_trainable, require_workable
from lightning_rarlhf.config import LoRAConfig, PolicyConfig
from lightning_rarlhf.errors import ModelError

LORA = LoRAConfig()


@pytest.mark.parametrize(
    ("policy", "run", "reason"),
    [
        (PolicyConfig(quantization="8bit"), {}, r"no gradient.*--model\.policy\.lora"),
        (PolicyConfig(quantization="8bit", lora=LORA), {"shards": True}, r"FSDP.*ddp.*fsdp2\.yaml"),
        (PolicyConfig(quantization="8bit"), {"shards": True, "fits": False}, r"FSDP.*ddp"),
        (PolicyConfig(quantization="4bit", lora=LORA), {"device": "cpu"}, r"4-bit.*8bit"),
        (PolicyConfig(compile_sampling=True), {"shards": True}, r"compile_sampling with a sharded.*strategy ddp"),
        (PolicyConfig(compile_sampling=True, quantization="8bit", lora=LORA), {}, r"quantization=8bit.*leave"),
    ],
)
def test_what_cannot_work_is_refused_with_what_can(policy, run, reason):
    with pytest.raises(ModelError, match=reason) as caught:
        require_workable(policy, **{"fits": True, "shards": False, "device": "cuda"} | run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("policy", "run"),
    [
        (PolicyConfig(), {"shards": True}),
        (PolicyConfig(lora=LORA), {"shards": True, "device": "cpu"}),
        (PolicyConfig(quantization="8bit", lora=LORA), {"device": "cpu"}),
        (PolicyConfig(quantization="4bit", lora=LORA), {}),
        (PolicyConfig(quantization="8bit"), {"fits": False}),
        (PolicyConfig(quantization="4bit"), {"fits": False, "device": "cpu"}),
        (PolicyConfig(compile_sampling=True, lora=LORA), {"device": "cpu"}),
    ],
)
def test_what_works_passes(policy, run):
    require_workable(policy, **{"fits": True, "shards": False, "device": "cuda"} | run)


def test_a_checkpoint_quantised_by_others_needs_adapters():
    require_trainable(PolicyConfig(lora=LORA), quantized=True)
    require_trainable(PolicyConfig(), quantized=False)
    with pytest.raises(ModelError, match=r"gpt2 holds quantised weights.*lora"):
        require_trainable(PolicyConfig(), quantized=True)
