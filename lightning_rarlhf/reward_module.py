"""A reward model from human labels: where human feedback enters (paper, section 3 and Eqs. 1-2)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import MeanMetric

from lightning_rarlhf.base_modules.guarded_module import GuardedModule
from lightning_rarlhf.checkpoints.resume import settings_of
from lightning_rarlhf.config import BackboneConfig, GuardConfig
from lightning_rarlhf.data_types import LabelledBatch, PreferenceBatch
from lightning_rarlhf.distributed import gather_items, total
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.functional.preferences import bradley_terry_nll
from lightning_rarlhf.loading.model_folder import require_replaceable
from lightning_rarlhf.records.reward_report import (
    aurocs_of_labels,
    both_ways,
    known_by_label,
    measures_of_labels,
    measures_of_pairs,
    write_reward_report,
)
from lightning_rarlhf.rewards.classifier import (
    PREFERENCE,
    export_classifier,
    head_labels,
    load_classifier,
    load_classifier_tokenizer,
    text_limit,
)
from lightning_rarlhf.stepping.optimizing import go_on, with_linear_decay
from lightning_rarlhf.trainer.precision import require_precision
from lightning_rarlhf.trainer.strategies import FSDP2Strategy

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RewardBatch = LabelledBatch | PreferenceBatch


class RewardModule(GuardedModule):
    """A sequence classifier fitted on labelled texts, or on pairs of which a human preferred one.

    The data module decides which: `LabelledTextDataModule` gives one logit a label, with binary cross-entropy each;
    `PreferenceDataModule` one score, with the Bradley-Terry loss. The exported folder is what
    `model.reward.pretrained` takes.

    Attributes:
        classifier: the network; built by `configure_model`.
    """

    classifier: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        backbone: BackboneConfig = BackboneConfig(),
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=2e-5),
        linear_decay: bool = True,
        guard: GuardConfig = GuardConfig(),
    ) -> None:
        """Remember the settings; nothing is loaded before the trainer asks for it.

        Args:
            backbone: the network that gets a classification head, or a classifier to go on with.
            optimizer: any torch optimizer.
            linear_decay: lower the learning rate linearly to 0 over the run.
            guard: what happens when a number is not finite.
        """
        super().__init__(guard)
        self.backbone = backbone
        self.make_optimizer = optimizer
        self.linear_decay = linear_decay
        self.label_names: list[str] = []
        self._columns: list[int] | slice = slice(None)
        self.seed: int | None = None

    # construction

    def setup(self, stage: str) -> None:
        """Refuse precisions in which an update is lost to rounding, and other things where the model is to stand."""
        super().setup(stage)
        require_precision(str(self.trainer.precision), keeps_weights=True)
        if stage == "fit":
            require_replaceable(self._export_folder, self.backbone.pretrained)

    def configure_model(self) -> None:
        """Load the network; its labels are those of the data."""
        if self.label_names:
            return
        if isinstance(self.trainer.strategy, FSDP2Strategy):
            raise UserError("RewardModule's network is not divided among processes; give --trainer.strategy ddp")
        data = getattr(self.trainer, "datamodule", None)
        names = getattr(data, "label_names", None)
        if not names:
            raise UserError(
                "RewardModule learns from labelled texts or preferences; set --data LabelledTextDataModule or "
                "PreferenceDataModule"
            )
        self.tokenizer = load_classifier_tokenizer(self.backbone.pretrained, self.backbone.revision)
        trainer = self.trainer
        measured = trainer.state.fn in (TrainerFn.TESTING, TrainerFn.VALIDATING) and not trainer.ckpt_path
        padding = int(self.tokenizer.pad_token_id)
        self.classifier, fate = load_classifier(self.backbone, names, padding, trained=measured)
        if fate and not trainer.ckpt_path:
            rank_zero_info(fate)
        self._require_readable(getattr(data, "text_tokens", 0))
        self._data_labels = list(names)
        self._order_labels(head_labels(self.classifier))

    def _order_labels(self, outputs: list[str]) -> None:
        """Read the data's labels in the order of the network's outputs."""
        self.label_names = outputs
        if sorted(outputs) == sorted(self._data_labels):
            self._columns = [self._data_labels.index(name) for name in outputs]

    def _require_readable(self, text_tokens: int) -> None:
        limit = text_limit(self.classifier, self.tokenizer)
        if limit is not None and text_tokens > limit:
            raise UserError(
                f"data.text_tokens={text_tokens}: {self.backbone.pretrained} reads {limit} tokens at most; set it to "
                f"{limit} or fewer"
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over the whole network, and the linear decay."""
        optimizer = self.make_optimizer(self.parameters())
        self._optimizer_settings = settings_of(optimizer)
        return with_linear_decay(optimizer, self.trainer) if self.linear_decay else optimizer

    def on_train_start(self) -> None:
        """Switch dropout on, as transformers leaves a loaded network without; let the user's settings count."""
        self.classifier.train()
        if self.seed is None:
            self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        go_on(self.trainer, self._optimizer_settings)

    # learning

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits of right-padded texts: i64 [B, S], bool [B, S] → f32 [B, L]."""
        logits: Tensor = self.classifier(input_ids=input_ids, attention_mask=attention_mask.long()).logits
        return logits.float()

    def training_step(self, batch: RewardBatch, batch_idx: int) -> Tensor:
        """Mean binary cross-entropy of the known labels of all processes, or mean Bradley-Terry loss (Eq. 2).

        Dropout follows from the run's seed and the batch's place alone, so that a resumed run draws what it would have.
        """
        place = (self.seed or 0, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))
        losses, count, _ = self._outcome(batch)
        known = total(count)
        self.log("reward/loss", total(losses / known), prog_bar=True, on_step=True, batch_size=len(batch))
        return self.share_of_step(losses, known, batch_idx)

    def margins(self, batch: PreferenceBatch) -> Tensor:
        """f32 [B], r_chosen − r_rejected, both read in one pass."""
        scores = self(
            torch.cat([batch.chosen_ids, batch.rejected_ids]), torch.cat([batch.chosen_mask, batch.rejected_mask])
        ).squeeze(-1)
        chosen, rejected = scores.chunk(2)
        margins: Tensor = chosen - rejected
        return margins

    def _outcome(self, batch: RewardBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of the losses of this process's rows and their number, scalars; logits [B, L] or margins [B]."""
        if isinstance(batch, PreferenceBatch):
            margins = self.margins(batch)
            losses = bradley_terry_nll(margins, torch.zeros_like(margins))
            return losses.sum(), torch.tensor(len(losses), device=losses.device), margins
        logits, labels = self(batch.input_ids, batch.attention_mask), batch.labels[:, self._columns]
        known = labels.isfinite()
        loss = F.binary_cross_entropy_with_logits(logits[known], labels[known], reduction="sum")
        return loss, known.sum(), logits

    # validation

    def on_validation_epoch_start(self) -> None:
        self._loss = MeanMetric().to(self.device)
        self._rows: list[tuple[list[float], list[float]]] = []

    def validation_step(self, batch: RewardBatch, batch_idx: int) -> None:
        """Collect the loss, and logits and labels, or margins."""
        losses, count, found = self._outcome(batch)
        self._loss.update(losses / count.clamp(min=1), count)
        self._collect(batch, found)

    def on_validation_epoch_end(self) -> None:
        """Log loss, and the AUC of each label that was seen with both classes, or the accuracy of the pairs."""
        found, labels = self._collected()
        figures: dict[str, Any] = {"val/loss": self._loss.compute()}
        if labels.shape[1]:
            aurocs = aurocs_of_labels(found, labels, self.label_names)
            figures |= {f"val/{name}/auroc": value for name, value in aurocs.items()}
            figures |= {"val/auroc": float(np.mean(list(aurocs.values())))} if aurocs else {}
        else:
            figures["val/accuracy"] = float(np.mean((found > 0) + 0.5 * (found == 0)))
        self.log_dict(figures, prog_bar=True, sync_dist=True)

    # test

    def on_test_epoch_start(self) -> None:
        self._rows = []

    def test_step(self, batch: RewardBatch, batch_idx: int) -> None:
        """Collect logits and labels, or margins."""
        self._collect(batch, self._outcome(batch)[2])

    def on_test_epoch_end(self) -> None:
        """Write reward_results.json and the picture of the calibration, and print the figures; process 0 alone."""
        if not self.trainer.is_global_zero:
            return
        found, labels = self._collected()
        if labels.shape[1]:
            metrics = measures_of_labels(found, labels, self.label_names)
            curves = known_by_label(found, labels, self.label_names)
        else:
            metrics, curves = measures_of_pairs(found[:, 0]), {"pairs": both_ways(found[:, 0])}
        write_reward_report(Path(self.trainer.default_root_dir), metrics, curves, self._identity())

    def _collect(self, batch: RewardBatch, found: Tensor) -> None:
        """Keep the rows of all processes, in the order in which one process would see them."""
        known = batch.labels[:, self._columns] if isinstance(batch, LabelledBatch) else torch.empty(len(batch), 0)
        labels = known.tolist()
        self._rows += gather_items(list(zip(found.reshape(len(batch), -1).tolist(), labels, strict=True)))

    def _collected(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Logits and labels, [n, L] each; of pairs the margins [n, 1] and labels [n, 0]."""
        found, labels = zip(*self._rows, strict=True)
        return np.array(found, dtype=np.float64), np.array(labels, dtype=np.float64)

    def _identity(self) -> dict[str, Any]:
        data = getattr(self.trainer, "datamodule", None)
        return {
            "module": type(self).__name__,
            "pretrained": self.backbone.pretrained,
            "revision": self.backbone.revision,
            "labels": self.label_names,
            "checkpoint": self.trainer.ckpt_path,
            "data": data.identity() if data is not None and hasattr(data, "identity") else None,
        }

    # what stays

    def on_fit_end(self) -> None:
        """Export ``<run>/huggingface``, unless the fit was interrupted, only a trial (fast_dev_run), or of no step."""
        trainer = self.trainer
        if not trainer.is_global_zero or trainer.interrupted or getattr(trainer, "fast_dev_run", False):
            return
        if not trainer.global_step:  # the head may be random
            rank_zero_info("exported nothing: no step was taken")
            return
        export_classifier(self.classifier, self.tokenizer, self._export_folder)
        rank_zero_info(f"exported to {self._export_folder}: {_as_reward(self._export_folder, self.label_names)}")

    @property
    def _export_folder(self) -> Path:
        return Path(self.trainer.default_root_dir) / "huggingface"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["module"] = type(self).__name__
        checkpoint["sampling_seed"] = self.seed
        checkpoint["label_names"] = self.label_names

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises UserError if another module, or one of other labels, made the checkpoint."""
        if checkpoint.get("module") != type(self).__name__:
            raise UserError(f"the checkpoint was made by {checkpoint.get('module')}, not {type(self).__name__}")
        super().on_load_checkpoint(checkpoint)
        names = list(checkpoint.get("label_names", self.label_names))
        if sorted(names) != sorted(self.label_names):
            raise UserError(
                f"the checkpoint has the labels {', '.join(names)}, the data {', '.join(self.label_names)}; give data "
                "with the labels of the checkpoint"
            )
        self._order_labels(names)
        self.classifier.config.id2label = dict(enumerate(names))
        self.classifier.config.label2id = {name: number for number, name in enumerate(names)}
        self.seed = checkpoint["sampling_seed"]


def _as_reward(folder: Path, labels: list[str]) -> str:
    """The options with which a run takes the exported classifier as its reward."""
    label = labels[0] if len(labels) == 1 else f"ONE OF {', '.join(labels)}"
    unwanted = "" if labels == [PREFERENCE] else "; sign -1 if the label is what you do not want"
    return f"--model.reward.pretrained {folder} --model.reward.label {label} --model.reward.sign 1{unwanted}"
