"""Settings of the policy that cannot work together: refused before anything is loaded, with the way that works."""

from __future__ import annotations

from lightning_rarlhf.config import PolicyConfig
from lightning_rarlhf.errors import ModelError


def require_workable(policy: PolicyConfig, *, fits: bool, shards: bool, device: str) -> None:
    """Refuse combinations of settings that fail later, or that fail silently.

    Args:
        policy: the policy's settings.
        fits: whether the policy is to be trained.
        shards: whether the strategy cuts weights into pieces, a piece a process (FSDP).
        device: type of the device that the policy is on: cpu, cuda, ...

    Raises:
        ModelError: the reason, and what to set instead.
    """
    _require_compilable(policy, shards=shards)
    if policy.quantization is None:
        return
    got = f"policy.quantization={policy.quantization}"
    if fits and policy.lora is None:
        raise ModelError(
            f"{got} without policy.lora: weights of whole numbers have no gradient; train adapters on them with "
            "--model.policy.lora '{}', or leave the quantization out"
        )
    if shards:
        raise ModelError(
            f"{got} with a sharded strategy: FSDP cuts and casts weights that must stay whole to be read; keep a "
            "quantised copy on each device with --trainer.strategy ddp, or shard bfloat16 weights "
            "(configs/gptj/fsdp2.yaml)"
        )
    if fits and policy.quantization == "4bit" and device == "cpu":
        raise ModelError(
            f"{got} on a CPU: bitsandbytes repacks 4-bit weights there when they are evaluated or saved, so that a "
            "resumed run would differ; give --model.policy.quantization 8bit, or train on a GPU"
        )


def _require_compilable(policy: PolicyConfig, *, shards: bool) -> None:
    """Refuse to compile sampling from weights that are not ordinary tensors, or lie elsewhere at each iteration."""
    if not policy.compile_sampling or (policy.quantization is None and not shards):
        return
    cause = "a sharded strategy" if shards else f"policy.quantization={policy.quantization}"
    raise ModelError(
        f"policy.compile_sampling with {cause}: a compiled step needs ordinary weights that stay at one address; leave "
        "one of the two out (--model.policy.compile_sampling false, or --trainer.strategy ddp and no quantization)"
    )


def require_trainable(policy: PolicyConfig, *, quantized: bool) -> None:
    """Refuse to train all weights of a checkpoint that is itself quantised; known only once it is loaded.

    Raises:
        ModelError: the reason, and what to set instead.
    """
    if quantized and policy.lora is None:
        raise ModelError(
            f"{policy.pretrained} holds quantised weights, which have no gradient; train adapters on them with "
            "--model.policy.lora '{}', or start from the unquantised model"
        )
