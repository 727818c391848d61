"""Runs command lines of ``train.py`` one after the other in each of two processes that work together.

``python -m tests.two_processes COMMANDS.json`` is one of them; `together` starts both as torchrun would.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def scripted(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The score that the file RARLHF_SCORES gives a prompt (0 = none), and a little for the response's length."""
    given = json.loads(Path(os.environ["RARLHF_SCORES"]).read_text())
    return [given.get(p, 0.0) + 0.01 * len(r) for p, r in zip(prompts, responses, strict=True)]


def start(folder: Path, commands: Sequence[Sequence[str]], **environment: str) -> list[subprocess.Popen]:
    """Both processes; what they print goes to ``<folder>/rank<r>.txt``."""
    (folder / "commands.json").write_text(json.dumps(list(map(list, commands))))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(2):
        settings = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "GROUP_RANK": 0,
            "WORLD_SIZE": 2,
            "LOCAL_WORLD_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "TORCHELASTIC_RUN_ID": "test",
        }
        with (folder / f"rank{rank}.txt").open("w") as output:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.two_processes", str(folder / "commands.json")],
                    cwd=ROOT,
                    env={**os.environ, **{name: str(value) for name, value in settings.items()}, **environment},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    return processes


@contextlib.contextmanager
def started(folder: Path, commands: Sequence[Sequence[str]], **environment: str) -> Iterator[list[subprocess.Popen]]:
    """As `start`; none of them outlives the body."""
    processes = start(folder, commands, **environment)
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def together(folder: Path, commands: Sequence[Sequence[str]], **environment: str) -> None:
    """Run the commands in both processes to their end; fails with what was printed."""
    with started(folder, commands, **environment) as processes:
        statuses = [process.wait(timeout=540) for process in processes]
    assert statuses == [0, 0], "\n".join((folder / f"rank{rank}.txt").read_text()[-3000:] for rank in range(2))


if __name__ == "__main__":
    import train

    for command in json.loads(Path(sys.argv[1]).read_text()):
        train.main(command)
