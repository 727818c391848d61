"""A whole training on one GPU: seconds of 194 iterations, and a decoding step against the memory's bandwidth.

    python -m benchmarks.gpu                                    # random-weight GPT-2, B = 128, 64 + 48 tokens
    python -m benchmarks.gpu --sampling compiled --json
    python -m benchmarks.gpu --size tiny --iterations 3         # on a CPU, to see that this program works

A real `Trainer`, `RiskAversePPOModule`, the schedule of configs/imdb.yaml and a `ClassifierReward` of DistilBERT's
size, all of random weights, so nothing is downloaded; no validation and no checkpoints. Afterwards sampling steps are
timed by themselves, draw included, and compared with the least that a step must move: the linear layers' weights, the
output layer's included, once, and each row's keys and values so far, at the speed at which this device copies.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.models import save_policy, save_tokenizer
from benchmarks.ours import prompt_batch
from benchmarks.workload import Workload, workload
from callbacks import RiskSchedule
from lightning_rarlhf.config import PolicyConfig, PPOConfig, SamplingConfig
from lightning_rarlhf.data_types import PromptBatch
from lightning_rarlhf.ppo_module import RiskAversePPOModule
from lightning_rarlhf.reward_models import ClassifierReward
from lightning_rarlhf.sampling import SamplingSeed, sample

REWARDS: dict[str, dict[str, int]] = {
    "gpt2": {},
    "tiny": {"n_layers": 2, "dim": 128, "hidden_dim": 256, "n_heads": 4},
}
"""what differs from the defaults of transformers' DistilBertConfig, which is DistilBERT"""
GOAL_SECONDS, GOAL_BOUNDS, GOAL_ITERATIONS = 120.0, 3.0, 194
"""on an H200: for all the iterations of IMDB-Gen, and of a decoding step in units of its bound"""

_LONG = 60
"""iterations from which on there is the schedule; in a shorter run the tail is 0.4 from the start"""


def main(args: Sequence[str] | None = None) -> None:
    """Make the models, train with each way of sampling, print."""
    options = _parse(args)
    work = workload(options.size, "imdb", precision=options.precision)
    batch = options.batch or (128 if options.size == "gpt2" else work.batch)
    work = replace(work, batch=batch, risk_level=0.4)
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        save_models(Path(scratch), work, REWARDS[options.size])
        for way in options.sampling:
            result = run(Path(scratch), work, options, compiled=way == "compiled")
            results.append(result)
            print(json.dumps(result) if options.json else table(result), flush=True)


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--size", choices=REWARDS, default="gpt2")
    parser.add_argument("--iterations", type=int, default=GOAL_ITERATIONS)
    parser.add_argument("--batch", type=int, help="prompts an iteration; none = 128 for gpt2, 32 for tiny")
    parser.add_argument("--precision", choices=("bf16-mixed", "32-true"), default="bf16-mixed")
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--sampling", nargs="+", choices=("compiled", "plain"), default=("compiled", "plain"))
    parser.add_argument("--rounds", type=int, default=5, help="batches that are sampled to time a step")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each way of sampling")
    return parser.parse_args(args)


def save_models(folder: Path, work: Workload, reward: dict[str, int]) -> None:
    """`folder`/policy, a GPT-2, and `folder`/reward, a DistilBERT with a head, that read a word as a token each."""
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    save_policy(folder / "policy", work)
    judge = DistilBertConfig(vocab_size=work.vocabulary, num_labels=1, pad_token_id=0, **reward)
    DistilBertForSequenceClassification(judge).save_pretrained(folder / "reward")
    save_tokenizer(folder / "reward", work.vocabulary, context=512)


class _Prompts(pl.LightningDataModule):
    """The same random prompts in every batch, each time as others: their responses have random numbers of their own."""

    def __init__(self, work: Workload, batches: int) -> None:
        super().__init__()
        self.batch_size = work.batch  # for the schedule
        batch = prompt_batch(work)
        self._batches = [replace(batch, index=batch.index + number * len(batch)) for number in range(batches)]

    def train_dataloader(self) -> DataLoader[PromptBatch]:
        return DataLoader(self._batches, batch_size=None)  # type: ignore[arg-type]


class Clock(Callback):
    """Seconds of each iteration and of its phases; at the end, those of a decoding step."""

    def __init__(self, work: Workload, rounds: int) -> None:
        self._work, self._rounds = work, rounds
        self.iterations: list[dict[str, float]] = []
        self.decoding: dict[str, float] = {}
        self.total = self._sampling = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        draw = pl_module.draw

        def timed(*args: Any, **options: Any) -> Any:
            start = _now(pl_module.device)
            samples = draw(*args, **options)
            self._sampling += _now(pl_module.device) - start
            return samples

        pl_module.draw = timed
        self._start = _now(pl_module.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: object, batch_idx: int
    ) -> None:
        metrics = trainer.callback_metrics
        phases = {name.removeprefix("time/"): float(metrics[name]) for name in metrics if name.startswith("time/")}
        self.iterations.append({**phases, "of rollout: sampling": self._sampling})
        self._sampling = 0.0

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.total = _now(pl_module.device) - self._start
        with trainer.precision_plugin.train_step_context():
            self.decoding = decoding_step(pl_module, self._work, self._rounds)


