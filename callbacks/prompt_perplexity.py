"""How well the policy still expects what people write: the utility that a guard on reward watches."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from lightning_rarlhf.base_modules.language_module import LanguageModule
from lightning_rarlhf.data_types import PromptBatch
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.metrics import TextPerplexity
from lightning_rarlhf.trainer.sharding import unsharded


class PromptPerplexity(Callback):
    """Logs ``val/perplexity``: of the validation prompts under the policy, at every validation.

    Prompts are the part of a human text that the policy is given; those of the unwanted class are left out, for a
    policy may well unlearn them. Mean over prompts of exp(mean token negative log-likelihood), as for the texts of
    `test`, but of other and shorter texts: compare it with itself over a run, not with the results table.
    """

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse modules that are no language model; begin anew."""
        if not isinstance(pl_module, LanguageModule):
            raise UserError(f"PromptPerplexity: {type(pl_module).__name__} is no LanguageModule; take the callback out")
        self._perplexity = TextPerplexity().to(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure one batch of prompts; those without a token have no perplexity."""
        assert isinstance(pl_module, LanguageModule)
        if not isinstance(batch, PromptBatch):
            raise UserError("PromptPerplexity: the data's purpose is sft, which logs val/loss; take the callback out")
        prompts = [text for text, label in zip(batch.prompts, batch.labels.tolist(), strict=True) if label != 0]
        with unsharded(pl_module.actor):
            found = pl_module.perplexities(prompts) if prompts else torch.empty(0)
        self._perplexity.update(found)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the mean over all processes' prompts, NaN where none has a token."""
        pl_module.log("val/perplexity", self._perplexity.compute(), sync_dist=True)
