"""A trainer that shows and keeps nothing, on one CPU process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl


def quiet_trainer(folder: Path, **settings: Any) -> pl.Trainer:
    """Whose files would go to `folder`; `settings` come on top."""
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    return pl.Trainer(default_root_dir=folder, accelerator="cpu", devices=1, **quiet | settings)
