"""Runs the stages of a comparison one after the other, leaves out what is done, and goes on where a run was stopped."""

from __future__ import annotations

import fcntl
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NoReturn

from lightning_rarlhf.compare.stages import Command, Stage
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.one_move import in_one_move

State = Literal["done", "stopped", "to do"]
Run = Callable[[Sequence[str], Path], int]
"""Runs arguments of train.py, with its output in a file; returns the exit status."""


def state_of(stage: Stage) -> State:
    """Whether the stage was done, was begun, or was not.

    Raises:
        UserError: it was done or begun with other settings.
    """
    record = _record(stage)
    begun = stage.done.is_file() or (stage.kind == "fit" and _checkpoint(stage).is_file())
    if begun and record.is_file():
        former = tuple(json.loads(record.read_text())["command"])
        if former != stage.command:
            raise UserError(
                f"{stage.folder}: {stage.name} was run with other settings ({_difference(former, stage.command)}); "
                "delete the folder to run it again, or choose another --runs"
            )
    return "done" if stage.done.is_file() else "stopped" if begun else "to do"


def run_stages(stages: Sequence[Stage], run: Run, say: Callable[[str], None]) -> list[str]:
    """Run what is not done. A stage that fails stops those that need it, and no other.

    Returns:
        a line for each stage that failed or could not start.

    Raises:
        UserError: before anything runs, if a finished stage has other settings.
    """
    states = {stage.name: state_of(stage) for stage in stages}
    missing: dict[str, str] = {}
    for number, stage in enumerate(stages, start=1):
        title = f"[{number}/{len(stages)}] {stage.name}"
        lacking = [name for name in stage.needs if name in missing]
        if states[stage.name] == "done":
            say(f"{title}: done before{_seconds_of(stage)}")
        elif lacking:
            missing[stage.name] = f"{stage.name}: not begun, {lacking[0]} is missing"
            say(f"{title}: not begun, {lacking[0]} is missing")
        elif problem := _run_one(stage, states[stage.name], run, title, say):
            missing[stage.name] = problem
            say(problem)
    return list(missing.values())


def _run_one(stage: Stage, state: State, run: Run, title: str, say: Callable[[str], None]) -> str | None:
    """Run a stage; what went wrong, or None."""
    say(f"{title}: {'goes on' if state == 'stopped' else 'begins'}")
    stage.folder.mkdir(parents=True, exist_ok=True)
    before = _spent(stage) if state == "stopped" else 0.0
    _note(stage, before)
    log = stage.folder / f"{stage.kind}.log"
    began = time.monotonic()
    resume = ("--ckpt_path", "last") if state == "stopped" else ()
    status = run((*stage.command, *resume), log)
    seconds = time.monotonic() - began
    _note(stage, before + seconds)
    if status == 0 and stage.done.is_file():
        say(f"{title}: {seconds:.0f} s")
        return None
    why = f"exit status {status}" if status else f"stopped before {stage.done.name} was written"
    return f"{stage.name}: {why}: {_last_line(log)} (whole log: {log})"


def train(arguments: Sequence[str], log: Path) -> int:
    """`train.py` in a process of its own, which ends with this one."""
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ train.py {shlex.join(arguments)}\n")
        file.flush()
        process = subprocess.Popen([sys.executable, "-m", "train", *arguments], stdout=file, stderr=subprocess.STDOUT)
        try:
            with _told_to_stop():
                return process.wait()
        except BaseException:
            process.terminate()  # a fit then ends with its batch
            process.wait()
            raise


@contextmanager
def alone(runs: Path) -> Iterator[None]:
    """Hold the folder, so that no second comparison writes into it.

    Raises:
        UserError: another one holds it.
    """
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{runs}: another comparison is running here; wait for it, or choose --runs") from None
        yield


@contextmanager
def _told_to_stop() -> Iterator[None]:
    """SIGTERM as an exception, for as long as a stage runs."""

    def stop(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _record(stage: Stage) -> Path:
    return stage.folder / f"{stage.kind}-stage.json"


def _note(stage: Stage, seconds: float) -> None:
    content = {"stage": stage.name, "command": list(stage.command), "seconds": round(seconds, 1)}
    with in_one_move(_record(stage)) as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _spent(stage: Stage) -> float:
    return float(json.loads(_record(stage).read_text())["seconds"]) if _record(stage).is_file() else 0.0


def _seconds_of(stage: Stage) -> str:
    return f" ({_spent(stage):.0f} s)" if _record(stage).is_file() else ""


def _checkpoint(stage: Stage) -> Path:
    return stage.folder / "checkpoints" / "last.ckpt"


def _difference(former: Command, now: Command) -> str:
    """The first words in which two commands differ."""
    for old, new in zip(former, now, strict=False):
        if old != new:
            return f"{old} then, {new} now"
    longer = former[len(now) :] or now[len(former) :]
    return f"{shlex.join(longer)} only {'then' if len(former) > len(now) else 'now'}"


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing was printed"
