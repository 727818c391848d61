"""The processes of `benchmarks.faults`: `train.py` in a new interpreter, or forked from one that has imported it.

Importing takes longer than a tiny run. A fork is a process of its own all the same, made before anything was computed.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 600.0
"""seconds that a run may take on a busy machine; it takes ten on a free one"""
TIMED_OUT = "timed out"
"""how the line of a run begins that was given up: it hung, or the machine was too busy; the tracebacks tell"""
_FIXED = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
_PRELOADED = ["train", "torch.optim", "transformers.models.gpt2.modeling_gpt2", "benchmarks.fault_parts"]


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    errors: str
    timed_out: bool = False

    @property
    def failure(self) -> str:
        """What to say of an end that was not expected."""
        if self.timed_out:
            said = [line[:200] for line in self.errors.splitlines()]
            return "\n".join([f"{TIMED_OUT}:", *said[-200:]])
        return f"status {self.status}: {self.errors[-500:]}"

    @property
    def complaint(self) -> str:
        """The line that the user is left with."""
        lines = [line for line in self.errors.splitlines() if line.startswith("error: ")]
        return lines[0] if len(lines) == 1 and "Traceback" not in self.errors else ""


class Process:
    """A started ``train.py``, in a process group of its own."""

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        *,
        file_limit: int | None = None,
        fresh: bool = False,
    ) -> None:
        self.phase_file = folder.with_suffix(".phase")
        self.phase_file.unlink(missing_ok=True)
        self._error_file = folder.with_suffix(".stderr.txt")
        self._error_file.write_text("")
        changes = {**_FIXED, "FAULT_PHASE": str(self.phase_file), **environment}
        start = _fresh if fresh else _forked
        self._process = start(list(arguments), self._error_file, changes, file_limit)

    def wait_for(self, phase: str | None, iteration: int) -> bool:
        """Wait until this is done (None = anything) at this iteration or later; False = the process ended first."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            now = self.phase_file.read_text().split() if self.phase_file.exists() else []
            if len(now) == 2 and int(now[1]) >= iteration and phase in (None, now[0]):
                return True
            time.sleep(0.001)
        return False

    def send(self, number: int) -> None:
        """Signal the first process of the run."""
        if self._process.poll() is None:
            os.kill(self._process.pid, number)

    def kill_all(self) -> None:
        """SIGKILL every process of the run."""
        self._signal_all(signal.SIGKILL)

    def wait(self, patience: float = PATIENCE) -> Ended:
        """Until every process of the run has ended; those that have not by then say where they are, and are killed."""
        deadline, timed_out = time.monotonic() + patience, False
        while self._process.poll() is None or self._has_others():
            if time.monotonic() > deadline:
                timed_out = True
                self._signal_all(signal.SIGABRT)
                time.sleep(2)
                self.kill_all()
                break
            time.sleep(0.02)
        status = self._process.wait()
        return Ended(status, self._error_file.read_text(errors="replace"), timed_out)

    def _signal_all(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:  # no group yet, or no more
            with suppress(ProcessLookupError):
                self.send(number)

    def _has_others(self) -> bool:
        try:
            os.killpg(self._process.pid, 0)
        except ProcessLookupError:
            return False
        return True


class _Started(Protocol):
    """What `subprocess.Popen` can do."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self) -> int: ...


def _fresh(arguments: list[str], errors: Path, changes: dict[str, str], file_limit: int | None) -> _Started:
    with errors.open("a") as stream:
        return subprocess.Popen(
            [sys.executable, "-X", "faulthandler", str(ROOT / "train.py"), *arguments],
            cwd=ROOT,
            env=_inherited() | changes,
            stdout=subprocess.DEVNULL,
            stderr=stream,
            start_new_session=True,
            preexec_fn=_limiter(file_limit),  # noqa: PLW1509 - one thread
        )


def _forked(arguments: list[str], errors: Path, changes: dict[str, str], file_limit: int | None) -> _Started:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)  # counts for the first start only
    os.environ |= _FIXED  # the libraries read them when they are imported
    process = context.Process(target=_train, args=(arguments, str(errors), _inherited() | changes, file_limit))
    process.start()
    return _Forked(process)


@dataclass(frozen=True)
class _Forked:
    process: BaseProcess

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int:
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode


def _train(arguments: list[str], errors: str, environment: dict[str, str], file_limit: int | None) -> None:
    """What the forked process does."""
    os.setsid()
    os.environ.clear()
    os.environ |= environment
    os.chdir(ROOT)
    _redirect(os.devnull, 1)
    _redirect(errors, 2)
    faulthandler.enable()
    _limiter(file_limit)()
    import train

    sys.argv = [str(ROOT / "train.py"), *arguments]
    train.main()


def _redirect(path: str, descriptor: int) -> None:
    target = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.dup2(target, descriptor)
    os.close(target)


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "SLURM"))}


def _limiter(limit: int | None) -> Callable[[], Any]:
    return lambda: limit and resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
