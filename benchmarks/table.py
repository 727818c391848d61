"""Every figure of docs/performance.md, one JSON file a row; rows that have their file are not measured again.

python -m benchmarks.table --out runs/benchmarks              # all rows
python -m benchmarks.table --out runs/benchmarks --rows tiny-1 tiny-0.4
python -m benchmarks.table --out runs/benchmarks --list
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.iteration import OLD_TRL, against
from benchmarks.models import save_models
from benchmarks.workers import ROOT, Worker
from benchmarks.workload import Workload, workload

Row = Callable[[int, int], dict[str, Any]]
"""Takes the number of threads and of turns."""
OLD, NEW = OLD_TRL, "trl==1.9.2"
AS_CALLED = 4
"""prompts that TRL 0.7.2 generates from at a time by default, which the paper's authors leave"""
LEVELS = (0.25, 0.5, 0.75, 1.0)
VOCABULARIES = (8_000, 16_000, 32_000)


def pair(
    size: str,
    level: float,
    ours: str,
    peer: str,
    theirs: str = "32-true",
    *,
    compiled: bool = False,
    generate_batch: int = 0,
) -> Row:
    """Turn by turn against a peer; precisions may differ."""
    work = workload(size, "imdb", risk_level=level, precision=ours)
    own = replace(work, compile_sampling=compiled)
    other = replace(work, precision=theirs, generate_batch=generate_batch)
    return lambda threads, turns: against(own, other, [peer], threads, turns)


def levels(threads: int, turns: int) -> dict[str, Any]:
    """The update's time over the kept episodes, against that of all episodes."""
    works = [workload("tiny", "imdb", risk_level=level) for level in LEVELS]
    seconds = {work.risk_level: figures["update"] for work, figures in _ours(works, threads, turns)}
    per_episode = {work.risk_level: seconds[work.risk_level] / work.kept for work in works}
    return {
        "update_seconds": seconds,
        "per_episode_against_all": {level: cost / per_episode[1.0] for level, cost in per_episode.items()},
    }


def vocabularies(threads: int, turns: int) -> dict[str, Any]:
    """Memory that comes and goes, less the head's gradient and Adam's two moments, which V must cost."""
    works = [workload("tiny", "imdb", risk_level=0.4, vocabulary=size) for size in VOCABULARIES]
    memory = {work.vocabulary: figures["iteration_mb"] for work, figures in _ours(works, threads, turns)}
    head = {work.vocabulary: 3 * 4 * work.vocabulary * work.hidden / 2**20 for work in works}
    logits = {work.vocabulary: 4 * work.kept * work.response * work.vocabulary / 2**20 for work in works}
    return {
        "iteration_mb": memory,
        "head_mb": head,
        "without_head_mb": {size: memory[size] - head[size] for size in memory},
        "whole_logits_mb": logits,
    }


def _ours(works: list[Workload], threads: int, turns: int) -> list[tuple[Workload, dict[str, float]]]:
    """Medians of several workloads of this library that take turns."""
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        workers = []
        for number, work in enumerate(works):
            folder = Path(scratch) / str(number)
            save_models(folder, work)
            workers.append(stack.enter_context(Worker("ours", folder, work, threads)))
        seen: list[list[dict[str, Any]]] = [[] for _ in workers]
        for turn in range(turns + 1):
            for worker, taken in zip(workers, seen, strict=True):
                report = worker.turn()
                if turn:
                    taken.append(report)
        return [
            (
                work,
                {
                    "update": median(turn["phases"]["update"] for turn in taken),
                    "iteration_mb": median(turn["peak_mb"] for turn in taken) - worker.resting_mb,
                },
            )
            for work, worker, taken in zip(works, workers, seen, strict=True)
        ]


def start_up(threads: int, turns: int) -> dict[str, Any]:
    """`train.py --help` against `import lightning.pytorch`, alternately."""
    commands = {"help": ["train.py", "--help"], "import": ["-c", "import lightning.pytorch"]}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(turns + 1):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, *command],
                cwd=ROOT,
                check=True,
                capture_output=True,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            )
            if turn:
                times[name].append(time.perf_counter() - start)
    pairs = [mine / theirs for mine, theirs in zip(times["help"], times["import"], strict=True)]
    return {name: median(taken) for name, taken in times.items()} | {"ratio": median(pairs)}


