"""A worker's side of the wire: it stays loaded, and runs one iteration for each line that it is sent.

So two libraries can take turns on one machine, and what else the machine does meets both alike. Standard library only.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

MARK = "@benchmark "
_STATUS = Path("/proc/self/status")


class Turns:
    """Waits for a turn, and reports it with its wall-clock time and peak memory."""

    def __init__(self) -> None:
        # whatever else a library prints goes to stderr, so that stdout carries reports alone
        self._wire = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._resting = 0.0

    def ready(self) -> None:
        """Everything is loaded: what is in memory now is not the iteration's."""
        self._resting = _megabytes("VmRSS")
        self._report({"ready": True, "resting_mb": self._resting})

    def wait(self) -> bool:
        """Whether there is another turn; returns when it begins."""
        if not sys.stdin.readline().strip():
            return False
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        self._start, self._used = time.perf_counter(), time.process_time()
        return True

    def done(
        self, phases: dict[str, float], *, response_tokens: int, after: Callable[[], dict[str, float]] = dict
    ) -> None:
        """The turn is over; `phases` are seconds. `after` runs off the clock, while the others still wait."""
        seconds, cpu = time.perf_counter() - self._start, time.process_time() - self._used
        peak = _megabytes("VmHWM")
        turn = {"seconds": seconds, "cpu_seconds": cpu, "phases": phases, "peak_mb": peak}
        self._report({**turn, "response_tokens": response_tokens, **after()})

    def _report(self, content: dict[str, object]) -> None:
        self._wire.write(MARK + json.dumps(content) + "\n")
        self._wire.flush()


class Phases:
    """Adds up the seconds of each call that passes through `timed`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, phase: str, function: Callable[..., object]) -> Callable[..., object]:
        """`function`, whose time counts as `phase`."""

        def call(*args: object, **kwargs: object) -> object:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

        return call

    def take(self) -> dict[str, float]:
        """The seconds so far; the next turn begins at 0."""
        taken, self.seconds = self.seconds, {}
        return taken


def _megabytes(name: str) -> float:
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) / 1024
