"""Quark: learn to write what each quantile of the scores looks like, then ask for the best one (Lu et al. 2022)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from lightning_rarlhf.base_modules.guarded_module import guarded
from lightning_rarlhf.base_modules.language_module import LanguageModule
from lightning_rarlhf.config import EvaluationConfig, GuardConfig, PolicyConfig, QuarkConfig, SamplingConfig
from lightning_rarlhf.data_types import PromptBatch, QuarkBatch, Samples
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.functional.masked import masked_mean
from lightning_rarlhf.functional.quark import quantile_numbers, response_terms
from lightning_rarlhf.policy import ActorCritic
from lightning_rarlhf.quark.batch import batch_of, rows_of_step, token_lists
from lightning_rarlhf.quark.policy import ConditionedDecoder, ConditionedPolicy, reward_tokens, with_reward_tokens
from lightning_rarlhf.quark.pool import QuarkPool
from lightning_rarlhf.reference import FrozenModel
from lightning_rarlhf.reward_models import RewardModel
from lightning_rarlhf.sampling import SamplingSeed, sample
from lightning_rarlhf.stepping.batch_parts import parts_of
from lightning_rarlhf.stepping.guards import judge_gradient
from lightning_rarlhf.stepping.manual_updater import ManualUpdater
from lightning_rarlhf.stepping.optimizing import with_linear_decay
from lightning_rarlhf.stepping.stopwatch import Stopwatch


class QuarkLosses(NamedTuple):
    """Means over a batch's response tokens; scalars."""

    loss: Tensor
    """nll + kl_coef · kl − entropy_coef · entropy"""
    nll: Tensor
    kl: Tensor
    entropy: Tensor


