"""The PPO epochs over the kept episodes: lines 8 to 12 of Algorithm 1, without Lightning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from lightning_rarlhf.config import PPOConfig, SamplingConfig
from lightning_rarlhf.data_types import PPOBatch, PPOStats
from lightning_rarlhf.distributed import dealt, total
from lightning_rarlhf.errors import NumericalError
from lightning_rarlhf.functional.advantages import explained_variance
from lightning_rarlhf.functional.losses import clipped_surrogate, clipped_value_loss
from lightning_rarlhf.policy import ActorCritic
from lightning_rarlhf.stepping.guards import Verdict, judge


class Updater(Protocol):
    """Moves the weights: takes a minibatch's gradient part by part, then steps on it, or forgets it."""

    def add_gradient(self, loss: Tensor, *, last_part: bool) -> None:
        """Add the gradient of one part of a minibatch's loss on this process; parts and processes add up."""
        ...

    def gradient_norm(self) -> Tensor:
        """Global norm of what was added, a scalar, the same on all processes."""
        ...

    def step(self, norm: Tensor) -> None:
        """Clip what was added, whose norm is `norm`, and step on it."""
        ...

    def forget(self) -> None:
        """Begin anew with no gradient."""
        ...


def run_ppo_epochs(
    policy: ActorCritic,
    batch: PPOBatch,
    config: PPOConfig,
    sampling: SamplingConfig,
    generator: torch.Generator,
    updater: Updater,
) -> PPOStats:
    """K epochs of minibatches over the kept rows: loss = clipped surrogate + c_v · clipped value loss.

    `batch` and `generator` are the same on all processes; each takes its share of every minibatch. The guards look at
    figures of all processes, so these decide alike.

    Raises:
        NumericalError: a loss or a gradient is not finite. No weight was moved by it; its minibatch is the evidence.
    """
    totals = torch.zeros(len(_FIGURES), dtype=torch.float64)
    verdicts: Counter[Verdict] = Counter()
    rows = 0
    for minibatch in _schedule(batch, config, generator):
        figures = _add_gradients(policy, minibatch, config, sampling, updater)
        grad_norm = updater.gradient_norm()
        seen = torch.cat([figures, grad_norm.detach().double().view(1)]).cpu()  # the one wait for the device
        try:
            verdict = judge(dict(zip(_FIGURES, seen.tolist(), strict=True)), config)
        except NumericalError as error:
            rows_seen = vars(minibatch).items()
            # the frozen layers' states are large, and are found again from the sequences
            error.evidence |= {f"minibatch.{name}": value for name, value in rows_seen if name != "frozen_states"}
            raise
        if verdict is Verdict.STEP:
            updater.step(grad_norm)
        updater.forget()
        verdicts[verdict] += 1
        totals += seen * len(minibatch)
        rows += len(minibatch)
        if verdict is Verdict.STOP:
            break
    explained = explained_variance(batch.values, batch.returns, batch.response_mask)
    return PPOStats(
        **dict(zip(_FIGURES, (totals / rows).tolist(), strict=True)),
        explained_variance=explained.item(),
        optimizer_steps=verdicts[Verdict.STEP],
        dropped_minibatches=verdicts[Verdict.DROP],
        kl_stopped=bool(verdicts[Verdict.STOP]),
    )


def _add_gradients(
    policy: ActorCritic, minibatch: PPOBatch, config: PPOConfig, sampling: SamplingConfig, updater: Updater
) -> Tensor:
    """Gradient of one minibatch, in parts that fit into memory; f64 [5], its figures over all processes."""
    tokens = minibatch.response_mask.sum()
    figures = torch.zeros(5, dtype=torch.float64, device=tokens.device)
    size = config.micro_batch_size or rows_at_a_time(minibatch.sequences.shape[1], minibatch.sequences.device.type)
    parts = list(dealt(minibatch, size))
    for number, part in enumerate(parts, start=1):
        mask = part.response_mask
        logprobs, values = policy(part.sequences, part.attention_mask, mask, sampling, part.frozen_states)
        actor = clipped_surrogate(logprobs, part.logprobs, part.advantages, mask, config.cliprange, denominator=tokens)
        critic = clipped_value_loss(values, part.values, part.returns, mask, config.cliprange_value, denominator=tokens)
        updater.add_gradient(actor.loss + config.vf_coef * critic, last_part=number == len(parts))
        seen = (actor.loss, critic, actor.approx_kl, actor.clip_fraction, actor.ratio_mean)
        figures += torch.stack([figure.detach().double() for figure in seen])
    return total(figures)


def rows_at_a_time(width: int, device: str) -> int | None:
    """Rows of `width` tokens in one pass where the user names no number; None = all, as an accelerator wants them.

    On a CPU the activations of some 2,000 tokens stay in its cache from one operation to the next.
    """
    return max(1, _CACHED_TOKENS // width) if device == "cpu" else None


_CACHED_TOKENS = 2048

_FIGURES = ("policy_loss", "value_loss", "approx_kl", "clip_fraction", "ratio_mean", "grad_norm")


def _schedule(batch: PPOBatch, config: PPOConfig, generator: torch.Generator) -> Iterator[PPOBatch]:
    """Every minibatch of every epoch."""
    for _ in range(config.epochs):
        yield from batch.minibatches(config.minibatch_size, generator)
