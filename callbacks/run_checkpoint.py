"""Checkpoints in units of iterations: the last state now and then and at the end, the best by a monitored metric."""

from __future__ import annotations

import copy
import math
import time
from typing import Any, Literal

import lightning.pytorch as pl
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from callbacks.known_judges import require_judge
from callbacks.loop_position import in_accumulated_step, is_last_iteration, validate_now, validation_follows
from callbacks.rise_limit import RiseLimit
from callbacks.safe_checkpoint import NotWrittenError, OnWriteError, SafeCheckpoint
from lightning_rarlhf.checkpoints.consent import CHECKPOINT_KEY
from lightning_rarlhf.errors import UserError


class RunCheckpoint(SafeCheckpoint):
    """``last.ckpt`` every few iterations and at the end; ``best-…ckpt`` after validations that beat the others.

    Lightning's own checkpoint callback saves either by steps or by a monitored metric; a run needs both. A validation
    is between two writes of ``last.ckpt``: a run that is killed in it validates first when it is resumed.

    With a guard, a state is the best only among those that have not paid for it elsewhere: reward alone is highest
    where the policy has forgotten how people write. The guard's start is measured before the first iteration, by a
    validation that the callback asks for.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        every_n_iterations: PositiveInt = 25,
        every_n_minutes: PositiveFloat | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "max",
        save_top_k: NonNegativeInt = 1,
        guard: str | None = None,
        max_rise: float = 0.2,
        guard_start: float | None = None,
        on_write_error: OnWriteError = "stop",
    ) -> None:
        """Choose what is kept.

        Args:
            dirpath: folder of the checkpoints; the command line sets it to ``checkpoints`` in the run's folder.
            every_n_iterations: iterations (optimizer steps of SFT) between two writes of ``last.ckpt``.
            every_n_minutes: also write ``last.ckpt`` at the end of an iteration that ends this long after the last
                write; none = by iterations alone.
            monitor: metric that chooses the best checkpoints (val/cvar_10, ...); none = only ``last.ckpt``.
            mode: whether a larger or a smaller metric is better.
            save_top_k: best checkpoints kept.
            guard: metric that a best checkpoint may not have raised by more than max_rise, whatever the monitored
                one says (val/perplexity, ...); a positive number, smaller = better; none = no guard.
            max_rise: share by which the guard may exceed its start; 0.2 = at most 1.2 times as high.
            guard_start: value that the rise is counted from; none = the guard's value before the first iteration.
            on_write_error: what a checkpoint does that cannot be written (disk full, no permission): stop = end the
                run with the reason; continue = warn, and try again when the next one is due.
        """
        super().__init__(
            dirpath=dirpath,
            filename="best-{step}",
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k if monitor else 0,
            save_last=True,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        if guard is not None and monitor is None:
            raise UserError(f"guard={guard} without a monitor: a guard limits what the monitored metric may choose")
        self._guard = RiseLimit(guard, max_rise, guard_start)
        self.every_n_iterations = every_n_iterations
        self.every_n_minutes = every_n_minutes
        self.on_write_error = on_write_error
        self._last_written_at = -1
        self._written_when = time.monotonic()  # which no change of the clock moves
        self._owes_validation = False
        self._unwritten: NotWrittenError | None = None
        self.record: dict[str, Any] = {}
        """the run's settings, which the command line fills in, see `lightning_rarlhf.checkpoints.consent`"""

    @property
    def state_key(self) -> str:
        """Constant, so that a resumed run finds its state whatever it monitors now."""
        return "RunCheckpoint"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse metrics of absent judges; ask for a whole validation at once, if the guard's start is not known."""
        super().setup(trainer, pl_module, stage)
        for metric in (self.monitor, self._guard.metric) if stage == "fit" else ():
            if metric is not None:
                require_judge(pl_module, metric, "checkpoint")
        if stage == "fit" and self._guard.metric is not None and self._guard.start is None:
            trainer.num_sanity_val_steps = math.inf

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the state that the fit starts from as written; catch up on a validation that a kill cut short."""
        super().on_train_start(trainer, pl_module)
        self._last_written_at = trainer.global_step
        self._written_when = time.monotonic()
        if self._guard.metric is not None and trainer.global_step > 0:
            self._guard.require_start()  # before it trains
        if self._owes_validation:
            rank_zero_info(f"the run was stopped in the validation after iteration {trainer.global_step}: validating")
            validate_now(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write ``last.ckpt`` if it is due, if a validation follows, or if this is the run's last iteration.

        A checkpoint written later, when the epoch has ended, could not be trained further than this epoch. Only the
        last iteration is written after its validation, for a resumed run that has no iteration left does nothing.
        Nothing is written between the batches of one accumulated step: their gradients are in no checkpoint.
        """
        if in_accumulated_step(trainer):
            return
        last = is_last_iteration(trainer)
        if last and self.monitor is not None:
            # validate once more, whatever the interval: the final state may be the best one
            trainer.should_stop = True
        follows = validation_follows(trainer)
        if follows and last:
            return
        if follows or last or self._is_due(trainer):
            self.write_last(trainer, owes_validation=follows)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the state if it is among the best and within the guard.

        Lightning's own method would pass over every validation that follows a write of ``last.ckpt``: it takes that
        for a save of the same state.
        """
        if trainer.state.fn != TrainerFn.FITTING or getattr(trainer, "fast_dev_run", False):
            return
        if trainer.sanity_checking:
            if self._guard.metric is not None and self._guard.start is None:
                self._guard.begin(self._logged(trainer, self._guard.metric))
            return
        self._keep_best(trainer)
        if in_accumulated_step(trainer):
            return  # a run that goes on from the step before comes to this validation again
        self._last_written_at = -1  # so that a resumed run knows what this validation found; it will not repeat it
        self.write_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the final state of a fit that was stopped early; say so if there is no best one."""
        self.write_last(trainer)
        guard = self._guard
        if guard.metric is not None and guard.refused and not self.best_model_path:
            rank_zero_info(
                f"no best checkpoint: {guard.metric} was above its limit, {guard.limit:.4g}, at all of {guard.refused} "
                "validations; raise checkpoint.max_rise, or the KL penalty"
            )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Do not let a run whose final state could not be written end as if all was well; exports are done by now."""
        if stage == "fit" and self._unwritten is not None:
            raise self._unwritten

    def write_last(self, trainer: pl.Trainer, *, owes_validation: bool = False) -> None:
        """Write ``last.ckpt``, unless it has this state already; to be called between two iterations.

        Args:
            trainer: the trainer.
            owes_validation: the state's own validation is still to come; a resumed run begins with it.
        """
        if getattr(trainer, "fast_dev_run", False) or trainer.global_step == self._last_written_at:
            return
        self._owes_validation = owes_validation
        try:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        except NotWrittenError as error:
            self._or_go_on(error)
            self._unwritten = error
        else:
            self._last_written_at = trainer.global_step
            self._unwritten = None
        self._written_when = time.monotonic()

    @property
    def guard_start(self) -> float | None:
        """The guard's value before the first iteration; None = not known yet."""
        return self._guard.start

    @property
    def written_at(self) -> int:
        """Iterations of the state that ``last.ckpt`` holds; -1 = not known."""
        return self._last_written_at

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the run's settings, which a resumed run compares with its own."""
        checkpoint[CHECKPOINT_KEY] = self.record

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self._guard.state_dict(), "owes_validation": self._owes_validation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state up; the best by another metric are not the best now."""
        if state_dict["monitor"] == self.monitor:
            super().load_state_dict(state_dict)
        self._guard.load_state_dict(state_dict)
        self._owes_validation = state_dict.get("owes_validation", False)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        if trainer.global_step % self.every_n_iterations == 0:
            return True
        if self.every_n_minutes is None:
            return False
        waited = time.monotonic() - self._written_when >= 60 * self.every_n_minutes
        return bool(trainer.strategy.broadcast(waited))  # every process has a clock of its own

    def _keep_best(self, trainer: pl.Trainer) -> None:
        """Save the state if it is one of the best."""
        if self.monitor is None:
            return
        self._require_logged(trainer, self.monitor)
        if not trainer.strategy.reduce_boolean_decision(self._within_guard(trainer)):
            return
        best = {name: copy.copy(getattr(self, name)) for name in _BEST}
        try:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        except NotWrittenError as error:
            vars(self).update(best)
            self._or_go_on(error)

    def _within_guard(self, trainer: pl.Trainer) -> bool:
        guard = self._guard
        return guard.metric is None or guard.allows(self._logged(trainer, guard.metric), trainer.global_step)

    def _logged(self, trainer: pl.Trainer, name: str) -> float:
        self._require_logged(trainer, name)
        return float(trainer.callback_metrics[name])

    def _require_logged(self, trainer: pl.Trainer, name: str) -> None:
        if name not in trainer.callback_metrics:
            logged = ", ".join(sorted(n for n in trainer.callback_metrics if n.startswith("val/"))) or "none"
            raise UserError(f"checkpoint: validation does not log {name!r}; expected one of its metrics: {logged}")


_BEST = ("best_k_models", "best_model_path", "best_model_score", "current_score", "kth_best_model_path", "kth_value")
"""what `ModelCheckpoint` notes of the best states before it writes them"""