ROWS: dict[str, tuple[str, Row]] = {
    "tiny-1": ("≥ 2.2×", pair("tiny", 1.0, "32-true", OLD)),
    "tiny-0.4": ("≥ 4×", pair("tiny", 0.4, "32-true", OLD)),
    "tiny-0.2": ("≥ 5×", pair("tiny", 0.2, "32-true", OLD)),
    "tiny-0.4-bf16": ("≥ 7×", pair("tiny", 0.4, "bf16-mixed", OLD)),
    "tiny-0.4-bf16-compiled": ("≥ 7×", pair("tiny", 0.4, "bf16-mixed", OLD, compiled=True)),
    "tiny-0.4-bf16-both": ("reported", pair("tiny", 0.4, "bf16-mixed", OLD, "bf16-mixed")),
    "update-levels": ("linear within 15 %", levels),
    "memory-vocabulary": ("one chunk", vocabularies),
    "start-up": ("≤ 1.3", start_up),
    "gpt2-0.4": ("≥ 3.5×", pair("gpt2", 0.4, "32-true", OLD)),
    "gpt2-0.4-bf16": ("≥ 8×", pair("gpt2", 0.4, "bf16-mixed", OLD)),
    "gpt2-0.4-bf16-compiled": ("≥ 8×", pair("gpt2", 0.4, "bf16-mixed", OLD, compiled=True)),
    "tiny-0.4-trl-1.9.2": ("reported", pair("tiny", 0.4, "32-true", NEW)),
    "gpt2-0.4-bf16-both": ("reported", pair("gpt2", 0.4, "bf16-mixed", OLD, "bf16-mixed")),
    "tiny-1-called": ("≥ 2.2×", pair("tiny", 1.0, "32-true", OLD, generate_batch=AS_CALLED)),
    "tiny-0.4-called": ("≥ 4×", pair("tiny", 0.4, "32-true", OLD, generate_batch=AS_CALLED)),
    "tiny-0.4-bf16-called": ("≥ 7×", pair("tiny", 0.4, "bf16-mixed", OLD, generate_batch=AS_CALLED)),
    "tiny-0.4-bf16-compiled-called": (
        "≥ 7×",
        pair("tiny", 0.4, "bf16-mixed", OLD, compiled=True, generate_batch=AS_CALLED),
    ),
    "gpt2-0.4-called": ("≥ 3.5×", pair("gpt2", 0.4, "32-true", OLD, generate_batch=AS_CALLED)),
    "gpt2-0.4-bf16-compiled-called": (
        "≥ 8×",
        pair("gpt2", 0.4, "bf16-mixed", OLD, compiled=True, generate_batch=AS_CALLED),
    ),
}


def main() -> None:
    """Measure the rows that are asked for and not there yet, then print what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows' files")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5, help="measured turns of each side, after one that is not")
    parser.add_argument("--list", action="store_true", help="print what there is, measure nothing")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.rows:
        file = options.out / f"{name}.json"
        if not options.list and not file.exists():
            print(f"measuring {name}", file=sys.stderr)
            result = ROWS[name][1](options.threads, options.turns)
            result |= {"threads": options.threads, "turns": options.turns, "machine": _machine()}
            part = file.with_suffix(".part")
            part.write_text(json.dumps(result, indent=1) + "\n")
            part.replace(file)
        if file.exists():
            print(line(name, json.loads(file.read_text())), flush=True)


def _machine() -> dict[str, Any]:
    import torch

    return {
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def line(name: str, result: dict[str, Any]) -> str:
    """One row for the eye: goal, then what was measured."""
    goal = ROWS[name][0]
    ratios = [content for key, content in result.items() if key.startswith("against")]
    if not ratios:
        rest = {key: content for key, content in result.items() if key not in ("threads", "turns", "machine")}
        return f"{name:<30} goal {goal:<18} {json.dumps(rest)}"
    ratio, ours = ratios[0], result["libraries"]["ours"]
    low, high = ratio["speed_range"]
    return (
        f"{name:<30} goal {goal:<18} {ratio['speed']:.2f}x ({low:.2f} to {high:.2f}), {ours['seconds']:.2f} s, "
        f"peak memory {ratio['peak_memory']:.2f}, what comes and goes {ratio['iteration_memory']:.2f}, "
        f"update {ours['update_share']:.0%} of the matrix product"
    )


if __name__ == "__main__":
    main()
