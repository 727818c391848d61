"""The soft risk schedule: lowers the module's risk level from 1 to α over the run (paper, Eqs. 8-10)."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
from jsonargparse.typing import NonNegativeInt
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from lightning_rarlhf.errors import ScheduleError
from lightning_rarlhf.functional.risk import annealing_end, scheduled_risk_level, tail_size
from lightning_rarlhf.number_types import Fraction


class RiskSchedule(Callback):
    """Sets ``module.risk_level`` before each iteration m of M: 1 up to the warm start, α from ρM on, a line between.

    M is learned from the trainer, so that the schedule cannot end before or after the run.
    """

    def __init__(self, risk_level: Fraction = 0.2, warmup: NonNegativeInt = 30, rho: Fraction = 0.95) -> None:
        """Remember the schedule.

        Args:
            risk_level: α, the share of episodes that is kept at the end (paper: 0.4 IMDB, 0.2 Jigsaw and RTP).
            warmup: n, iterations that keep every episode.
            rho: ρ, share of the run's iterations after which α is reached.
        """
        if not 0 < risk_level <= 1:
            raise ScheduleError(f"risk_level: got {risk_level}, expected α in (0, 1]")
        if not 0 < rho <= 1:
            raise ScheduleError(f"rho: got {rho}, expected ρ in (0, 1]")
        if warmup < 0:
            raise ScheduleError(f"warmup: got {warmup}, expected n ≥ 0 iterations")
        # plain numbers: the command line's restricted types cannot be read back from a checkpoint
        self.risk_level = float(risk_level)
        self.warmup = int(warmup)
        self.rho = float(rho)
        self.total: int | None = None

    def level(self, iteration: int) -> float:
        """α′ of 0-based `iteration`, known once the fit has started."""
        if self.total is None:
            raise ScheduleError("the schedule has no length yet: it learns it from the trainer when the fit starts")
        return scheduled_risk_level(
            iteration, total=self.total, risk_level=self.risk_level, warmup=self.warmup, rho=self.rho
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse, before models are loaded, a module without a risk level and what no run of this length can do."""
        if stage != "fit":
            return
        if not hasattr(pl_module, "risk_level"):
            raise ScheduleError(
                f"RiskSchedule: {type(pl_module).__name__} has no risk_level; use it with RiskAversePPOModule"
            )
        total = _iterations_at_most(trainer)
        if total is not None:
            self._check(trainer, total)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Learn M, refuse a schedule that cannot do what it says, and print it."""
        before, self.total = self.total, _iterations(trainer)
        if before not in (None, self.total):
            rank_zero_info(f"RiskSchedule: the run now has {self.total} iterations; the checkpoint's had {before}")
        self._check(trainer, self.total)
        rank_zero_info(self._describe(_batch_size(trainer)))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set this iteration's α′; the module logs it as ``risk/level``."""
        pl_module.risk_level = self.level(trainer.global_step)  # type: ignore[assignment]

    def state_dict(self) -> dict[str, Any]:
        return {"risk_level": self.risk_level, "warmup": self.warmup, "rho": self.rho, "total": self.total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the length from the checkpoint; the other settings are the user's own and are only compared."""
        self.total = state_dict["total"]
        for name in ("risk_level", "warmup", "rho"):
            if getattr(self, name) != state_dict[name]:
                rank_zero_info(
                    f"RiskSchedule: {name} is now {getattr(self, name)}; the checkpoint's was {state_dict[name]}"
                )

    def _check(self, trainer: pl.Trainer, total: int) -> None:
        """What is refused at `total` iterations is refused at fewer, too."""
        batch_size, end = _batch_size(trainer), annealing_end(total, self.rho)
        if getattr(trainer, "fast_dev_run", False):  # one iteration cannot anneal
            return
        if batch_size * self.risk_level < 1:
            raise ScheduleError(
                f"the tail would be less than one episode: α·B = {self.risk_level}·{batch_size} = "
                f"{batch_size * self.risk_level:g}; raise risk_level, or batch_size to at least 1/α = "
                f"{math.ceil(1 / self.risk_level)}"
            )
        if self.risk_level == 1:
            return
        if self.warmup >= end:
            raise ScheduleError(
                f"warmup n={self.warmup} is not before ⌈ρM⌉ = ⌈{self.rho}·{total}⌉ = {end}: nothing is left to anneal "
                "in; lower warmup (--trainer.callbacks.warmup), or train longer (--trainer.max_steps)"
            )
        if end >= total:
            raise ScheduleError(
                f"α={self.risk_level} is never reached: ⌈ρM⌉ = ⌈{self.rho}·{total}⌉ = {end}, but the last iteration is "
                f"{total - 1}; lower rho (--trainer.callbacks.rho), or train longer (--trainer.max_steps)"
            )

    def _describe(self, batch_size: int) -> str:
        assert self.total is not None
        levels = [self.level(m) for m in range(self.total)]
        sizes = [tail_size(batch_size, level) for level in levels]
        changes = [m for m in range(1, self.total) if sizes[m] != sizes[m - 1]]
        if not changes:
            return f"risk schedule: {sizes[0]} of {batch_size} episodes are kept in each of {self.total} iterations"
        shown = sorted({0, changes[0], *(changes[len(changes) * i // 4] for i in (1, 2, 3)), changes[-1]})
        steps = ", ".join(f"m={m}: {sizes[m]}" for m in shown)
        kept = sum(sizes) / (batch_size * self.total)
        return (
            f"risk schedule over M={self.total} iterations of B={batch_size} episodes (α={self.risk_level}, "
            f"n={self.warmup}, ρ={self.rho}): episodes kept at {steps}; {kept:.1%} of all episodes are learned from"
        )


def _iterations(trainer: pl.Trainer) -> int:
    """M: the iterations that the whole run will have, the finished ones of a resumed run included."""
    total = trainer.estimated_stepping_batches
    if total == math.inf or total <= 0:
        raise ScheduleError("the run has no end; set trainer.max_steps or trainer.max_epochs, so that M is known")
    return int(total)


def _iterations_at_most(trainer: pl.Trainer) -> int | None:
    """M before there are loaders, or a number above it where less than an epoch's batches are used; None = not known.

    Not `Trainer.estimated_stepping_batches`: the loader that it makes would not see where a checkpoint goes on.
    """
    bounds = [trainer.max_steps] if trainer.max_steps > 0 else []
    batches = getattr(trainer.datamodule, "train_batches", None)  # type: ignore[attr-defined]
    if batches is not None and trainer.max_epochs is not None and trainer.max_epochs > 0:
        bounds.append(trainer.max_epochs * math.ceil(batches / trainer.accumulate_grad_batches))
    return min(bounds, default=None)


def _batch_size(trainer: pl.Trainer) -> int:
    """B: prompts per iteration over all processes."""
    size = getattr(trainer.datamodule, "batch_size", None)  # type: ignore[attr-defined]
    if not isinstance(size, int):
        raise ScheduleError("the data module has no batch_size, so the tail's size is not known; give it one")
    return size
