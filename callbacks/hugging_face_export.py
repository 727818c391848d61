"""At the end of a fit: an ordinary Hugging Face folder of the final policy, and one of the best checkpoint's."""

from __future__ import annotations

import copy
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from lightning_rarlhf.export import export_policy
from lightning_rarlhf.language_module import LanguageModule


class HuggingFaceExport(Callback):
    """Writes ``<run>/huggingface`` (final weights) and ``<run>/huggingface-best`` (best one, if monitored).

    Each folder has the model, the tokenizer and, if it was trained, the value head. It counts as written only after it
    was loaded again and continued prompts with the same greedy tokens.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        """Choose where to write.

        Args:
            dirpath: folder of the final policy; none = ``huggingface`` in the run's folder.
        """
        self.dirpath = dirpath

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Export, unless the fit was interrupted or only a trial (fast_dev_run)."""
        if not isinstance(pl_module, LanguageModule) or not trainer.is_global_zero:
            return
        if trainer.interrupted or getattr(trainer, "fast_dev_run", False):
            return
        folder = Path(self.dirpath or Path(trainer.default_root_dir) / "huggingface")
        export_policy(pl_module.actor, pl_module.tokenizer, folder, with_critic=pl_module.trains_critic)
        rank_zero_info(f"exported the final policy to {folder}")
        best = _best_checkpoint(trainer)
        if best:
            self._export_best(pl_module, best, folder.with_name(folder.name + "-best"))

    def _export_best(self, module: LanguageModule, checkpoint: str, folder: Path) -> None:
        final = copy.deepcopy(module.actor.state_dict())
        weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        prefix = "actor."
        try:
            module.actor.load_state_dict(
                {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
            )
            export_policy(module.actor, module.tokenizer, folder, with_critic=module.trains_critic)
        finally:
            module.actor.load_state_dict(final)
        rank_zero_info(f"exported the best checkpoint, {Path(checkpoint).name}, to {folder}")


def _best_checkpoint(trainer: pl.Trainer) -> str | None:
    """Path of the best checkpoint by a monitored metric."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            return callback.best_model_path
    return None
