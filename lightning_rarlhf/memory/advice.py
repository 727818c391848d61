"""What to change in a run that does not fit, each change with what the run would then need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lightning_rarlhf.config import LoRAConfig
from lightning_rarlhf.memory.estimate import Run, estimate


@dataclass(frozen=True)
class Change:
    """One setting to change."""

    says: str
    """as it is written on the command line, or in words"""
    run: Run


def advice(run: Run, limit: int) -> list[tuple[str, int]]:
    """Changes one upon the other, gentle ones first, with the worst phase's bytes after each; ends when it fits."""
    found: list[tuple[str, int]] = []
    changed = run
    while True:
        change = next(_changes(changed), None)
        if change is None:
            return found
        before, after = estimate(changed).worst[1], estimate(change.run).worst[1]
        changed = change.run
        if after < before:
            found.append((change.says, after))
        if after <= limit:
            return found


def _changes(run: Run) -> Iterator[Change]:
    """What is still left to change, by what it costs: first time, then precision, then the batch."""
    policy = run.policy
    if policy.compile_sampling:
        smaller = replace(policy, compile_sampling=False)
        yield Change("--model.policy.compile_sampling false   (the same result, slower)", replace(run, policy=smaller))
    if run.update_rows > 1:
        rows = -(-run.update_rows // 4)
        yield Change(
            f"--model.ppo.micro_batch_size {rows}   (the same result, in smaller parts)", replace(run, update_rows=rows)
        )
    if not policy.gradient_checkpointing:
        smaller = replace(policy, gradient_checkpointing=True)
        yield Change(
            "--model.policy.gradient_checkpointing true   (the same result, slower)", replace(run, policy=smaller)
        )
    if run.sampled_rows > 1:
        rows = -(-run.sampled_rows // 2)
        yield Change(
            f"--model.ppo.micro_rollout_batch_size {rows}   (the same result, slower)", replace(run, most_sampled=rows)
        )
    if run.reward is not None and not run.reward.elsewhere:
        yield Change(
            "--model.reward.device cpu   (slower scores)", replace(run, reward=replace(run.reward, elsewhere=True))
        )
    if policy.lora is None:
        smaller = replace(policy, lora=LoRAConfig())
        yield Change(
            "--model.policy.lora '{}'   (adapters are trained, and no second network is the reference)",
            replace(run, policy=smaller, reference=None),
        )
    elif policy.dtype == "float32":
        yield Change("--model.policy.dtype bfloat16", replace(run, policy=replace(policy, dtype="bfloat16")))
    elif policy.quantization is None and not run.shards:
        yield Change("--model.policy.quantization 8bit", replace(run, policy=replace(policy, quantization="8bit")))
    if run.rows > 1:
        rows = run.rows // 2
        yield Change(
            f"--data.batch_size {rows * run.processes}   (another batch is another run)",
            replace(run, rows=rows, update_rows=min(run.update_rows, rows)),
        )
