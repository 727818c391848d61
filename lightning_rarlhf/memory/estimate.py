"""Bytes per device of each phase of an iteration, from the run's settings and the models' configurations alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_rarlhf.cached_decoding.cached_decoder import CachedDecoder
from lightning_rarlhf.cached_decoding.fixed_cache import columns_for
from lightning_rarlhf.cached_decoding.kv_cache import room_for
from lightning_rarlhf.cached_decoding.twin import copies_bytes
from lightning_rarlhf.config import PolicyConfig, SamplingConfig
from lightning_rarlhf.data_types import PromptBatch, Samples
from lightning_rarlhf.loading.empty_policy import empty_policy
from lightning_rarlhf.loading.rehearsal import Allocations, rehearsed
from lightning_rarlhf.memory.networks import (
    empty_classifier,
    largest_block,
    trained_bytes,
    weight_bytes,
)
from lightning_rarlhf.policy import ActorCritic
from lightning_rarlhf.sampling import casting_once

_DRAW_BYTES = 4 + 4 + 8
"""per logit when a token is drawn: float32 logits and probabilities, float64 cumulative sum"""
_PROBE = 1 << 16  # weights of the parameter whose optimizer state is measured


@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """A classifier that scores texts."""

    pretrained: str
    revision: str | None = None
    dtype: str = "float32"
    quantized: bool = False
    batch_size: int = 64
    elsewhere: bool = False
    """on another device than the policy"""
    beside_sampling: bool = False
    """scores episodes while the next ones are sampled"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What of a run's settings decides its memory."""

    policy: PolicyConfig
    reference: PolicyConfig | None
    """a second network in memory, with the policy's frozen layers; None = the policy's own with its adapter off"""
    reward: RewardSettings | None
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    rows: int
    """B, prompts per iteration on one device"""
    update_rows: int
    """episodes per backward pass on one device"""
    prompt_tokens: int
    sampling: SamplingConfig
    autocast: bool = False
    """bf16-mixed"""
    processes: int = 1
    shards: bool = False
    """FSDP2"""
    on_gpu: bool = True
    most_sampled: int | None = None
    """episodes that are sampled at a time on one device, at most; None = all"""

    @property
    def divided_by(self) -> int:
        """Processes that a network's weights are divided among."""
        return self.processes if self.shards else 1

    @property
    def sampled_rows(self) -> int:
        """Episodes that are sampled at a time on one device."""
        return min(self.rows, self.most_sampled or self.rows)

    @property
    def reads_on(self) -> bool:
        """Whether old log-probabilities may read the responses over the prompts' keys and values, see `reading_on`."""
        bfloat16 = self.autocast or self.policy.dtype == "bfloat16"
        whole = self.on_gpu or self.policy.frozen_layers or self.most_sampled is not None
        return bfloat16 and not whole and self.reference is not None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes on one device (the policy's), by what holds them."""

    held: dict[str, int]
    """all the time"""
    phases: dict[str, dict[str, int]]
    """on top of that, while the phase runs"""

    def peak(self, phase: str) -> int:
        """Bytes at a phase's worst moment."""
        return sum(self.held.values()) + sum(self.phases[phase].values())

    @property
    def worst(self) -> tuple[str, int]:
        """The phase that needs most, and its bytes."""
        phase = max(self.phases, key=self.peak)
        return phase, self.peak(phase)


class _Passes(NamedTuple):
    """Bytes of an iteration's passes through the policy, above its weights."""

    evaluation: int
    """at most, for log-probabilities and values without gradients"""
    states: int
    """of what leaves the frozen layers, for all rows; 0 = no such layers"""
    cache: int
    """of keys and values when a part's responses are finished"""
    copies: int
    """of the weights in bfloat16, while sampling"""
    prompts: int
    """at most, for the pass over the prompts"""
    activations: int
    """that the backward pass begins with"""
    backward: int
    """at most, for the update"""


def estimate(run: Run) -> Estimate:
    """Rehearse an iteration of `run`.

    Raises:
        ModelError: a model whose configuration cannot be read.
    """
    actor = empty_policy(run.policy)
    held, whole = _weights(actor, run)
    passes = _passes(actor, run)
    comes_and_goes = {"key-value cache": passes.cache, "bfloat16 copies to sample from": passes.copies}
    if run.policy.compile_sampling:  # what its steps are compiled for stays where it is
        held |= comes_and_goes | {"bfloat16 copies to sample from": copies_bytes(actor) if run.autocast else 0}
        comes_and_goes = {}
    phases = {
        "sampling": whole | comes_and_goes | {"logits": max(_drawing(actor, run), passes.prompts)},
        "log-probabilities and values": whole | {"forward pass": passes.evaluation},
        "update": _update(actor, run, passes),
    }
    if run.reads_on and not run.policy.compile_sampling:
        phases["log-probabilities and values"]["key-value cache"] = passes.cache
    if passes.states:  # those of the kept episodes, all of them at risk level 1, are taken out of those of all
        both = ("frozen layers' states", "frozen layers' states of the kept")
        phases["the tail"] = dict.fromkeys(both, passes.states * run.processes)
    if run.reward is not None and not run.reward.elsewhere:
        held["reward model"], scoring = _reward(run, run.reward)
        phases["scoring"] = {"forward pass": scoring}
        if run.reward.beside_sampling and run.sampled_rows < run.rows:
            phases["sampling"] |= {"scoring beside it": scoring}
    return Estimate(held=held, phases=phases)


def _weights(actor: ActorCritic, run: Run) -> tuple[dict[str, int], dict[str, int]]:
    """What a device holds of the networks and the optimizer; and what it holds more where shards are made whole."""
    weights = weight_bytes(actor, run.policy.quantization)
    held = {
        "policy": weights // run.divided_by,
        "optimizer state": int(trained_bytes(actor) * _state_per_byte(run.optimizer)) // run.divided_by,
    }
    whole = {"policy made whole": weights} if run.shards else {}
    if run.reference is not None:
        reference = _reference(run.reference, shares=not run.shards)
        held["reference"] = reference // run.divided_by
        whole |= {"reference made whole": reference} if run.shards else {}
    return held, whole


def _passes(actor: ActorCritic, run: Run) -> _Passes:
    with rehearsed(actor.train()) as count, _autocast(run):
        with count() as evaluation, torch.no_grad():
            samples = _with_states(actor, _samples(run, run.rows))
            actor.statistics(samples, run.sampling)
        states = 0 if samples.frozen_states is None else _bytes_of(samples.frozen_states)
        del samples
        cache, copies, prompts = _prompt_pass(actor, run, count)
        with count() as update:
            samples = _with_states(actor, _samples(run, run.update_rows))
            parts = (samples.sequences, samples.attention_mask, samples.response_mask)
            output = actor(*parts, run.sampling, samples.frozen_states)
            loss = output.logprobs.sum() + output.values.sum()
            activations = update.now
            loss.backward()
            backward = update.peak
    return _Passes(evaluation.peak, states, cache, copies, prompts, activations, backward)


def _update(actor: ActorCritic, run: Run, passes: _Passes) -> dict[str, int]:
    """What the update holds, by what holds it."""
    trained, found = trained_bytes(actor), {}
    if run.shards:
        found["policy's largest block made whole"] = largest_block(actor)
    elif run.processes > 1:
        found["gradients in transit"] = trained
    if passes.states:
        found["frozen layers' states"] = passes.states * run.processes  # of all processes' rows
    step = trained if run.on_gpu else 0  # on GPUs torch's optimizers work on all weights at once
    most = max(passes.backward, trained // run.divided_by + step // run.divided_by)
    found["activations"] = passes.activations
    found["gradients and what the backward pass needs"] = most - passes.activations
    return found


def reward_bytes(run: Run) -> int:
    """Bytes that the reward model needs where it is."""
    if run.reward is None:
        return 0
    return sum(_reward(run, run.reward))


def _reward(run: Run, reward: RewardSettings) -> tuple[int, int]:
    model = empty_classifier(reward.pretrained, reward.revision, reward.dtype)
    weights = weight_bytes(model, "8bit" if reward.quantized else None)
    limit = getattr(model.config, "max_position_embeddings", None) or 10**9
    width = min(limit, run.prompt_tokens + run.sampling.max_new_tokens)  # its own tokenizer's count may differ
    with rehearsed(model) as count, count() as scoring, torch.no_grad():
        ids = torch.zeros(min(reward.batch_size, run.rows), width, dtype=torch.int64)
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return weights, scoring.peak


def _autocast(run: Run) -> torch.autocast:
    """As Lightning has it: a weight is cast at every use, and no copy is kept."""
    return torch.autocast("cpu", torch.bfloat16, enabled=run.autocast, cache_enabled=False)


def _prompt_pass(actor: ActorCritic, run: Run, count: Callable[[], Allocations]) -> tuple[int, int, int]:
    """Bytes of the key-value cache when a part's responses are finished, of the weights' copies, and those above."""
    with count() as opened, torch.no_grad():
        ids = torch.zeros(run.sampled_rows, run.prompt_tokens, dtype=torch.int64)
        decoder = CachedDecoder(actor)
        with casting_once(ids.device):
            logits = decoder.start(ids, torch.ones_like(ids, dtype=torch.bool))
            before = opened.now
        copies = before - opened.now  # they are gone now
        kept = opened.now - logits.untyped_storage().nbytes() - _bytes_of(ids)
    width = columns_for if run.policy.compile_sampling else room_for
    share = width(run.prompt_tokens + run.sampling.max_new_tokens) / room_for(run.prompt_tokens)
    cache = int(kept * share)
    if run.reads_on and share > 1 and not run.policy.compile_sampling:
        cache += kept  # the prompts' stay where they were when there was room for them only
    return cache, copies, max(0, opened.peak - copies - cache)


def _bytes_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def _drawing(actor: ActorCritic, run: Run) -> int:
    """Bytes that the next token's distribution takes, at the vocabulary's full width."""
    vocabulary = int(actor.lm.get_output_embeddings().weight.shape[0])
    element: torch.dtype = getattr(torch, run.policy.dtype)
    return run.sampled_rows * vocabulary * (_DRAW_BYTES + element.itemsize)


def _samples(run: Run, rows: int) -> Samples:
    width = run.sampling.max_new_tokens
    ids = torch.zeros(rows, run.prompt_tokens, dtype=torch.int64)
    batch = PromptBatch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        index=torch.zeros(rows, dtype=torch.int64),
        prompts=("",) * rows,
        labels=torch.zeros(rows, dtype=torch.int64),
        source_scores=torch.zeros(rows),
    )
    return Samples(
        batch=batch,
        sequences=torch.zeros(rows, run.prompt_tokens + width, dtype=torch.int64),
        response_mask=torch.ones(rows, width, dtype=torch.bool),
        responses=("",) * rows,
    )


def _with_states(actor: ActorCritic, samples: Samples) -> Samples:
    return replace(samples, frozen_states=actor.frozen_states(samples.sequences, samples.attention_mask))


def _reference(policy: PolicyConfig, *, shares: bool) -> int:
    """Bytes of the reference's weights, less those of frozen layers that are the policy's own."""
    network = empty_policy(policy).lm
    return trained_bytes(network) if policy.frozen_layers and shares else weight_bytes(network, policy.quantization)


def _state_per_byte(optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]) -> float:
    """Bytes of optimizer state per byte of float32 weights, measured on a small weight: any optimizer can be asked."""
    probe = nn.Parameter(torch.zeros(_PROBE))
    probe.grad = torch.zeros_like(probe)
    made = optimizer([probe])
    made.step()
    held = [value for state in made.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    size: int = sum(tensor.numel() * tensor.element_size() for tensor in held)
    return size / (4 * _PROBE)
