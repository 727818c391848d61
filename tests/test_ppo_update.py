from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest
import torch

from lightning_rarlhf import distributed, ppo_update
from lightning_rarlhf.config import PolicyConfig, PPOConfig, SamplingConfig
from lightning_rarlhf.data_types import PPOBatch
from lightning_rarlhf.errors import NumericalError
from lightning_rarlhf.loading.policy_loading import load_actor_critic
from lightning_rarlhf.loading.tokenizer import load_tokenizer
from lightning_rarlhf.policy import PolicyOutput
from lightning_rarlhf.ppo_update import rows_at_a_time, run_ppo_epochs
from tests.test_data_types import ppo_batch


class Echo:
    """A policy that says again what the batch holds, so that every ratio is 1."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []

    def __call__(self, sequences, attention_mask, response_mask, sampling, frozen_states=None):
        self.rows.append(sequences[:, 0].tolist())
        numbers = sequences[:, :2].float()
        return PolicyOutput(numbers, numbers)


class Recorder:
    """An updater that moves nothing: keeps each minibatch's loss, and says that gradient norms are 1, 2, 3, ..."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self._loss = 0.0
        self.parts: list[bool] = []
        self.steps: list[float] = []

    def forget(self) -> None:
        self.losses.append(self._loss)
        self._loss = 0.0

    def add_gradient(self, loss: torch.Tensor, *, last_part: bool) -> None:
        self._loss += loss.item()
        self.parts.append(last_part)

    def gradient_norm(self) -> torch.Tensor:
        return torch.tensor(len(self.losses) + 1.0)

    def step(self, norm: torch.Tensor) -> None:
        self.steps.append(norm.item())


def run(config: PPOConfig, policy: Echo | None = None, updater: Recorder | None = None):
    policy, updater = policy or Echo(), updater or Recorder()
    stats = run_ppo_epochs(policy, ppo_batch(), config, SamplingConfig(), torch.Generator().manual_seed(0), updater)
    return stats, policy.rows, updater


def test_every_epoch_sees_every_row_and_every_gradient_is_used():
    stats, rows, updater = run(PPOConfig(epochs=3, minibatch_size=2))
    assert len(rows) == 9
    for epoch in range(3):
        assert sorted(chain(*rows[3 * epoch : 3 * epoch + 3])) == [0, 1, 2, 3, 4]
    assert updater.steps == list(range(1, 10))
    assert (stats.optimizer_steps, stats.dropped_minibatches, stats.kl_stopped) == (9, 0, False)


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

    losses = [run(PPOConfig(epochs=1, vf_coef=weight), Below())[2].losses[0] for weight in (0.0, 0.5)]
    assert losses[1] - losses[0] == pytest.approx(0.5 * 0.5 * 0.01, abs=1e-6)


class Drifting(Echo):
    """Log-probabilities that rise by `by` a minibatch, as if each step had moved the policy that far."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def __call__(self, *args):
        drift = self.by * len(self.rows)
        logprobs, values = super().__call__(*args)
        return PolicyOutput(logprobs + drift, values)


def test_epochs_end_at_the_first_minibatch_beyond_the_target_kl():
    """½·(.3·n)² of minibatch n: 0, .045, .18, .405, ..."""
    stats, rows, updater = run(PPOConfig(epochs=3, minibatch_size=2, target_kl=0.2), Drifting(0.3))
    assert len(rows) == 4
    assert updater.steps == [1, 2, 3]  # the fourth gradient is not used
    assert (stats.optimizer_steps, stats.kl_stopped) == (3, True)
    assert 0.1 < stats.approx_kl < 0.2  # a mean over the minibatches that were seen


def test_a_minibatch_whose_ratio_spikes_is_dropped_and_the_next_one_is_not():
    class Spike(Echo):
        def __call__(self, *args):
            spike = 3.0 if len(self.rows) == 1 else 0.0
            logprobs, values = super().__call__(*args)
            return PolicyOutput(logprobs + spike, values)

    stats, rows, updater = run(PPOConfig(epochs=1, minibatch_size=2, max_ratio=20.0), Spike())  # e³ = 20.09
    assert len(rows) == 3
    assert updater.steps == [1, 3]
    assert (stats.optimizer_steps, stats.dropped_minibatches, stats.kl_stopped) == (2, 1, False)
    assert run(PPOConfig(epochs=1, minibatch_size=2, max_ratio=20.2), Spike())[2].steps == [1, 2, 3]
    assert run(PPOConfig(epochs=1, minibatch_size=2), Spike())[2].steps == [1, 2, 3]  # off by default


def test_a_minibatch_beyond_a_limit_is_thrown_away_also_if_its_ratio_is_infinite():
    class Runaway(Echo):
        def __call__(self, *args):
            logprobs, values = super().__call__(*args)
            return PolicyOutput(logprobs + (200.0 if len(self.rows) == 2 else 0.0), values)

    class WithGradient(Recorder):
        def gradient_norm(self):
            norm = super().gradient_norm()
            return norm * float("nan") if norm == 2 else norm

    def limited(**limit):
        return run(PPOConfig(epochs=1, minibatch_size=2, **limit), Runaway(), WithGradient())

    stats, _, updater = limited(max_ratio=20.0)
    assert (updater.steps, stats.dropped_minibatches) == ([1, 3], 1)
    stats, _, updater = limited(target_kl=100.0)
    assert (updater.steps, stats.kl_stopped) == ([1], True)
    with pytest.raises(NumericalError, match="not finite"):
        limited()


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_is_not_used_and_its_minibatch_is_the_evidence(where, broken):
    class Broken(Echo):
        def __call__(self, *args):
            logprobs, values = super().__call__(*args)
            return PolicyOutput(logprobs, values * broken if where == "loss" and len(self.rows) == 2 else values)

    class BrokenGradient(Recorder):
        def gradient_norm(self):
            norm = super().gradient_norm()
            return norm * broken if where == "gradient" and norm == 2 else norm

    policy, updater = Broken(), BrokenGradient()
    with pytest.raises(NumericalError, match=f"the {where} is not finite, nothing was updated with it") as caught:
        run(PPOConfig(epochs=1, minibatch_size=2), policy, updater)
    assert updater.steps == [1]
    assert caught.value.evidence["minibatch.sequences"][:, 0].tolist() == policy.rows[1]


def test_a_minibatch_is_cut_into_parts_that_add_up():
    whole, _, in_one = run(PPOConfig(epochs=2, minibatch_size=5))
    cut, rows, in_parts = run(PPOConfig(epochs=2, minibatch_size=5, micro_batch_size=2))
    assert [len(part) for part in rows] == [2, 2, 1] * 2
    assert in_parts.steps == [1, 2]
    assert in_parts.losses == pytest.approx(in_one.losses)
    assert vars(cut) == pytest.approx(vars(whole))


def test_the_shares_of_two_processes_add_up_to_the_figures_of_one(monkeypatch):
    """Each adds its own rows' part of loss and figures; what the guards look at is the sum."""
    config = PPOConfig(epochs=1, minibatch_size=5, max_ratio=1.3)  # e^.3 = 1.35 for the whole, half of it for a share
    one, _, alone = run(config, Above())
    assert one.dropped_minibatches == 1
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    shares, losses = [], []
    for rank in (0, 1, 0):  # the first two tell what they have; the third is given the sum, as by a collective
        summed = sum(shares) if len(shares) == 2 else None

        def total(own, summed=summed):
            shares.append(own)
            return own if summed is None else summed

        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(ppo_update, "total", total)
        together, rows, updater = run(config, Above())
        assert len(rows[0]) == (3, 2)[rank]
        losses.append(updater.losses[0])
    assert losses[0] + losses[1] == pytest.approx(alone.losses[0])
    assert vars(together) == pytest.approx(vars(one))


