"""What every trained method shares: a policy, its reference and reward, and the same validation, test and predict."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from lightning_rarlhf.config import EvaluationConfig, PolicyConfig, SamplingConfig
from lightning_rarlhf.data_types import PromptBatch, Samples
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.evaluation import GENERATIONS, PREDICTIONS, GenerationWriter, report
from lightning_rarlhf.metrics import ScoreSummary
from lightning_rarlhf.policy import (
    ActorCritic,
    FrozenModel,
    LanguageModel,
    end_of_text_ids,
    load_actor_critic,
    load_causal_lm,
)
from lightning_rarlhf.reward_models import RewardModel
from lightning_rarlhf.rollout import score
from lightning_rarlhf.sampling import CachedDecoder, SamplingSeed, require_room, sample
from lightning_rarlhf.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch.optim import Optimizer


class LanguageModule(pl.LightningModule):
    """Base of the trained methods; evaluates any policy by generating, scoring and comparing with the reference.

    Attributes:
        actor: the network that is trained; built by `configure_model`.
        reference: the frozen network that KL is measured against, out of checkpoints and optimizers.
        tokenizer: the policy's.
        config_text: YAML of the run's full configuration, set by the command line; result files carry its hash.
    """

    actor: ActorCritic
    reference: FrozenModel | None
    tokenizer: Any

    def __init__(
        self,
        policy: PolicyConfig,
        reference: str | None,
        reward: RewardModel | None,
        sampling: SamplingConfig,
        evaluation: EvaluationConfig,
        optimizer: Callable[[Iterable[torch.nn.Parameter]], Optimizer],
    ) -> None:
        super().__init__()
        self.policy_config = policy
        self.reference_name = reference
        self.reward = reward
        self.sampling = sampling
        self.evaluation = evaluation
        self.make_optimizer = optimizer
        self.config_text = ""
        self.reference = None
        self.seed: int | None = None
        self._built = False
        self._writer: GenerationWriter | None = None

    # construction

    def setup(self, stage: str) -> None:
        """Load what is frozen, on this process's device; choose the seed of all sampling."""
        _require_precision(str(self.trainer.precision))
        if self.seed is None:
            self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        if stage == "fit" and not self.trains_with_reward:
            return
        if stage in ("test", "predict") and self.trainer.world_size > 1:
            raise UserError(
                f"{stage} writes its files from one process, got {self.trainer.world_size}; give --trainer.devices 1"
            )
        device = self.trainer.strategy.root_device
        if self.reward is None:
            raise UserError(f"{type(self).__name__}: {stage} needs a reward; set model.reward")
        self.reward.load(device)

    @property
    def trains_with_reward(self) -> bool:
        """Whether `fit` scores responses."""
        return True

    def configure_model(self) -> None:
        """Load the policy, and the reference that KL is measured against."""
        if self._built:
            return
        self.tokenizer = load_tokenizer(self.policy_config.pretrained, self.policy_config.revision)
        self.actor = load_actor_critic(self.policy_config, self.tokenizer)
        if self.trains_with_reward or self.trainer.state.fn != "fit":
            self.reference = self._load_reference()
        self._built = True

    def _load_reference(self) -> FrozenModel:
        """The starting policy, unless another is named: KL is then 0 at iteration 0."""
        config = PolicyConfig(
            pretrained=self.reference_name or self.policy_config.pretrained,
            revision=None if self.reference_name else self.policy_config.revision,
            dtype=self.policy_config.dtype,
            attn_implementation=self.policy_config.attn_implementation,
            trust_remote_code=self.policy_config.trust_remote_code,
        )
        lm = load_causal_lm(config)
        if lm.config.get_text_config().vocab_size != self.actor.lm.config.get_text_config().vocab_size:
            raise UserError(
                f"reference {config.pretrained} has {lm.config.get_text_config().vocab_size} tokens, the policy "
                f"{self.policy_config.pretrained} {self.actor.lm.config.get_text_config().vocab_size}: "
                "KL needs one vocabulary; name a reference of the policy's family"
            )
        model = LanguageModel(lm, end_of_text_ids(lm, self.tokenizer))
        return FrozenModel(model).to(self.trainer.strategy.root_device)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer that the configuration names, over what is trained."""
        return self.make_optimizer([p for p in self.actor.parameters() if p.requires_grad])

    # sampling and scoring

    def generate(self, batch: PromptBatch, seed: SamplingSeed) -> Samples:
        """Draw one response a prompt from the current policy."""
        require_room(self.actor.context_length, batch.input_ids.shape[1], self.sampling)
        decoder = CachedDecoder(self.actor)
        return sample(decoder, batch, self.sampling, seed, self.tokenizer, self.actor.eos_token_ids)

    def score(self, samples: Samples) -> Tensor:
        """f32 [B], the reward of each finished text."""
        if self.reward is None:
            raise UserError(f"{type(self).__name__} has no reward; set model.reward")
        return score(self.reward, samples)

    @property
    def evaluation_seed(self) -> SamplingSeed:
        """Equal in every run, so that methods are compared on equal random numbers."""
        return SamplingSeed(base=self.evaluation.seed)

    # validation: a fixed prompt set with fixed random numbers

    def on_validation_epoch_start(self) -> None:
        self._summary = ScoreSummary(self.evaluation.tail_levels).to(self.device)

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Generate and score; the mean and the tails are logged when all prompts are in."""
        samples = self.generate(batch, self.evaluation_seed)
        self._summary.update(self.score(samples), samples.lengths)

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value for name, value in self._summary.compute().items()}, prog_bar=False)

    # test and predict: the same files for every method

    def on_test_epoch_start(self) -> None:
        self._writer = GenerationWriter(self._run_folder / GENERATIONS, self.actor.eos_token_ids)

    def test_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Generate, score, and write one line a prompt."""
        self._write_generations(batch)

    def on_test_epoch_end(self) -> None:
        """Compute every number from the finished generations, print the table and write the results file."""
        assert self._writer is not None
        report(self._writer.close(), self.result_identity(), self.evaluation)

    def on_predict_epoch_start(self) -> None:
        self._writer = GenerationWriter(self._run_folder / PREDICTIONS, self.actor.eos_token_ids)

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Generate and score for prompts of the user's own; one line a prompt."""
        self._write_generations(batch)

    def on_predict_epoch_end(self) -> None:
        assert self._writer is not None
        rank_zero_info(f"wrote {self._writer.close()}")

    @property
    def _run_folder(self) -> Path:
        return Path(self.trainer.default_root_dir)

    def _write_generations(self, batch: PromptBatch) -> None:
        assert self._writer is not None
        samples = self.generate(batch, self.evaluation_seed)
        self._writer.add(
            samples, scores=self.score(samples), kl=self._kl(samples), prompt_scores=self._prompt_scores(batch)
        )

    def _kl(self, samples: Samples) -> Tensor:
        """f32 [B], Σ_t log π − log π_ref, in nats."""
        assert self.reference is not None
        logratio = self.actor.response_logprobs(samples, self.sampling) - self.reference.response_logprobs(
            samples, self.sampling
        )
        return (logratio * samples.response_mask).sum(dim=1)

    def _prompt_scores(self, batch: PromptBatch) -> Tensor:
        """f32 [B], the reward of the prompts alone: the x-axis of every tail analysis (METHOD, section 3)."""
        assert self.reward is not None
        return self.reward(batch.prompts, [""] * len(batch))

    def result_identity(self) -> dict[str, Any]:
        """What a result file says of the policy, the reward, the reference and the data."""
        data = getattr(self.trainer, "datamodule", None)
        return {
            "module": type(self).__name__,
            "policy": self.policy_config.pretrained,
            "policy_revision": self.policy_config.revision,
            "checkpoint": self.trainer.ckpt_path,
            "reference": self.reference_name or self.policy_config.pretrained,
            "reward": None if self.reward is None else self.reward.identity(),
            "data": data.identity() if data is not None and hasattr(data, "identity") else None,
            "sampling": vars(self.sampling),
            "config": self.config_text,
        }

    # checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the sampling seed: a resumed run continues its own random numbers, whatever the command line says."""
        checkpoint["sampling_seed"] = self.seed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seed = checkpoint.get("sampling_seed", self.seed)


def _require_precision(precision: str) -> None:
    """Refuse what rounds the wrong things: float16 overflows in sampling, and bf16-true rounds every buffer."""
    if precision in ("32-true", "bf16-mixed"):
        return
    raise UserError(
        f"trainer.precision={precision}: expected 32-true or bf16-mixed; for weights in bfloat16 set "
        "model.policy.dtype: bfloat16 and keep 32-true"
    )
