from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from callbacks import RunCheckpoint, StopOnSignal
from tests.callbacks.scripted import MemoryLogger, fit

SCRIPT = {step: {"val/cvar_10": float(step)} for step in range(9)}


class Sends(Callback):
    """Signals its own process at one moment: before or in the middle of an iteration, or in a validation."""

    def __init__(self, number: int, hook: str, step: int, times: int = 1) -> None:
        self.number, self.step, self.times = number, step, times
        setattr(self, hook, self.send)

    def send(self, trainer, *_) -> None:
        if trainer.global_step == self.step and not trainer.sanity_checking:
            times, self.times = self.times, 0
            for _ in range(times):
                os.kill(os.getpid(), self.number)


def run(folder: Path, *callbacks: Callback, steps: int = 8, every: int = 3, **more):
    checkpoint = RunCheckpoint(dirpath=str(folder / "checkpoints"), every_n_iterations=100, monitor="val/cvar_10")
    return fit(SCRIPT, [*callbacks, StopOnSignal(), checkpoint], folder, steps=steps, every=every, **more)


def last(folder: Path) -> float:
    return float(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]["weight"])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("step", [0, 1, 3, 6])
def test_the_iteration_is_finished_written_and_not_repeated(tmp_path, number, status, step):
    """Step 3 has been validated when the signal comes; 4 ends an epoch."""
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, Sends(number, "on_train_batch_start", step))
    assert caught.value.code == status
    assert last(tmp_path) == step + 1
    _, module = run(tmp_path, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    assert module.weight.item() == 8
    assert module.validated == [due for due in (3, 6, 8) if due > step]


def test_the_curves_of_the_last_iteration_are_logged(tmp_path):
    class Logs(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            module.log("done", float(trainer.global_step))

    logger = MemoryLogger()
    with pytest.raises(SystemExit):
        run(tmp_path, Logs(), Sends(signal.SIGINT, "on_train_batch_start", 4), logger=logger)
    assert [value for _, name, value in logger.logged if name == "done"] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("hook", ["on_validation_start", "on_validation_batch_start"])
def test_a_validation_is_left_and_begun_anew_by_the_resumed_run(tmp_path, hook):
    with pytest.raises(SystemExit):
        run(tmp_path, Sends(signal.SIGTERM, hook, 3))
    assert last(tmp_path) == 3
    resumed = RunCheckpoint(dirpath=str(tmp_path / "checkpoints"), monitor="val/cvar_10", save_top_k=9)
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    _, module = fit(SCRIPT, [resumed], tmp_path, steps=8, every=3, ckpt_path=checkpoint)
    assert module.validated == [3, 6, 8]
    assert sorted(float(score) for score in resumed.best_k_models.values()) == [3.0, 6.0, 8.0]


def test_the_last_iteration_and_its_validation_are_finished(tmp_path):
    for number, hook in enumerate(("on_train_batch_start", "on_validation_batch_start")):
        folder = tmp_path / str(number)
        trainer, module = run(folder, Sends(signal.SIGINT, hook, 7 + number))
        assert (module.validated, last(folder)) == ([3, 6, 8], 8)
        assert not trainer.interrupted


@pytest.mark.parametrize(
    ("when", "told"),
    [
        ("before training", "stopped after 0 iterations; this state is in no checkpoint"),
        ("in training", "stopped after 2 iterations; go on with --ckpt_path last"),
    ],
)
def test_it_says_how_to_go_on_where_there_is_something_to_go_on_from(tmp_path, caplog, capsys, when, told):
    class Interrupts(Callback):
        def on_validation_batch_start(self, trainer, *_) -> None:
            if trainer.sanity_checking and when == "before training":
                os.kill(os.getpid(), signal.SIGINT)

    caplog.set_level("INFO")
    script = {step: {"val/cvar_10": 1.0} for step in range(9)}
    checkpoint = RunCheckpoint(dirpath=str(tmp_path), monitor="val/cvar_10", guard="val/cvar_10")
    with pytest.raises(SystemExit):
        fit(
            script,
            [Interrupts(), Sends(signal.SIGINT, "on_train_batch_start", 1), StopOnSignal(), checkpoint],
            tmp_path,
        )
    assert told in caplog.text + capsys.readouterr().err


def test_the_handlers_that_were_there_are_put_back(tmp_path):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background of a shell ignores it
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run(tmp_path)
    with pytest.raises(SystemExit):
        run(tmp_path / "stopped", Sends(signal.SIGINT, "on_train_batch_start", 2))
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert [handler in (old, signal.SIG_DFL) or callable(handler) for handler, old in zip(after, before, strict=True)]


def test_a_second_signal_ends_at_once(tmp_path):
    program = (
        "import signal, sys\nfrom pathlib import Path\n"
        "from tests.callbacks.test_stop_on_signal import Sends, run\n"
        "run(Path(sys.argv[1]), Sends(signal.SIGINT, 'on_train_batch_start', 4, times=2))\n"
    )
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=root, capture_output=True, check=False)
    assert done.returncode == 130
    assert b"Traceback" not in done.stderr
    assert last(tmp_path) == 3  # of the validation before it


def test_slurms_notice_requeues_the_job(tmp_path, monkeypatch):
    called = tmp_path / "called"
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $* > {called}\n")
    (tmp_path / "scontrol").chmod(0o755)
    for name, value in {
        "SLURM_NTASKS": "1",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "train",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, Sends(signal.SIGUSR1, "on_train_batch_start", 1))
    assert caught.value.code == 128 + signal.SIGUSR1
    assert called.read_text() == "requeue 7\n"
    assert last(tmp_path) == 2
    assert not list(tmp_path.glob("hpc_ckpt*"))