class QuarkModule(LanguageModule):
    """Language modelling of a growing pool of own responses, each behind the token of its score's quantile.

    An iteration samples one batch of prompts, adds the scored responses to the pool, sorts the pool into quantiles, and
    takes `quark.sample_interval` gradient steps on it.
    """

    actor: ConditionedPolicy

    def __init__(
        self,
        reward: RewardModel,
        policy: PolicyConfig = PolicyConfig(),
        reference: str | None = None,
        sampling: SamplingConfig = SamplingConfig(top_p=0.9),
        quark: QuarkConfig = QuarkConfig(),
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(parameters, lr=1e-5),
        evaluation: EvaluationConfig = EvaluationConfig(),
        guard: GuardConfig = GuardConfig(),
    ) -> None:
        """Remember the settings; nothing is loaded before the trainer asks for it.

        Args:
            reward: scores finished texts, higher = better.
            policy: the language model to train.
            reference: hub id[@revision] or folder of the model KL is measured against and that fills the pool at first;
                none = the policy as it starts.
            sampling: of validation, test and predict; its top-p does not hold for the pool.
            quark: the pool and the update.
            optimizer: any torch optimizer (authors: Adam at 1e-5); the learning rate warms up, then falls to 0.
            evaluation: validation, test and predict.
            guard: what happens when a number is not finite.

        Raises:
            UserError: the embeddings, of which the reward tokens need their own, are not to be trained.
        """
        super().__init__(policy, reference, reward, sampling, evaluation, optimizer, guard)
        if policy.trains_part or policy.quantization is not None:
            raise UserError(
                "QuarkModule trains the embeddings of its reward tokens with all other weights; leave policy.lora, "
                "policy.frozen_layers and policy.quantization out"
            )
        self.automatic_optimization = False
        self.quark = quark
        self._pool: QuarkPool | None = None
        self._pool_state: dict[str, int] | None = None
        self._trial_folder: TemporaryDirectory[str] | None = None

    @property
    def trained_network(self) -> torch.nn.Module:
        return cast("torch.nn.Module", self.actor.lm)

    def _load_actor(self) -> ActorCritic:
        if reward_tokens(self.tokenizer) and self.reference_name is None:
            raise UserError(
                f"{self.policy_config.pretrained} has reward tokens already, so it cannot be its own reference; name "
                "the model that it was trained from: --model.reference"
            )
        return with_reward_tokens(super()._load_actor(), self.tokenizer, self.quark.quantiles)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over the language model, its embeddings of the reward tokens included; warm-up and decay."""
        optimizer = super().configure_optimizers()
        assert isinstance(optimizer, torch.optim.Optimizer)
        return with_linear_decay(
            optimizer, self.trainer, warmup=self.quark.warmup, steps_per_batch=self.quark.sample_interval
        )

    # the pool

    def on_train_start(self) -> None:
        """Begin an empty pool, or go back to the one that the checkpoint knew.

        Raises:
            UserError: there are several processes, or the folder holds another run's pool.
        """
        super().on_train_start()
        if self.trainer.world_size > 1:
            raise UserError(
                f"QuarkModule keeps one pool, so it runs in one process; got {self.trainer.world_size}: "
                "give --trainer.devices 1"
            )
        if getattr(self.trainer, "fast_dev_run", False):  # a trial leaves the run's own pool alone
            self._trial_folder = TemporaryDirectory(prefix="quark_pool-")
            self._pool = QuarkPool(Path(self._trial_folder.name))
            self._pool.start()
            return
        self._pool = QuarkPool(Path(self.quark.pool or self._run_folder / "quark_pool"))
        if self._pool_state is None:
            self._pool.start(replace=self._owns_pool())
        else:
            self._pool.resume(self._pool_state)
            rank_zero_info(f"pool: goes on with {len(self._pool)} responses in {self._pool.folder}")

    def _owns_pool(self) -> bool:
        """Whether what is in the pool's folder can only be left of this run, ended before its first checkpoint."""
        checkpoints = [self._run_folder, self._run_folder / "checkpoints"]
        named = (getattr(callback, "dirpath", None) for callback in self.trainer.checkpoint_callbacks)
        checkpoints += [Path(folder) for folder in named if folder]
        return self.quark.pool is None and not any(any(folder.glob("*.ckpt")) for folder in checkpoints)

    def teardown(self, stage: str) -> None:
        """Remove a trial's pool."""
        super().teardown(stage)
        if self._trial_folder is not None:
            self._trial_folder.cleanup()
            self._trial_folder = None

    @property
    def pool(self) -> QuarkPool:
        """The responses so far; there is one once the fit has started."""
        assert self._pool is not None
        return self._pool

    # one iteration

    @guarded
    def training_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, Any]:
        """Explore, sort, learn; returns the batch's scores and the mean losses."""
        clock, iteration = Stopwatch(self.device), self.trainer.global_step
        prompts, explore = parts_of(batch, self.quark.batch_size), partial(self.explore, iteration=iteration)
        with self.in_parts(prompts, explore) as ahead:
            with self.agreeing(), clock("rollout"):
                parts = ahead.samples()
            with self.agreeing(), clock("score"):
                scores = ahead.scores()
        self._remember(parts, scores)
        with clock("update"):
            losses = self._learn(iteration)
        self._log_iteration(scores, losses, parts, clock.seconds)
        return {"scores": scores, "losses": losses}

    def explore(self, batch: PromptBatch, iteration: int) -> Samples:
        """One response a prompt: of the reference in the first iterations, later of the policy at its best token."""
        seed = SamplingSeed(base=self._run_seed, iteration=iteration)
        sampling = replace(self.sampling, top_p=self.quark.exploration_top_p)
        if iteration >= self.quark.initial_iterations:
            return self._sample(batch, sampling, seed)
        assert isinstance(self.reference, FrozenModel)
        decoder = self.decoder_of(self.reference.model)
        return sample(decoder, batch, sampling, seed, self.tokenizer, self.actor.eos_token_ids)

    def generate(self, batch: PromptBatch, seed: SamplingSeed) -> Samples:
        """Draw one response a prompt at the best reward token; prompts, samples and scores never show the token."""
        return self._sample(batch, self.sampling, seed)

    def _sample(self, batch: PromptBatch, sampling: SamplingConfig, seed: SamplingSeed) -> Samples:
        decoder = ConditionedDecoder(self.decoder_of(self.actor), self.actor.best(len(batch)))
        return sample(decoder, batch, sampling, seed, self.tokenizer, self.actor.eos_token_ids)

    def _remember(self, parts: list[Samples], scores: Tensor) -> None:
        lists = [token_lists(samples) for samples in parts]
        prompts = [row for prompts, _ in lists for row in prompts]
        responses = [row for _, responses in lists for row in responses]
        self.pool.append(prompts, responses, scores.tolist())

    def _learn(self, iteration: int) -> QuarkLosses:
        """Gradient steps on the whole pool, sorted anew; returns the mean of their losses."""
        quantiles = quantile_numbers(self.pool.scores, self.quark.quantiles)
        steps, updater = self.quark.sample_interval, ManualUpdater(self, self.actor.lm, self.quark.max_grad_norm)
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
        means = []
        for step in range(steps):
            rows = rows_of_step(len(self.pool), step, self.quark.batch_size, (self._run_seed, iteration))
            batch = batch_of(self.pool, rows, quantiles, int(self.tokenizer.pad_token_id)).to(self.device)
            losses = self.losses(batch)
            updater.forget()
            updater.add_gradient(losses.loss, last_part=True)
            norm = updater.gradient_norm()
            judge_gradient(norm)
            updater.step(norm)
            scheduler.step()
            means.append(torch.stack([value.detach() for value in losses]))
        return QuarkLosses(*torch.stack(means).mean(dim=0))

    def losses(self, batch: QuarkBatch) -> QuarkLosses:
        """NLL + kl_coef · KL(π(·|token) ‖ π_ref) − entropy_coef · H, means over the response tokens."""
        assert isinstance(self.reference, FrozenModel)
        width = batch.response_mask.shape[1]
        tokens = self.actor.tokens[batch.quantiles]
        hidden = self.actor.trunk_told(batch.sequences, batch.attention_mask, tokens)[:, -width - 1 : -1]
        reference = self.reference.model
        with torch.no_grad():
            ref_hidden = reference.before_responses(batch.sequences, batch.attention_mask, width)
        terms = response_terms(hidden, ref_hidden, batch.sequences[:, -width:], self.actor.head, reference.head)
        nll, kl, entropy = (masked_mean(term, batch.response_mask) for term in terms)
        return QuarkLosses(nll + self.quark.kl_coef * kl - self.quark.entropy_coef * entropy, nll, kl, entropy)

    @property
    def _run_seed(self) -> int:
        assert self.seed is not None
        return self.seed

    def _log_iteration(
        self, scores: Tensor, losses: QuarkLosses, parts: list[Samples], seconds: dict[str, float]
    ) -> None:
        numbers = quantile_numbers(self.pool.scores, self.quark.quantiles)
        best = numbers == numbers.max()  # the last quantile, but for a pool that is smaller than their number
        lengths = torch.cat([samples.lengths for samples in parts])
        curves = {
            "objective/score_mean": scores.mean(),
            "objective/score_std": scores.std(),
            "quark/pool_size": float(len(self.pool)),
            "quark/best_quantile_from": float(self.pool.scores[best].min()),
            "tokens/response_length_mean": lengths.float().mean(),
            **{f"quark/{name}": value for name, value in losses._asdict().items()},
            **{f"time/{name}": value for name, value in seconds.items()},
        }
        self.log_dict(curves, on_step=True, batch_size=len(scores))
        shown = {"score": scores.mean(), "loss": losses.loss, "KL": losses.kl}
        self.log_dict(shown, on_step=True, prog_bar=True, logger=False, batch_size=len(scores))

    # checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the pool's length; the pool itself stays where it is."""
        super().on_save_checkpoint(checkpoint)
        if self._pool is not None:
            checkpoint["quark_pool"] = self._pool.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._pool_state = checkpoint.get("quark_pool")
