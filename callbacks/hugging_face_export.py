"""At the end of a fit: an ordinary Hugging Face folder of the final policy, and one of the best checkpoint's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from lightning_rarlhf.base_modules.language_module import LanguageModule
from lightning_rarlhf.checkpoints.sharded_checkpoint import whole_checkpoint
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.export import Form, export_policy
from lightning_rarlhf.loading.model_folder import require_replaceable
from lightning_rarlhf.policy import ActorCritic
from lightning_rarlhf.records.provenance import CHOSEN


class HuggingFaceExport(Callback):
    """Writes ``<run>/huggingface`` (final weights) and ``<run>/huggingface-best`` (best one, if monitored).

    Each folder has the model, the tokenizer and, if it was trained, the value head. It counts as written only after it
    was loaded again and continued prompts with the same greedy tokens.
    """

    def __init__(self, dirpath: str | None = None, form: Form = "merged") -> None:
        """Choose where and what to write.

        Args:
            dirpath: folder of the final policy; none = ``huggingface`` in the run's folder.
            form: merged = a model that stands alone; adapter = the LoRA adapter, to be loaded on top of its base.
        """
        self.dirpath = dirpath
        self.form = form

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse an adapter's export where none is trained, and folders of what must stay, before hours are spent.

        Raises:
            UserError: with the alternative.
        """
        if not isinstance(pl_module, LanguageModule):
            return
        policy, folder = pl_module.policy_config, self._folder(trainer)
        if self.form == "adapter" and policy.lora is None:
            raise UserError("HuggingFaceExport.form adapter: none is trained; set model.policy.lora, or form: merged")
        for place in (folder, _best_beside(folder)) if stage == "fit" else ():
            require_replaceable(place, policy.pretrained, pl_module.reference_name)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Export, unless the fit was interrupted, only a trial (fast_dev_run), or of no step (max_time)."""
        if not isinstance(pl_module, LanguageModule) or trainer.interrupted or getattr(trainer, "fast_dev_run", False):
            return
        if not trainer.global_step:
            rank_zero_info("exported nothing: no step was taken")
            return
        actor = pl_module.whole_actor()
        if actor is None or not trainer.is_global_zero:
            return
        folder = self._folder(trainer)
        self._export(pl_module, actor, folder, pl_module.training_record())
        rank_zero_info(f"exported the final policy to {folder}")
        best = _best_checkpoint(trainer)
        if best:
            self._export_best(pl_module, actor, best, _best_beside(folder))

    def _folder(self, trainer: pl.Trainer) -> Path:
        return Path(self.dirpath or Path(trainer.default_root_dir) / "huggingface")

    def _export(
        self, module: LanguageModule, actor: ActorCritic, folder: Path, training: dict[str, Any] | None
    ) -> None:
        export_policy(
            actor,
            module.tokenizer,
            folder,
            with_critic=module.trains_critic,
            form=self.form,
            policy=module.policy_config,
            training=training,
        )

    def _export_best(self, module: LanguageModule, actor: ActorCritic, checkpoint: str, folder: Path) -> None:
        whole = not module.policy_config.trains_part  # else the frozen weights are in no checkpoint
        content, state = whole_checkpoint(Path(checkpoint)), actor.state_dict()
        best = _actor_weights(content["state_dict"])
        final = {name: state[name].clone() for name in best}
        training = content.get("training")
        try:
            actor.load_state_dict(best, strict=whole)
            self._export(module, actor, folder, training and training | CHOSEN)
        finally:
            actor.load_state_dict(final, strict=whole)
        rank_zero_info(f"exported the best checkpoint, {Path(checkpoint).name}, to {folder}")


def _best_beside(folder: Path) -> Path:
    return folder.with_name(folder.name + "-best")


def _actor_weights(weights: dict[str, Any]) -> dict[str, Any]:
    """The actor's part of a checkpoint's weights, by the actor's own names."""
    prefix = "actor."
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def _best_checkpoint(trainer: pl.Trainer) -> str | None:
    """Path of the best checkpoint by a monitored metric."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            return callback.best_model_path
    return None
