"""Supervised fine-tuning on the wanted class: the initial policy and the reference of RLHF and RA-RLHF."""

from __future__ import annotations

from typing import cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from lightning_rarlhf.base_modules.language_module import LanguageModule
from lightning_rarlhf.config import EvaluationConfig, GuardConfig, PolicyConfig, SamplingConfig
from lightning_rarlhf.data_types import PromptBatch, TextBatch
from lightning_rarlhf.distributed import total
from lightning_rarlhf.reward_models import RewardModel
from lightning_rarlhf.stepping.optimizing import with_linear_decay


class SFTModule(LanguageModule):
    """Next-token cross-entropy on texts; `test` and `predict` generate, like every other method's."""

    def __init__(
        self,
        policy: PolicyConfig = PolicyConfig(),
        reward: RewardModel | None = None,
        reference: str | None = None,
        sampling: SamplingConfig = SamplingConfig(),
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-5),
        linear_decay: bool = True,
        evaluation: EvaluationConfig = EvaluationConfig(),
        guard: GuardConfig = GuardConfig(),
    ) -> None:
        """Remember the settings; nothing is loaded before the trainer asks for it.

        Args:
            policy: the language model to train.
            reward: scores responses in `test` and `predict`; not used by `fit`.
            reference: model that `test` measures KL against; none = the policy as it starts.
            sampling: the distribution that `test` draws from.
            optimizer: any torch optimizer (paper: AdamW at 1e-5).
            linear_decay: lower the learning rate linearly to 0 over the run (paper).
            evaluation: test and predict.
            guard: what happens when the loss or the gradient is not finite.
        """
        super().__init__(policy, reference, reward, sampling, evaluation, optimizer, guard)
        self.linear_decay = linear_decay

    @property
    def trains_with_reward(self) -> bool:
        return False

    @property
    def trains_on(self) -> type[TextBatch]:
        return TextBatch

    @property
    def trained_network(self) -> torch.nn.Module:
        return cast("torch.nn.Module", self.actor.lm)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over the language model alone, and the paper's linear decay."""
        optimizer = super().configure_optimizers()
        assert isinstance(optimizer, torch.optim.Optimizer)
        return with_linear_decay(optimizer, self.trainer) if self.linear_decay else optimizer

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        """Mean negative log-likelihood per token, over all processes and all batches of an optimizer step."""
        nll, tokens = self.nll(batch)
        count = total(tokens)
        self.log("sft/loss", total(nll / count), prog_bar=True, on_step=True, batch_size=len(batch))
        return self.share_of_step(nll, count, batch_idx)

    def loss(self, batch: TextBatch) -> Tensor:
        """This process's share of −mean log π(x_t | x_<t) over the tokens after each text's first, in nats."""
        nll, tokens = self.nll(batch)
        return nll / total(tokens)

    def nll(self, batch: TextBatch) -> tuple[Tensor, Tensor]:
        """−Σ log π(x_t | x_<t) over the tokens after each text's first, in nats, and their number; of this process."""
        mask = batch.attention_mask[:, 1:]
        logprobs = self.actor.text_logprobs(batch.input_ids, batch.attention_mask)
        return -torch.where(mask, logprobs, 0.0).sum(), mask.sum()

    def on_validation_epoch_start(self) -> None:
        self._held_out = [0.0, 0.0]

    def validation_step(self, batch: TextBatch | PromptBatch, batch_idx: int) -> None:
        """Add up the negative log-likelihood of held-out texts, and their tokens."""
        if isinstance(batch, TextBatch):
            nll, tokens = self.nll(batch)
            self._held_out = [self._held_out[0] + nll.item(), self._held_out[1] + tokens.item()]

    def on_validation_epoch_end(self) -> None:
        """Log their mean over all tokens of all processes, which does not depend on how texts were put into batches."""
        nll, tokens = total(torch.tensor(self._held_out, device=self.device))
        if tokens > 0:
            self.log("val/loss", nll / tokens, prog_bar=True, sync_dist=True)
