"""Workers: processes that hold one library each and run an iteration when they are told to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.environments import python_of, script_of
from benchmarks.serve import MARK
from benchmarks.workload import Workload

ROOT = Path(__file__).resolve().parent.parent


class Worker:
    """One library with its models loaded; waits between turns."""

    def __init__(self, library: str, folder: Path, work: Workload, threads: int, root: Path = ROOT) -> None:
        """Start it.

        Args:
            library: "ours", or a peer such as trl==0.7.2.
            folder: what `save_models` wrote.
            work: the shapes.
            threads: of torch.
            root: the checkout that "ours" is taken from, for before-and-after comparisons.
        """
        if library == "ours":
            command = [sys.executable, str(ROOT / "benchmarks" / "ours.py")]
        else:
            command = [str(python_of(library)), str(script_of(library))]
        self.library = library
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        self._process = subprocess.Popen(
            [*command, str(folder), json.dumps(work.to_dict())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ
            | {
                "OMP_NUM_THREADS": str(threads),
                "MKL_NUM_THREADS": str(threads),
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
                # the checkout under test first; the worker's own files are this checkout's
                "PYTHONPATH": os.pathsep.join([str(root), str(ROOT)]),
                "PYTHONWARNINGS": "ignore",
                "TRL_EXPERIMENTAL_SILENCE": "1",
            },
        )
        self.resting_mb: float = self._read()["resting_mb"]

    def turn(self) -> dict[str, Any]:
        """Run one iteration; what it took."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                report: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return report
        self._errors.seek(0)
        last = self._errors.read().decode()[-3000:]
        raise SystemExit(f"benchmark: the worker of {self.library} ended; its last words:\n{last}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()
