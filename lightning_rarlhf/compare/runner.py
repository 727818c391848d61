"""Runs the stages of a comparison one after the other, leaves out what is done, and goes on where a run was stopped."""

from __future__ import annotations

import fcntl
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NoReturn
from uuid import uuid4

from lightning_rarlhf.compare.stages import Command, Stage
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.one_move import in_one_move
from lightning_rarlhf.records.results_file import file_sha256

State = Literal["done", "stopped", "to do"]
Run = Callable[[Sequence[str], Path], int]
"""Runs arguments of train.py, with its output in a file; returns the exit status."""


def states_of(stages: Sequence[Stage]) -> dict[str, State]:
    """The state of each stage, by name; `stages` as `plan` orders them.

    Raises:
        UserError: one was done or begun with other settings, or from what another stage no longer holds.
    """
    states = {stage.name: state_of(stage) for stage in stages}
    by_name = {stage.name: stage for stage in stages}
    stale: dict[str, str] = {}
    for stage in stages:
        if states[stage.name] == "to do" or "made_of" not in _recorded(stage):
            continue
        for needed, product in _recorded(stage)["made_of"].items():
            if needed in stale or states.get(needed) != "done" or _recorded(by_name[needed]).get("product") != product:
                stale.setdefault(stage.name, needed)
    if stale:
        first, needed = next(iter(stale.items()))
        others = f", and {len(stale) - 1} more stages are stale too" if len(stale) > 1 else ""
        fits = [by_name[name].folder for name in stale if by_name[name].kind == "fit"]
        tests = [by_name[name].done for name in stale if by_name[name].folder not in fits]
        raise UserError(
            f"{first} was made from another {needed} than the one that is, or will be, here{others}; to run them "
            f"again delete {' '.join(map(str, [*fits, *tests]))}"
        )
    return states


def state_of(stage: Stage) -> State:
    """Whether the stage was done, was begun, or was not; of the stage alone.

    Raises:
        UserError: it was done or begun with other settings.
    """
    begun = stage.done.is_file() or (stage.kind == "fit" and _checkpoint(stage).is_file())
    if begun and (record := _recorded(stage)):
        former = tuple(record["command"])
        difference = _difference(former, stage.command) if former != stage.command else _changed_file(stage, record)
        if difference:
            raise UserError(
                f"{stage.folder}: {stage.name} was run with other settings ({difference}); "
                "delete the folder to run it again, or choose another --runs"
            )
    return "done" if stage.done.is_file() else "stopped" if begun else "to do"


def run_stages(stages: Sequence[Stage], run: Run, say: Callable[[str], None]) -> list[str]:
    """Run what is not done. A stage that fails stops those that need it, and no other.

    Returns:
        a line for each stage that failed or could not start.

    Raises:
        UserError: before anything runs, if a finished stage has other settings or was made from another product.
    """
    states = states_of(stages)
    by_name = {stage.name: stage for stage in stages}
    missing: dict[str, str] = {}
    for number, stage in enumerate(stages, start=1):
        title = f"[{number}/{len(stages)}] {stage.name}"
        lacking = [name for name in stage.needs if name in missing]
        if states[stage.name] == "done":
            say(f"{title}: done before{_seconds_of(stage)}")
        elif lacking:
            missing[stage.name] = f"{stage.name}: not begun, {lacking[0]} is missing"
            say(f"{title}: not begun, {lacking[0]} is missing")
        elif problem := _run_one(stage, states[stage.name], _made_of(stage, by_name), run, title, say):
            missing[stage.name] = problem
            say(problem)
    return list(missing.values())


def _run_one(
    stage: Stage, state: State, made_of: Mapping[str, str | None], run: Run, title: str, say: Callable[[str], None]
) -> str | None:
    """Run a stage; what went wrong, or None."""
    say(f"{title}: {'goes on' if state == 'stopped' else 'begins'}")
    stage.folder.mkdir(parents=True, exist_ok=True)
    before = _spent(stage) if state == "stopped" else 0.0
    content = {"stage": stage.name, "command": list(stage.command), "configs": _hashes(stage), "made_of": {**made_of}}
    _note(stage, {**content, "seconds": round(before, 1)})
    log = stage.folder / f"{stage.kind}.log"
    began = time.monotonic()
    resume = ("--ckpt_path", "last") if state == "stopped" else ()
    status = run((*stage.command, *resume), log)
    seconds = time.monotonic() - began
    finished = status == 0 and stage.done.is_file()
    product = {"product": uuid4().hex} if finished else {}
    _note(stage, {**content, "seconds": round(before + seconds, 1), **product})
    if finished:
        say(f"{title}: {seconds:.0f} s")
        return None
    why = f"exit status {status}" if status else f"stopped before {stage.done.name} was written"
    return f"{stage.name}: {why}: {_last_line(log)} (whole log: {log})"


def train(arguments: Sequence[str], log: Path) -> int:
    """`train.py` in a process of its own, which ends with this one.

    Of Ctrl-C the terminal tells that process, too: it is left to write its checkpoint, which a second signal would cut
    short. A second Ctrl-C ends it.
    """
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ train.py {shlex.join(arguments)}\n")
        file.flush()
        process = subprocess.Popen([sys.executable, "-m", "train", *arguments], stdout=file, stderr=subprocess.STDOUT)
        with _told_to_stop():
            try:
                try:
                    return process.wait()
                except KeyboardInterrupt:
                    process.wait()
                    raise
            finally:
                if process.returncode is None:
                    process.terminate()  # a fit then ends with its batch
                    process.wait()


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


def _recorded(stage: Stage) -> dict[str, Any]:
    """What `_note` wrote; empty if this runner did not run the stage."""
    record: dict[str, Any] = json.loads(_record(stage).read_text()) if _record(stage).is_file() else {}
    return record


def _made_of(stage: Stage, by_name: Mapping[str, Stage]) -> dict[str, str | None]:
    """Which product of each stage that it needs is there now; None = one of unknown origin."""
    return {needed: _recorded(by_name[needed]).get("product") for needed in stage.needs}


def _hashes(stage: Stage) -> dict[str, str]:
    """SHA-256 of each configuration file of the command."""
    names = [value for word, value in pairwise(stage.command) if word == "--config"]
    return {name: file_sha256(Path(name)) for name in names if Path(name).is_file()}


def _changed_file(stage: Stage, record: Mapping[str, Any]) -> str | None:
    now = _hashes(stage)
    changed = [name for name, sha256 in record.get("configs", {}).items() if now.get(name) != sha256]
    return f"{changed[0]} has changed since" if changed else None


def _note(stage: Stage, content: Mapping[str, Any]) -> None:
    with in_one_move(_record(stage)) as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _spent(stage: Stage) -> float:
    return float(_recorded(stage).get("seconds", 0.0))


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
