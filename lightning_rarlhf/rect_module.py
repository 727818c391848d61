"""Fits RECT's value head on rollouts of the frozen policy, scored by the reward model."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryAUROC

from lightning_rarlhf.base_modules.language_module import LanguageModule
from lightning_rarlhf.config import EvaluationConfig, PolicyConfig, SamplingConfig
from lightning_rarlhf.data_types import PromptBatch, Samples
from lightning_rarlhf.decoding.risk_head import RISK_HEAD_FILE, RiskHead, save_risk_head
from lightning_rarlhf.distributed import total
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.records.results_file import weights_sha256
from lightning_rarlhf.reward_models import RewardModel
from lightning_rarlhf.sampling import SamplingSeed
from lightning_rarlhf.trainer.strategies import FSDP2Strategy


class RectModule(LanguageModule):
    """Logistic regression of "this text ended badly" on each of its tokens: q(s, a) by Monte Carlo, under the policy.

    The policy is frozen; the head goes to ``<run>/risk_head.safetensors``, for the decoding method `Rect`.

    Attributes:
        outcomes: i64 [2], texts of the whole fit that ended badly, and all of them.
    """

    risk_head: RiskHead
    outcomes: Tensor

    def __init__(
        self,
        reward: RewardModel,
        bad_below: float,
        policy: PolicyConfig = PolicyConfig(),
        reference: str | None = None,
        sampling: SamplingConfig = SamplingConfig(),
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
        evaluation: EvaluationConfig = EvaluationConfig(),
    ) -> None:
        """Remember the settings; nothing is loaded before the trainer asks for it.

        Args:
            reward: scores finished texts.
            bad_below: a text that scores less ended badly, in the reward's unit (a lone logit's even odds: 0).
            policy: the language model that is to be rectified; it is not trained.
            reference: not used in fitting.
            sampling: the distribution that responses are drawn from.
            optimizer: any torch optimizer, over the head alone.
            evaluation: of validation.
        """
        super().__init__(policy, reference, reward, sampling, evaluation, optimizer)
        self.bad_below = bad_below
        self.register_buffer("outcomes", torch.zeros(2, dtype=torch.int64))

    def setup(self, stage: str) -> None:
        """Refuse tests, since the head alone draws nothing, a divided policy, whose head is not divided, and adapters.

        Raises:
            UserError: with what to give instead.
        """
        if stage in ("test", "predict"):
            raise UserError(
                f"RectModule fits a head; to {stage} with it use --model DecodingModule --model.method Rect "
                "--model.method.head RUN"
            )
        if isinstance(self.trainer.strategy, FSDP2Strategy):
            raise UserError("RectModule's policy is not divided among processes; give --trainer.strategy ddp")
        if self.policy_config.trains_part:
            raise UserError(
                "RectModule trains no policy, and its head belongs to the policy as it is: leave model.policy.lora and "
                "frozen_layers out; give a policy that was trained with an adapter as the folder that its run exported"
            )
        super().setup(stage)

    def build(self) -> None:
        """Load the policy, freeze it, and make the head."""
        super().build()
        self.actor.requires_grad_(False)
        self.risk_head = RiskHead(self.actor.hidden_size)

    @property
    def trained_network(self) -> torch.nn.Module:
        return self.risk_head

    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor:
        """Draw, score, and fit the head to which texts ended badly."""
        assert self.seed is not None
        together = self.trainer.accumulate_grad_batches  # each batch of a step draws numbers of its own
        number = self.global_step * together + batch_idx % together
        samples = self.generate(batch, SamplingSeed(base=self.seed, iteration=number))
        bad = self.ended_badly(samples)
        losses, tokens = self.losses(samples, bad), total(samples.response_mask.sum())
        ended, rows = total(torch.stack([bad.sum(), torch.ones_like(bad).sum()]))
        self.outcomes += torch.stack([ended, rows]).long()
        figures = {"rect/loss": total(losses / tokens), "rect/bad_rate": ended / rows}
        self.log_dict(figures, prog_bar=True, on_step=True, batch_size=len(batch))
        return self.share_of_step(losses, tokens, batch_idx)

    def ended_badly(self, samples: Samples) -> Tensor:
        """f32 [B], 1 = scored below `bad_below`."""
        return (self.score(samples) < self.bad_below).float()

    def risk_logits(self, samples: Samples) -> Tensor:
        """f32 [B, T], of each token that was drawn."""
        width = samples.response_mask.shape[1]
        with torch.no_grad():
            hidden = self.actor.before_responses(samples.sequences, samples.attention_mask, width)
            embeddings = self.actor.lm.get_output_embeddings().weight[samples.sequences[:, -width:]]
        return self.risk_head.of_tokens(hidden, embeddings)

    def loss(self, samples: Samples, bad: Tensor) -> Tensor:
        """This process's share of the mean cross-entropy a token over all processes, in nats; `bad` f32 [B]."""
        return self.losses(samples, bad) / total(samples.response_mask.sum())

    def losses(self, samples: Samples, bad: Tensor) -> Tensor:
        """Sum of the cross-entropies of this process's tokens, in nats; `bad` f32 [B]."""
        logits = self.risk_logits(samples)
        targets = bad[:, None].expand_as(logits)
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return torch.where(samples.response_mask, losses, 0.0).sum()

    def on_validation_epoch_start(self) -> None:
        self._loss = MeanMetric().to(self.device)
        self._bad_rate = MeanMetric().to(self.device)
        self._auroc = BinaryAUROC().to(self.device)

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """How well the head foresees the end from each token, on responses drawn as in every run."""
        samples = self.generate(batch, self.evaluation_seed)
        bad = self.ended_badly(samples)
        self._bad_rate.update(bad)
        self._loss.update(total(self.loss(samples, bad)), int(samples.response_mask.sum()))
        logits = self.risk_logits(samples)
        self._auroc.update(logits[samples.response_mask], bad[:, None].expand_as(logits)[samples.response_mask].long())

    def on_validation_epoch_end(self) -> None:
        """Log loss and share of bad ends, and the AUC where there was an end of either kind."""
        figures = {"val/loss": self._loss.compute(), "val/bad_rate": self._bad_rate.compute()}
        if 0 < figures["val/bad_rate"] < 1:
            figures["val/auroc"] = self._auroc.compute()
        self.log_dict(figures)

    def on_fit_end(self) -> None:
        """Write the head, unless the fit was interrupted or only a trial (fast_dev_run).

        Raises:
            UserError: all texts ended alike, so there was nothing to learn.
        """
        if self.trainer.interrupted or getattr(self.trainer, "fast_dev_run", False):
            return
        self._require_both_ends()
        if not self.trainer.is_global_zero:
            return
        path = Path(self.trainer.default_root_dir) / RISK_HEAD_FILE
        save_risk_head(self.risk_head, path, policy_sha256=weights_sha256(self.actor.lm))
        rank_zero_info(f"wrote {path}")

    def _require_both_ends(self) -> None:
        bad, texts = self.outcomes.tolist()
        if bad in (0, texts):
            raise UserError(
                f"RectModule: {bad} of {texts} texts scored below model.bad_below={self.bad_below:g}, so a head could "
                "not learn what foretells it and none was written; choose a value that some texts score below, and "
                "others do not"
            )
