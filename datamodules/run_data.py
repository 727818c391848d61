"""What the command line takes as data, whatever they are for."""

from __future__ import annotations

import lightning.pytorch as pl


class RunDataModule(pl.LightningDataModule):
    """Base of prompts and of human labels; both read texts with the tokenizer that the command line fills in."""
