"""From prompts to the tail that PPO learns from: lines 1 to 7 of the paper's Algorithm 1, without Lightning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lightning_rarlhf.config import PPOConfig, SamplingConfig
from lightning_rarlhf.data_types import PPOBatch, PromptBatch, Rollout, Samples, TailReport
from lightning_rarlhf.errors import RewardError, first_few
from lightning_rarlhf.functional.advantages import episode_returns, gae, token_rewards
from lightning_rarlhf.functional.masked import masked_whiten
from lightning_rarlhf.functional.risk import tail_rows, tail_size, value_at_risk
from lightning_rarlhf.policy import ActorCritic
from lightning_rarlhf.reference import Reference
from lightning_rarlhf.reward_models import RewardModel

Sampler = Callable[[PromptBatch], Samples]
"""Draws one response a prompt; bound to policy, sampling settings and seed."""


def score(reward: RewardModel, samples: Samples) -> Tensor:
    """f32 [B], the reward of each finished text, on the samples' device.

    Raises:
        RewardError: the reward did not return one finite score per response; names the prompts where it knows them.
    """
    try:
        scores = reward(samples.batch.prompts, samples.responses)
    except RewardError as error:
        if not error.rows:
            raise
        prompts = first_few(samples.batch.index[list(error.rows)].tolist())
        raise type(error)(f"{error}; their prompts in the data: {prompts}", rows=error.rows) from error
    if tuple(scores.shape) != (len(samples),):
        raise RewardError(
            f"reward {type(reward).__name__}: returned shape {list(scores.shape)}, expected [{len(samples)}]"
        )
    return scores.to(samples.sequences.device)


def evaluate_samples(
    policy: ActorCritic, reference: Reference, samples: Samples, scores: Tensor, sampling: SamplingConfig
) -> Rollout:
    """Add what policy, critic and reference say of the samples (steps 4 and 5 of the iteration)."""
    logprobs, values, entropy = policy.statistics(samples, sampling)
    return Rollout(
        samples=replace(samples, hidden=None, logprobs=None, entropy=None),
        scores=scores,
        logprobs=logprobs,
        ref_logprobs=reference.response_logprobs(samples, sampling),
        values=values,
        entropy=entropy,
    )


def prepare_ppo_batch(
    rollout: Rollout, *, risk_level: float, kl_coef: float, config: PPOConfig
) -> tuple[PPOBatch, Tensor, TailReport]:
    """Token rewards (Eq. 5), GAE, the tail of ⌈α′B⌉ episodes (Eqs. 8-10), whitening over the kept tokens.

    Returns:
        The kept episodes; their row numbers in the rollout, i64 [k]; what the risk measure saw.
    """
    mask = rollout.response_mask
    rewards = token_rewards(rollout.scores, rollout.logprobs, rollout.ref_logprobs, mask, kl_coef)
    advantages, returns = gae(rewards, rollout.values, mask, config.gamma, config.lam)
    statistic = ranking_statistic(rollout, rewards, returns, config)
    kept = tail_rows(statistic, tail_size(len(rollout), risk_level), ties=config.ties)
    states = rollout.samples.frozen_states
    kept_advantages = advantages[kept]
    if config.whiten_advantages:
        kept_advantages = masked_whiten(kept_advantages, mask[kept])
    batch = PPOBatch(
        sequences=rollout.samples.sequences[kept],
        attention_mask=rollout.samples.attention_mask[kept],
        response_mask=mask[kept],
        logprobs=rollout.logprobs[kept],
        values=rollout.values[kept],
        advantages=kept_advantages,
        returns=returns[kept],
        frozen_states=None if states is None else states[kept],
    )
    report = _report(rollout, statistic, kept, risk_level, episode_returns(rewards, mask, config.gamma))
    return batch, kept, report


def ranking_statistic(rollout: Rollout, rewards: Tensor, returns: Tensor, config: PPOConfig) -> Tensor:
    """f32 [B], the number by which episodes are ranked, lowest = worst (docs/method.md, section 2).

    Args:
        rollout: the episodes.
        rewards: f32 [B, T], KL-penalised token rewards.
        returns: f32 [B, T], λ-returns.
        config: `rank_by` chooses the return R = Σ γ^t r̄_t (paper), the λ-return at the first response token (authors'
            code), or the score.
    """
    if config.rank_by == "return":
        return episode_returns(rewards, rollout.response_mask, config.gamma)
    if config.rank_by == "lambda_return":
        return returns[:, 0]
    return rollout.scores


def _report(rollout: Rollout, statistic: Tensor, kept: Tensor, risk_level: float, episode_return: Tensor) -> TailReport:
    means = (statistic[kept].mean(), rollout.scores[kept].mean(), rollout.kl[kept].mean(), episode_return.mean())
    # one transfer for all the numbers: each would otherwise wait for the device by itself
    var, cvar, score_mean, kl_mean, return_mean = torch.stack([value_at_risk(statistic, risk_level), *means]).tolist()
    return TailReport(
        tail_size=len(kept), var=var, cvar=cvar, score_mean=score_mean, kl_mean=kl_mean, return_mean=return_mean
    )
