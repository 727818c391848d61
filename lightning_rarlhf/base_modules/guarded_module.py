"""A Lightning module whose weights never take a number that is not finite: it stops, or skips, and leaves evidence."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_rarlhf.config import GuardConfig
from lightning_rarlhf.data_types import PromptBatch, Rollout, TextBatch
from lightning_rarlhf.distributed import world_size
from lightning_rarlhf.errors import NumericalError
from lightning_rarlhf.records.crash_bundle import evidence_of, write_crash_bundle
from lightning_rarlhf.stepping.guards import agree, broken_gradients, gradient_norm, judge_gradient
from lightning_rarlhf.stepping.step_mean import StepMean
from lightning_rarlhf.terminal.plain_text import visible
from lightning_rarlhf.terminal.redaction import redacted_yaml
from lightning_rarlhf.trainer.run_length import require_steps

CRASH = "crash"
"""folder of a run's crash bundles"""

Result = TypeVar("Result")


class GuardedModule(pl.LightningModule):
    """Base of the modules that train.

    Attributes:
        guard: what happens on a failure.
        skipped: iterations (optimizer steps, in automatic optimization) that the run has skipped so far.
        rollout: what the iteration under way has sampled, for a crash bundle; None outside an iteration.
        config_text: YAML of the run's full configuration, set by the command line, without secrets.
    """

    def __init__(self, guard: GuardConfig) -> None:
        super().__init__()
        self.guard = guard
        self.skipped = 0
        self.rollout: Rollout | None = None
        self.config_text = ""
        self._in_a_row = 0
        self._bundles = 0
        self._batch: PromptBatch | TextBatch | None = None
        self._step_mean = StepMean()

    def setup(self, stage: str) -> None:
        """Refuse a fit that would train nothing."""
        if stage == "fit":
            require_steps(self.trainer)

    def count_iteration(self) -> None:
        """Let the trainer's `global_step` rise by one, whatever the optimizer did in this iteration."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer._on_before_step()
        optimizer._on_after_step()

    def require_fit(self) -> None:
        """Refuse settings that only a fit reads; cheap, so that the command line asks before anything is loaded.

        Raises:
            UserError: the reason, and what to set instead.
        """

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """A part of an iteration that processes do by themselves: a failure of one is a failure of all.

        Raises:
            NumericalError: the body met numbers that are not finite, here or in another process.
        """
        problem: NumericalError | None = None
        try:
            yield
        except NumericalError as error:
            problem = error
        agree(problem, self.device)

    def fail(self, error: NumericalError) -> None:
        """Write the crash bundle; return if the iteration is to be skipped.

        Raises:
            NumericalError: the configuration says stop, or too many iterations were skipped in a row.
        """
        self.skipped += 1
        self._in_a_row += 1
        message = f"iteration {self.trainer.global_step}: {error}{self._write_bundle(error)}"
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.zero_grad()
        if self.guard.on_failure == "stop":
            raise NumericalError(message, rows=error.rows) from error
        if self._in_a_row > self.guard.max_skips:
            raise NumericalError(
                f"{message}; {self.guard.max_skips} iterations before it were skipped one after the other "
                "(model.guard.max_skips)",
                rows=error.rows,
            ) from error
        rank_zero_warn(visible(f"{message}; skipped"))

    def log_skipped(self) -> None:
        """Write the count as a curve, where it can be other than 0."""
        if self.guard.on_failure == "skip":
            self.log("guard/skipped", float(self.skipped), on_step=True, on_epoch=False)

    def succeed(self) -> None:
        """An iteration went well."""
        self._in_a_row = 0

    @property
    def wrote_evidence(self) -> bool:
        """Whether there is a crash bundle of this run."""
        return self._bundles > 0

    def _write_bundle(self, error: NumericalError) -> str:
        """Where the bundle is, as the end of a sentence; a disk that is full must not hide what happened."""
        if self._bundles >= self.guard.crash_bundles:
            return ""
        self._bundles += 1
        rank = f"-rank{self.global_rank}" if self.trainer.world_size > 1 else ""
        folder = Path(self.trainer.default_root_dir) / CRASH / f"iteration-{self.trainer.global_step}{rank}"
        try:
            return f"; its batch is in {write_crash_bundle(folder, self._facts(error), self._tensors(error))}"
        except (OSError, RuntimeError) as problem:
            return f"; its batch could not be written to {folder} ({getattr(problem, 'strerror', None) or problem})"

    def _facts(self, error: NumericalError) -> dict[str, Any]:
        gradients = {name: parameter.grad for name, parameter in self.named_parameters()}
        return {
            "message": str(error),
            "module": type(self).__name__,
            "iteration": self.trainer.global_step,
            "epoch": self.trainer.current_epoch,
            "rows": list(error.rows),
            "prompt_index": self._batch.index.tolist() if isinstance(self._batch, PromptBatch) else None,
            "gradients_not_finite": broken_gradients(gradients),
            "resumed_from": self.trainer.ckpt_path,
            **{name: value for name, value in error.evidence.items() if not isinstance(value, Tensor)},
            **self.crash_facts(),
            "config": redacted_yaml(self.config_text),
        }

    def crash_facts(self) -> dict[str, Any]:
        """What a method adds to its crash bundles."""
        return {}

    def _tensors(self, error: NumericalError) -> dict[str, Tensor]:
        batch = {} if self._batch is None else {f"batch.{n}": t for n, t in evidence_of(self._batch).items()}
        rollout = {} if self.rollout is None else {f"rollout.{n}": t for n, t in evidence_of(self.rollout).items()}
        return (rollout or batch) | {name: value for name, value in error.evidence.items() if isinstance(value, Tensor)}

    def share_of_step(self, losses: Tensor, count: Tensor, batch_idx: int) -> Tensor:
        """What an automatic `training_step` returns, so that each step follows the mean over all that its batches hold.

        Args:
            losses: a scalar, their sum on this process.
            count: a scalar, of how many (tokens, labels, ...) on all processes.
            batch_idx: 0-based place of the batch in its epoch.
        """
        together = self.trainer.accumulate_grad_batches
        share = self._step_mean.share(losses, count, begins=batch_idx % together == 0)
        # Lightning divides by `together`; DDP and FSDP average over the processes, whose shares must add up
        return share * world_size() * together

    # automatic optimization: the closure runs before anything is changed, so an error in it leaves everything as it was

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Look at the gradient before the optimizer does."""

        def checked() -> Any:
            assert optimizer_closure is not None
            loss = optimizer_closure()
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            self._step_mean.settle(parameters)
            judge_gradient(gradient_norm(parameters))
            return loss

        try:
            optimizer.step(closure=checked)
            self.succeed()
        except NumericalError as error:
            self.fail(error)

    # hooks

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._batch = batch

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Drop what was kept for a crash bundle; with automatic optimization, log what was skipped."""
        self._batch = self.rollout = None
        if self.automatic_optimization:
            self.log_skipped()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["guard"] = {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get("guard", {"skipped": 0, "in_a_row": 0})
        self.skipped, self._in_a_row = state["skipped"], state["in_a_row"]
        if self.skipped:
            rank_zero_info(f"guard: the run has skipped {self.skipped} iterations so far")


def guarded(step: Callable[..., Result]) -> Callable[..., Result | None]:
    """For a `training_step` with manual optimization: it counts as one iteration, also when a guard skips it."""

    @functools.wraps(step)
    def wrapper(self: GuardedModule, *args: Any, **kwargs: Any) -> Result | None:
        try:
            result = step(self, *args, **kwargs)
            self.succeed()
        except NumericalError as error:
            self.fail(error)
            result = None
        self.log_skipped()
        self.count_iteration()
        return result

    return wrapper
