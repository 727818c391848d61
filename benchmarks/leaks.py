"""Memory and open files of a long tiny run: both must stay flat.

    python -m benchmarks.leaks                       # 2,000 iterations, with validations and checkpoints between

Prints the slope of the resident memory in MB per 100 iterations (least squares over the second half of the run: the
first fills caches) and the number of open files; exit status 1 above 1 MB per 100 iterations, or if files stay open.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback

from benchmarks.fault_world import World

LIMIT = 1.0
"""MB per 100 iterations"""


class Watch(Callback):
    """Every 10th iteration: resident memory in MB, open files and threads of the process."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step % 10:
            return
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        line = [trainer.global_step, pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir("/proc/self/fd"))]
        with Path(self.path).open("a") as file:
            file.write(json.dumps(line) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, measure and judge; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.leaks", description=__doc__.partition("\n")[0])
    parser.add_argument("--iterations", type=int, default=2000)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="leaks-") as folder:
        measured = Path(folder) / "measured.jsonl"
        watch = json.dumps({"class_path": "benchmarks.leaks.Watch", "init_args": {"path": str(measured)}})
        world = World(Path(folder), chosen.iterations, 1, ["--trainer.logger", "true", f"--trainer.callbacks+={watch}"])
        ended = world.run("long").start("--checkpoint.every_n_iterations", "50").wait(patience=7200)
        if ended.status != 0:
            sys.stderr.write(ended.errors)
            return 1
        rows = np.array([json.loads(line) for line in measured.read_text().splitlines()])
    return judge(rows)


def judge(rows: np.ndarray) -> int:
    """Print the slope and the open files of `rows` [n, 3] (iteration, MB, files); the exit status."""
    steps, memory, files = rows[len(rows) // 2 :].T
    slope = float(np.polyfit(steps, memory, 1)[0]) * 100
    early, late = int(np.median(rows[: len(rows) // 4, 2])), int(np.median(files))
    print(f"iterations {rows[0, 0]:.0f} to {rows[-1, 0]:.0f}: resident memory {rows[0, 1]:.1f} to {rows[-1, 1]:.1f} MB")
    print(f"slope over the second half: {slope:+.3f} MB per 100 iterations (limit {LIMIT})")
    print(f"open files: {early} in the first quarter, {late} in the second half")
    return int(slope >= LIMIT or late > early)


if __name__ == "__main__":
    sys.exit(main())