def run(folder: Path, work: Workload, options: argparse.Namespace, *, compiled: bool) -> dict[str, Any]:
    """Train once; what it took, in seconds."""
    clock = Clock(work, options.rounds)
    module = RiskAversePPOModule(
        policy=PolicyConfig(pretrained=str(folder / "policy"), compile_sampling=compiled),
        reward=ClassifierReward(
            str(folder / "reward"), dtype="bfloat16" if work.precision == "bf16-mixed" else "float32"
        ),
        sampling=SamplingConfig(max_new_tokens=work.response),
        ppo=PPOConfig(epochs=work.epochs),
    )
    schedule = [RiskSchedule(risk_level=0.4, warmup=30, rho=0.95)]
    if options.iterations < _LONG:
        module.risk_level, schedule = 0.4, []
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator=options.accelerator,
        devices=1,
        precision=work.precision,  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=options.iterations,
        log_every_n_steps=1,
        callbacks=[*schedule, clock],
    )
    trainer.fit(module, datamodule=_Prompts(work, options.iterations))
    later = clock.iterations[1:] or clock.iterations
    device = trainer.strategy.root_device
    return {
        "sampling": "compiled" if compiled else "plain",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "workload": work.to_dict(),
        "iterations": len(clock.iterations),
        "total_seconds": clock.total,
        "first_iteration_seconds": clock.iterations[0]["iteration"],
        "median_seconds": {name: median(each[name] for each in later) for name in later[0]},
        "decoding": clock.decoding,
    }


def decoding_step(module: RiskAversePPOModule, work: Workload, rounds: int) -> dict[str, float]:
    """Seconds of one step, draw included, with rows in the middle of their responses; and of what it must move."""
    batch = prompt_batch(work)
    batch = replace(
        batch,
        **{name: getattr(batch, name).to(module.device) for name in ("input_ids", "attention_mask", "index")},
    )
    steps = [_step_seconds(module, batch, number) for number in range(rounds + 1)]
    weights = _step_weights(module)
    element = 2 if work.precision == "bf16-mixed" else 4
    tokens = work.prompt + (work.response + 1) // 2
    cache = 2 * work.layers * work.hidden * work.batch * tokens * element
    bandwidth = copy_bandwidth(module.device)
    seconds, bound = median(steps[1:]), (weights + cache) / bandwidth
    return {
        "step_seconds": seconds,
        "weight_bytes": weights,
        "cache_bytes": cache,
        "bytes_per_second": bandwidth,
        "bound_seconds": bound,
        "in_bounds": seconds / bound,
    }


def _step_seconds(module: RiskAversePPOModule, batch: PromptBatch, number: int) -> float:
    """Mean over the steps of one batch, after its prompts were read."""
    # no response ends early: every step has all its rows
    sampling = replace(module.sampling, min_new_tokens=module.sampling.max_new_tokens)
    decoder = module.decoder_of(module.actor, keep_hidden=module.actor.samples_exactly)
    clocked = _Clocked(decoder, module.device, sampling.max_new_tokens - 1)
    seed = SamplingSeed(base=0, iteration=number)
    sample(clocked, batch, sampling, seed, module.tokenizer, module.actor.eos_token_ids)
    return (clocked.last - clocked.first) / (clocked.passes - 1)


class _Clocked:
    """A decoder that notes when its first and its last pass begin: as many draws as passes lie between."""

    def __init__(self, decoder: Any, device: torch.device, passes: int) -> None:
        self._decoder, self._device = decoder, device
        self.passes, self._done = passes, 0
        self.first = self.last = 0.0

    def start(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self._decoder.start(input_ids, attention_mask)
        return logits

    def advance(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        self._done += 1
        if self._done == 1:
            self.first = _now(self._device)
        if self._done == self.passes:
            self.last = _now(self._device)
        logits: Tensor = self._decoder.advance(tokens, attention_mask)
        return logits

    def keep(self, rows: Tensor) -> None:
        self._decoder.keep(rows)


def _step_weights(module: RiskAversePPOModule) -> int:
    """Bytes of what every step reads whole: the linear layers and the output layer, in the type that they work in."""
    from transformers.pytorch_utils import Conv1D

    kind = module.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
    layers = [each for each in module.actor.lm.modules() if isinstance(each, torch.nn.Linear | Conv1D)]
    return sum(weight.numel() for layer in layers for weight in layer.parameters()) * dtype.itemsize


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of copying 1 GiB (256 MiB on a CPU); median of 10."""
    source = torch.empty(2**30 if device.type == "cuda" else 2**28, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    taken = []
    for _ in range(11):
        start = _now(device)
        target.copy_(source)
        taken.append(_now(device) - start)
    return 2 * source.numel() / median(taken[1:])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def table(result: dict[str, Any]) -> str:
    """What a person reads."""
    work, step = result["workload"], result["decoding"]
    phases = ", ".join(f"{name} {seconds:.3f}" for name, seconds in result["median_seconds"].items())
    moved = (step["weight_bytes"] + step["cache_bytes"]) / 1e6
    bound = f"{1e3 * step['bound_seconds']:.3f} ms ({moved:.0f} MB at {step['bytes_per_second'] / 1e9:.0f} GB/s)"
    took = f"in {result['total_seconds']:.1f} s, the first in {result['first_iteration_seconds']:.1f} s"
    lines = [
        f"{result['sampling']} sampling on {result['device']}, {result['threads']} threads",
        ", ".join(f"{name}={value}" for name, value in work.items()),
        f"{result['iterations']} iterations {took}; median of the others in s: {phases}",
        f"decoding step: {1e3 * step['step_seconds']:.3f} ms, {step['in_bounds']:.2f} times its bound of {bound}",
    ]
    if work["layers"] == 12 and result["device"] != "cpu":
        lines.append(
            f"goal on an H200: {GOAL_ITERATIONS} iterations in {GOAL_SECONDS:.0f} s, "
            f"a step within {GOAL_BOUNDS:.0f} times its bound"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    main()
