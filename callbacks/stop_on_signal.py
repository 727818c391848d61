"""Ctrl-C, SIGTERM and SLURM's notice end a run between two iterations, with a checkpoint and a fixed exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from callbacks.loop_position import in_accumulated_step, is_last_iteration, validation_follows
from callbacks.run_checkpoint import RunCheckpoint
from lightning_rarlhf.distributed import total


class StoppedBySignal(SystemExit):
    """Ends the process with the exit status that shells give to a signal: 130 = Ctrl-C, 143 = SIGTERM."""


class StopOnSignal(Checkpoint):
    """Finishes the iteration, writes ``last.ckpt``, ends with 128 + the signal's number; a second signal ends at once.

    All processes stop after the same iteration, whichever of them was told. A validation is not finished if
    ``last.ckpt`` holds the state that it validates: the resumed run begins with it. The run's last iteration is not
    stopped after: the run is done, and ends as usual.

    Lightning's own handlers would save in the middle of an update (SLURM), or not at all. A `Checkpoint`, so that the
    other callbacks have seen the iteration's end.
    """

    def __init__(self) -> None:
        self._asked = 0
        self._stopping = 0
        self._previous: dict[int, Any] = {}
        self._trainer: pl.Trainer | None = None

    # Lightning installs its own handlers after `setup`; those before are for the loading of models

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._asked = self._stopping = 0
        self._install(trainer)

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._install(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._install(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._install(trainer)
        self._stop_if_due(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._install(trainer)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._install(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._uninstall()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._uninstall()

    # where a run can end

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the state; the run ends at the next hook, when this iteration's curves have been logged."""
        if in_accumulated_step(trainer) or is_last_iteration(trainer):
            return
        self._stopping = self._agreed(trainer)
        if self._stopping:
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, RunCheckpoint):
                    callback.write_last(trainer, owes_validation=validation_follows(trainer))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._stop_if_due(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop_if_due(trainer)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *position: int
    ) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not _is_written(trainer):
            return  # finished and written first
        self._stop_now(trainer)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *position: int
    ) -> None:
        self._stop_now(trainer)

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *position: int
    ) -> None:
        self._stop_now(trainer)

    def _stop_now(self, trainer: pl.Trainer) -> None:
        self._stopping = self._agreed(trainer)
        self._stop_if_due(trainer)

    def _stop_if_due(self, trainer: pl.Trainer) -> None:
        if not self._stopping:
            return
        if trainer.state.fn == TrainerFn.FITTING:
            resumable = trainer.global_step > 0 and _is_written(trainer)
            after = "go on with --ckpt_path last" if resumable else "this state is in no checkpoint"
            rank_zero_info(f"stopped after {trainer.global_step} iterations; {after}")
            _requeue(trainer, self._stopping)
        launched = isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher) and trainer.local_rank > 0
        # the process that launched this one takes any other status for a crash, and kills the rest
        raise StoppedBySignal(0 if launched and _launches_itself(trainer) else 128 + self._stopping)

    def _agreed(self, trainer: pl.Trainer) -> int:
        """The signal that this or another process has got; 0 = none."""
        if trainer.world_size == 1:
            return self._asked
        asked = torch.zeros(signal.NSIG, dtype=torch.int64, device=trainer.strategy.root_device)
        asked[self._asked] = 1
        return int(total(asked).nonzero().max())

    # the handlers

    def _install(self, trainer: pl.Trainer) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._trainer = trainer
        for number in _signals(trainer):
            handler = signal.getsignal(number)
            if handler != self._note:
                self._previous.setdefault(number, handler)
                signal.signal(number, self._note)

    def _uninstall(self) -> None:
        self._trainer = None
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; end at once on a second one."""
        if self._trainer is None:  # Lightning puts back what it found, which is this
            self._pass_on(number, frame)
        elif self._asked:
            self._end_at_once(self._trainer, number)
        else:
            self._asked = number
            name = signal.Signals(number).name
            if self._trainer.is_global_zero:
                sys.stderr.write(f"\n{name}: stopping after this iteration; once more = at once\n")
                sys.stderr.flush()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        previous = self._previous.get(number, signal.SIG_DFL)
        if callable(previous):
            previous(number, frame)
        elif previous is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _end_at_once(self, trainer: pl.Trainer, number: int) -> None:
        launcher = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGKILL)
        os._exit(128 + number)


def _signals(trainer: pl.Trainer) -> list[int]:
    environment = _environment(trainer)
    notice = [environment.requeue_signal] if isinstance(environment, SLURMEnvironment) else []
    return [signal.SIGINT, signal.SIGTERM, *(int(number) for number in notice if number is not None)]


def _is_written(trainer: pl.Trainer) -> bool:
    """Whether ``last.ckpt`` holds the current state."""
    written = [callback.written_at for callback in trainer.checkpoint_callbacks if isinstance(callback, RunCheckpoint)]
    return trainer.global_step in written


def _environment(trainer: pl.Trainer) -> Any:
    return trainer._accelerator_connector.cluster_environment


def _launches_itself(trainer: pl.Trainer) -> bool:
    return not _environment(trainer).creates_processes_externally


def _requeue(trainer: pl.Trainer, number: int) -> None:
    """Put the SLURM job back into the queue, if the signal was its notice: the same command then goes on."""
    environment = _environment(trainer)
    if not (isinstance(environment, SLURMEnvironment) and environment.auto_requeue and trainer.is_global_zero):
        return
    if number == environment.requeue_signal:
        job = os.environ["SLURM_JOB_ID"]
        if "SLURM_ARRAY_JOB_ID" in os.environ:
            job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        done = subprocess.run(["scontrol", "requeue", job], check=False)
        rank_zero_info(f"scontrol requeue {job}: exit status {done.returncode}")
