"""The PPO epochs over the kept episodes: lines 8 to 12 of Algorithm 1, without Lightning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from lightning_rarlhf.config import PPOConfig, SamplingConfig
from lightning_rarlhf.data_types import PPOBatch, PPOStats
from lightning_rarlhf.distributed import dealt, total
from lightning_rarlhf.functional.advantages import explained_variance
from lightning_rarlhf.functional.losses import clipped_surrogate, clipped_value_loss
from lightning_rarlhf.policy import ActorCritic


class Updater(Protocol):
    """Moves the weights: takes a minibatch's gradient part by part, then steps."""

    def add_gradient(self, loss: Tensor, *, last_part: bool) -> None:
        """Add the gradient of one part of a minibatch's loss on this process; parts and processes add up."""
        ...

    def step(self, *, last: bool) -> Tensor:
        """Step on what was added, and forget it; `last` = the iteration's last step.

        Returns:
            The gradient's global norm, a scalar.
        """
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

    `batch` and `generator` are the same on all processes; each takes its share of every minibatch.
    """
    totals = torch.zeros(6, dtype=torch.float64, device=batch.returns.device)
    for minibatch, last in _schedule(batch, config, generator):
        figures = _add_gradients(policy, minibatch, config, sampling, updater)
        grad_norm = updater.step(last=last)
        totals += torch.cat([figures, grad_norm.detach().double().view(1)]) * len(minibatch)
    means = (totals / (config.epochs * len(batch))).tolist()
    explained = explained_variance(batch.values, batch.returns, batch.response_mask)
    return PPOStats(**dict(zip(_FIGURES, means, strict=True)), explained_variance=explained.item())


def _add_gradients(
    policy: ActorCritic, minibatch: PPOBatch, config: PPOConfig, sampling: SamplingConfig, updater: Updater
) -> Tensor:
    """Gradient of one minibatch, in parts that fit into memory; f64 [5], its figures over all processes."""
    tokens = minibatch.response_mask.sum()
    figures = torch.zeros(5, dtype=torch.float64, device=tokens.device)
    parts = list(dealt(minibatch, config.micro_batch_size))
    for number, part in enumerate(parts, start=1):
        mask = part.response_mask
        logprobs, values = policy(part.sequences, part.attention_mask, mask, sampling)
        actor = clipped_surrogate(logprobs, part.logprobs, part.advantages, mask, config.cliprange, denominator=tokens)
        critic = clipped_value_loss(values, part.values, part.returns, mask, config.cliprange_value, denominator=tokens)
        updater.add_gradient(actor.loss + config.vf_coef * critic, last_part=number == len(parts))
        seen = (actor.loss, critic, actor.approx_kl, actor.clip_fraction, actor.ratio_mean)
        figures += torch.stack([figure.detach().double() for figure in seen])
    return total(figures)


_FIGURES = ("policy_loss", "value_loss", "approx_kl", "clip_fraction", "ratio_mean", "grad_norm")


def _schedule(batch: PPOBatch, config: PPOConfig, generator: torch.Generator) -> Iterator[tuple[PPOBatch, bool]]:
    """Every minibatch of every epoch, and whether it is the last of all."""
    per_epoch = -(-len(batch) // config.minibatch_size)
    for epoch in range(config.epochs):
        for number, minibatch in enumerate(batch.minibatches(config.minibatch_size, generator)):
            yield minibatch, epoch + 1 == config.epochs and number + 1 == per_epoch
