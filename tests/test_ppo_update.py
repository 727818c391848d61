from __future__ import annotations

from itertools import chain

import pytest
import torch

from lightning_rarlhf.config import PPOConfig, SamplingConfig
from lightning_rarlhf.policy import PolicyOutput
from lightning_rarlhf.ppo_update import run_ppo_epochs
from tests.test_data_types import ppo_batch


class Echo:
    """A policy that says again what the batch holds, so that every ratio is 1."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []

    def __call__(self, sequences, attention_mask, response_mask, sampling):
        self.rows.append(sequences[:, 0].tolist())
        numbers = sequences[:, :2].float()
        return PolicyOutput(numbers, numbers)


def run(config: PPOConfig):
    policy, steps = Echo(), []

    def step(loss: torch.Tensor, last: bool) -> torch.Tensor:
        steps.append((loss.item(), last))
        return torch.tensor(float(len(steps)))

    stats = run_ppo_epochs(policy, ppo_batch(), config, SamplingConfig(), torch.Generator().manual_seed(0), step)
    return stats, policy.rows, steps


def test_every_epoch_sees_every_row_and_only_the_last_step_is_last():
    _, rows, steps = run(PPOConfig(epochs=3, minibatch_size=2))
    assert len(rows) == len(steps) == 9
    for epoch in range(3):
        assert sorted(chain(*rows[3 * epoch : 3 * epoch + 3])) == [0, 1, 2, 3, 4]
    assert [last for _, last in steps] == [False] * 8 + [True]


def test_figures_are_means_weighted_by_episodes():
    stats, _, _ = run(PPOConfig(epochs=1, minibatch_size=3))
    assert stats.ratio_mean == 1
    assert stats.clip_fraction == stats.approx_kl == stats.value_loss == 0
    assert stats.policy_loss == pytest.approx(-2.0)  # minus the mean advantage of rows 0 to 4
    assert stats.grad_norm == pytest.approx((3 * 1 + 2 * 2) / 5)
    assert stats.explained_variance == 1


def test_the_critics_weight_reaches_the_loss():
    """Values one below the returns: ½·1² of critic loss, times vf_coef."""

    class Below(Echo):
        def __call__(self, *args):
            output = super().__call__(*args)
            return PolicyOutput(output.logprobs, output.values - 0.1)

    losses = []
    for weight in (0.0, 0.5):
        run_ppo_epochs(
            Below(),
            ppo_batch(),
            PPOConfig(epochs=1, vf_coef=weight),
            SamplingConfig(),
            torch.Generator(),
            lambda loss, last: losses.append(loss.item()) or torch.tensor(0.0),
        )
    assert losses[1] - losses[0] == pytest.approx(0.5 * 0.5 * 0.01, abs=1e-6)
