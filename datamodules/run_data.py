"""What the command line takes as data, whatever they are for: which loader a run reads, and where it goes on."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from datamodules.loader import PromptLoader


class RunDataModule(pl.LightningDataModule, ABC):
    """Base of prompts and of human labels; both read texts with the tokenizer that the command line fills in.

    Args:
        path: local folder or file of the data; none = from the hub
        order_seed: of the order of the training rows; none = the run's own (seed_everything)
    """

    hub_id: str | None = None
    """dataset on the hub"""

    def __init__(self, path: str | None, order_seed: int | None) -> None:
        super().__init__()
        self.path = path
        self.order_seed = order_seed
        self._train_loader: PromptLoader[Any] | None = None
        self._train_state: dict[str, Any] | None = None

    @abstractmethod
    def _loader(self, split: str) -> PromptLoader[Any]:
        """Batches of a split that `setup` has read."""

    @property
    def source(self) -> str:
        """Where rows come from, without a machine's own folders: hub id, or name of the local folder or file."""
        if self.path:
            return Path(os.path.abspath(Path(self.path).expanduser())).name  # a link by its own name, not its target's
        return str(self.hub_id or type(self).__name__)

    @property
    def train_batches(self) -> int:
        """Batches of an epoch; known once `setup` has read the training rows, before any loader is asked for."""
        return len(self._loader("train"))

    def train_dataloader(self) -> PromptLoader[Any]:
        self._train_loader = self._loader("train")
        if self._train_state is not None:
            # Lightning restores a loader itself, but not when the checkpoint stands at an epoch's very end.
            self._train_loader.load_state_dict(self._train_state)
            self._train_state = None
        return self._train_loader

    def test_dataloader(self) -> PromptLoader[Any]:
        return self._loader("test")

    def state_dict(self) -> dict[str, Any]:
        """Position of the training data."""
        return {"train": self._train_loader.state_dict()} if self._train_loader else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to that position of the training data, now or when there is a loader."""
        state = state_dict.get("train")
        if state is not None and self._train_loader is not None and self._is_in_use(self._train_loader):
            self._train_loader.load_state_dict(state)
        else:
            self._train_state = state

    def _is_in_use(self, loader: PromptLoader[Any]) -> bool:
        """Whether this fit has it already: FSDP's strategies restore late, and who asks for the run's length was first.

        A loader of a former fit is not the one that this fit will ask for.
        """
        return self.trainer is not None and self.trainer.train_dataloader is loader

    def _dealt(self, split: str) -> dict[str, Any]:
        """How this process's share of a split is dealt: order, seed, and its place among the processes."""
        return {
            "shuffle": split == "train",
            "seed": int(os.environ.get("PL_GLOBAL_SEED", "0") if self.order_seed is None else self.order_seed),
            "rank": self.trainer.global_rank if self.trainer else 0,
            "world_size": self.trainer.world_size if self.trainer else 1,
        }
