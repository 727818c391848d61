"""Risk-averse RLHF: each iteration learns from the worst α′ share of its episodes (paper, Algorithm 1).

At risk level 1, which is where it stays without the `RiskSchedule` callback, this is plain RLHF.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_rarlhf.base_modules.guarded_module import guarded
from lightning_rarlhf.base_modules.language_module import LanguageModule
from lightning_rarlhf.cached_decoding.reading_on import read_on, reads_on, rounds_alike
from lightning_rarlhf.config import EvaluationConfig, GuardConfig, KLConfig, PolicyConfig, PPOConfig, SamplingConfig
from lightning_rarlhf.data_types import PPOBatch, PPOStats, PromptBatch, Rollout, Samples, TailReport
from lightning_rarlhf.distributed import gather_rollout
from lightning_rarlhf.functional.masked import masked_mean
from lightning_rarlhf.kl_control import KLController, build_kl_controller, observed_kl, require_horizon
from lightning_rarlhf.loading.lora import WithoutAdapter
from lightning_rarlhf.ppo_update import run_ppo_epochs
from lightning_rarlhf.reward_models import RewardModel
from lightning_rarlhf.rollout import evaluate_samples, prepare_ppo_batch
from lightning_rarlhf.sampling import SamplingSeed, sample
from lightning_rarlhf.stepping.batch_parts import joined, parts_of
from lightning_rarlhf.stepping.guards import require_finite
from lightning_rarlhf.stepping.manual_updater import ManualUpdater
from lightning_rarlhf.stepping.stopwatch import Stopwatch
from lightning_rarlhf.trainer.sharding import unsharded

_GUARDS = ("dropped_minibatches", "kl_stopped")
"""figures of `PPOStats` that only a guard can change"""

_PROGRESS_BAR = {
    "score": "objective/score_mean",
    "tail": "risk/tail_score_mean",
    "KL": "objective/kl",
    "α′": "risk/level",
}


class RiskAversePPOModule(LanguageModule):
    """PPO on the tail of each batch of episodes.

    Attributes:
        risk_level: α′ of the next iteration, in (0, 1]; the `RiskSchedule` callback sets it.
    """

    def __init__(
        self,
        reward: RewardModel,
        policy: PolicyConfig = PolicyConfig(),
        reference: str | None = None,
        sampling: SamplingConfig = SamplingConfig(),
        ppo: PPOConfig = PPOConfig(),
        kl: KLConfig = KLConfig(),
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(parameters, lr=1.41e-5, fused=True),
        evaluation: EvaluationConfig = EvaluationConfig(),
        guard: GuardConfig = GuardConfig(),
    ) -> None:
        """Remember the settings; nothing is loaded before the trainer asks for it.

        Args:
            reward: scores finished texts, higher = better.
            policy: the language model to train.
            reference: hub id[@revision] or folder of the model KL is measured against; none = the policy as it starts.
            sampling: the distribution that responses are drawn from.
            ppo: the update.
            kl: the KL penalty's coefficient and its controller.
            optimizer: any torch optimizer (paper: Adam at a constant 1.41e-5).
            evaluation: validation, test and predict.
            guard: what happens when a number is not finite.
        """
        super().__init__(policy, reference, reward, sampling, evaluation, optimizer, guard)
        self.automatic_optimization = False
        self.ppo = ppo
        self.kl = kl
        self.risk_level = 1.0

    @cached_property
    def kl_controller(self) -> KLController:
        """Holds β; made when it is first asked for, as only `fit` reads its settings."""
        return build_kl_controller(self.kl)

    def require_fit(self) -> None:
        """Refuse a KL controller that could never move."""
        super().require_fit()
        build_kl_controller(self.kl)

    def on_train_start(self) -> None:
        """Refuse also a KL controller that cannot work with batches of this size, where the data tell it."""
        super().on_train_start()
        batch_size = getattr(getattr(self.trainer, "datamodule", None), "batch_size", None)
        if isinstance(batch_size, int):
            require_horizon(self.kl, batch_size)

    @guarded
    def training_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, Any]:
        """One iteration of Algorithm 1; returns the rollout, the kept rows and the update's figures for callbacks."""
        clock = Stopwatch(self.device)
        rollout = self.roll_out(batch, clock)
        require_finite(rollout)
        with clock("update"):
            kl_coef = self.kl_controller.value
            tail, kept, report = prepare_ppo_batch(
                rollout, risk_level=self.risk_level, kl_coef=kl_coef, config=self.ppo
            )
            rollout = rollout.without_frozen_states()
            stats = self.update(tail)
            self.kl_controller.update(observed_kl(rollout.kl, kept, self.kl.observe), len(rollout))
        self.log_iteration(rollout, report, stats, kl_coef, clock.seconds)
        return {"rollout": rollout, "kept": kept, "stats": stats}

    @property
    def trains_critic(self) -> bool:
        return True

    def roll_out(self, batch: PromptBatch, clock: Stopwatch) -> Rollout:
        """Sample and score this process's prompts; the episodes of all processes."""
        assert self.reference is not None
        parts = parts_of(batch, self.ppo.micro_rollout_batch_size)
        draw = partial(self.draw, seed=SamplingSeed(base=self.run_seed, iteration=self.iteration))
        with unsharded(self.actor), self.in_parts(parts, draw) as ahead:
            with self.agreeing(), clock("rollout"):
                samples = joined(batch, ahead.samples(), self.tokenizer.pad_token_id)
            with self.agreeing(), clock("score"):
                scores = ahead.scores()
            with clock("rollout"):
                own = evaluate_samples(self.actor, self.reference, samples, scores, self.sampling)
        rollout = gather_rollout(own, self.tokenizer.pad_token_id)
        self.rollout = rollout.without_frozen_states()
        return rollout

    def draw(self, batch: PromptBatch, seed: SamplingSeed) -> Samples:
        """Draw one response a prompt, and keep what old log-probabilities come of at less than a full forward pass."""
        # a reference on the actor's own trunk makes a full pass: old log-probabilities by the same pass differ by 0
        apart = not isinstance(self.reference, WithoutAdapter)
        exact = apart and self.actor.samples_exactly
        # parts are read together afterwards, at the widest one's width
        in_parts = self.ppo.micro_rollout_batch_size is not None
        over_prompts = apart and not exact and not in_parts and reads_on(self.actor)
        decoder = self.decoder_of(self.actor, keep_hidden=exact, keep_prompts=over_prompts)
        ends = self.actor.eos_token_ids
        samples = sample(decoder, batch, self.sampling, seed, self.tokenizer, ends, keep_logprobs=exact)
        sequences, mask, width = samples.sequences, samples.attention_mask, samples.response_mask.shape[1]
        prompts = decoder.prompts() if over_prompts else None
        if prompts is not None and rounds_alike(prompts, mask, width):
            hidden: Tensor | None = read_on(self.actor, prompts, sequences, mask, width)
        else:
            hidden = decoder.hidden(width)
        return replace(samples, hidden=hidden, frozen_states=self.actor.frozen_states(sequences, mask))

    @property
    def iteration(self) -> int:
        """0-based number of this iteration; the trainer's `global_step` counts iterations, see `guarded`."""
        return self.trainer.global_step

    @property
    def run_seed(self) -> int:
        """Of the rollouts' random numbers and the minibatches' order."""
        assert self.seed is not None
        return self.seed

    def update(self, tail: PPOBatch) -> PPOStats:
        """PPO epochs of actor and critic on the kept episodes."""
        order = torch.Generator().manual_seed((self.run_seed * 1_000_003 + self.iteration) % 2**63)
        updater = ManualUpdater(self, self.actor, self.ppo.max_grad_norm)
        return run_ppo_epochs(self.actor, tail, self.ppo, self.sampling, order, updater)

    def log_iteration(
        self, rollout: Rollout, tail: TailReport, stats: PPOStats, kl_coef: float, seconds: dict[str, float]
    ) -> None:
        """Write the iteration's curves; the x-axis counts iterations."""
        curves = {
            "objective/score_mean": rollout.scores.mean(),
            "objective/kl": rollout.kl.mean(),
            "risk/level": self.risk_level,
            "risk/tail_score_mean": tail.score_mean,
            "objective/score_std": rollout.scores.std(),
            "objective/return_mean": tail.return_mean,
            "objective/kl_coef": kl_coef,
            "objective/entropy": masked_mean(rollout.entropy, rollout.response_mask),
            "risk/tail_size": float(tail.tail_size),
            "risk/var": tail.var,
            "risk/cvar": tail.cvar,
            "risk/tail_kl_mean": tail.kl_mean,
            "tokens/response_length_mean": rollout.samples.lengths.float().mean(),
            **{f"ppo/{name}": value for name, value in vars(stats).items() if name not in _GUARDS},
            **{f"guard/{name}": float(getattr(stats, name)) for name in self._guards_in_use},
            **{f"time/{name}": value for name, value in seconds.items()},
        }
        self.log_dict(curves, on_step=True, batch_size=len(rollout))
        shown = {name: float(curves[key]) for name, key in _PROGRESS_BAR.items()}
        self.log_dict(shown, on_step=True, prog_bar=True, logger=False, batch_size=len(rollout))

    @property
    def _guards_in_use(self) -> list[str]:
        limits = (self.ppo.max_ratio, self.ppo.target_kl)
        return [name for name, limit in zip(_GUARDS, limits, strict=True) if limit is not None]

    def crash_facts(self) -> dict[str, Any]:
        return {"seed": self.seed, "risk_level": self.risk_level, "kl_coef": self.kl_controller.value}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the controller's state as Python floats: a buffer would be rounded under bf16-true."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["kl_controller"] = self.kl_controller.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.trainer.state.fn == "fit":
            self.kl_controller.load_state_dict(checkpoint["kl_controller"])
            rank_zero_info(f"KL coefficient: the run goes on at {self.kl_controller.value:.4g}")