class Above(Echo):
    """Log-probabilities and values above those of the batch: every figure is other than 0."""

    def __call__(self, *args):
        logprobs, values = super().__call__(*args)
        return PolicyOutput(logprobs + 0.3, values + 0.1)


def test_on_a_cpu_a_pass_takes_as_many_rows_as_its_cache_does():
    assert rows_at_a_time(112, "cpu") == 18
    assert rows_at_a_time(5000, "cpu") == 1
    assert rows_at_a_time(112, "cuda") is None
    long = replace(
        ppo_batch(), sequences=torch.zeros(5, 600, dtype=torch.int64), attention_mask=torch.ones(5, 600).bool()
    )
    policy, updater = Echo(), Recorder()
    run_ppo_epochs(policy, long, PPOConfig(epochs=1), SamplingConfig(), torch.Generator(), updater)
    assert [len(part) for part in policy.rows] == [3, 2]
    assert updater.parts == [False, True]
    assert len(updater.steps) == 1


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
def test_accumulated_gradients_equal_those_of_one_large_batch(policy_folder, micro_batch_size):
    """In float64, with responses of 1 to 4 tokens."""
    tokenizer = load_tokenizer(str(policy_folder))
    actor = load_actor_critic(PolicyConfig(pretrained=str(policy_folder)), tokenizer).double()
    batch = uneven_batch()

    class Gradients(Recorder):
        def add_gradient(self, loss: torch.Tensor, *, last_part: bool) -> None:
            super().add_gradient(loss, last_part=last_part)
            loss.backward()

    def gradient(size: int | None) -> tuple[torch.Tensor, list[bool]]:
        actor.zero_grad()
        updater = Gradients()
        config = PPOConfig(epochs=1, micro_batch_size=size)
        run_ppo_epochs(actor, batch, config, SamplingConfig(), torch.Generator(), updater)
        return torch.cat([p.grad.flatten() for p in actor.parameters()]), updater.parts

    whole, parts = gradient(None)
    assert parts == [True]
    cut, parts = gradient(micro_batch_size)
    assert parts == [False] * (-(-5 // micro_batch_size) - 1) + [True]
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(cut, whole, atol=1e-6, rtol=1e-6)


def uneven_batch() -> PPOBatch:
    draw = torch.Generator().manual_seed(1)
    lengths = torch.tensor([4, 1, 2, 4, 3])
    mask = torch.arange(4) < lengths[:, None]
    numbers = {name: torch.randn(5, 4, generator=draw) for name in ("logprobs", "values", "advantages", "returns")}
    return PPOBatch(
        sequences=torch.randint(3, 17, (5, 7), generator=draw),
        attention_mask=torch.cat([torch.ones(5, 3, dtype=torch.bool), mask], dim=1),
        response_mask=mask,
        **{**numbers, "logprobs": numbers["logprobs"] - 3},
    )
