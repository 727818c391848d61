"""The PPO epochs over the kept episodes: lines 8 to 12 of Algorithm 1, without Lightning."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lightning_rarlhf.config import PPOConfig, SamplingConfig
from lightning_rarlhf.data_types import PPOBatch, PPOStats
from lightning_rarlhf.functional.advantages import explained_variance
from lightning_rarlhf.functional.losses import clipped_surrogate, clipped_value_loss
from lightning_rarlhf.policy import ActorCritic

Step = Callable[[Tensor, bool], Tensor]
"""Takes a minibatch's loss and whether it is the iteration's last; steps the optimizer; returns the gradient's norm."""


def run_ppo_epochs(
    policy: ActorCritic,
    batch: PPOBatch,
    config: PPOConfig,
    sampling: SamplingConfig,
    generator: torch.Generator,
    step: Step,
) -> PPOStats:
    """K epochs of minibatches over the kept rows: loss = clipped surrogate + c_v · clipped value loss."""
    totals = torch.zeros(6, dtype=torch.float64, device=batch.returns.device)
    for minibatch, last in _schedule(batch, config, generator):
        mask = minibatch.response_mask
        logprobs, values = policy(minibatch.sequences, minibatch.attention_mask, mask, sampling)
        actor = clipped_surrogate(logprobs, minibatch.logprobs, minibatch.advantages, mask, config.cliprange)
        critic = clipped_value_loss(values, minibatch.values, minibatch.returns, mask, config.cliprange_value)
        grad_norm = step(actor.loss + config.vf_coef * critic, last)
        figures = (actor.loss, critic, actor.approx_kl, actor.clip_fraction, actor.ratio_mean, grad_norm)
        totals += torch.stack([figure.detach().double() for figure in figures]) * len(minibatch)
    means = (totals / (config.epochs * len(batch))).tolist()
    explained = explained_variance(batch.values, batch.returns, batch.response_mask)
    return PPOStats(**dict(zip(_FIGURES, means, strict=True)), explained_variance=explained.item())


_FIGURES = ("policy_loss", "value_loss", "approx_kl", "clip_fraction", "ratio_mean", "grad_norm")


def _schedule(batch: PPOBatch, config: PPOConfig, generator: torch.Generator) -> Iterator[tuple[PPOBatch, bool]]:
    """Every minibatch of every epoch, and whether it is the last of all."""
    per_epoch = -(-len(batch) // config.minibatch_size)
    for epoch in range(config.epochs):
        for number, minibatch in enumerate(batch.minibatches(config.minibatch_size, generator)):
            yield minibatch, epoch + 1 == config.epochs and number + 1 == per_epoch
