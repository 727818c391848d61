"""Seconds, FLOP/s and memory of one iteration, phase by phase; with `--peer`, against TRL, turn by turn.

    python -m benchmarks.iteration --size tiny --level 0.4
    python -m benchmarks.iteration --size gpt2 --level 0.4 --peer trl==0.7.2 --precision bf16-mixed

The same random weights, prompts and reward; both libraries stay loaded and take turns, so that what else the machine
does meets both. Figures are medians over the turns, ratios medians over the pairs of neighbouring turns.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.environments import PEERS
from benchmarks.models import save_models
from benchmarks.workers import Worker
from benchmarks.workload import SIZES, TASKS, Workload, workload

PRECISIONS = ("32-true", "bf16-mixed")
OLD_TRL = "trl==0.7.2"
Turn = dict[str, Any]
_OPTIONAL = ("batch", "vocabulary", "epochs", "frozen_layers", "compile_sampling")


def main() -> None:
    """Measure what the command line asks for."""
    options = parse()
    changes = {"risk_level": options.level, "precision": options.precision}
    changes |= {name: value for name in _OPTIONAL if (value := getattr(options, name))}
    work = workload(options.size, options.task, **changes)
    other = replace(
        work,
        precision=options.peer_precision or options.precision,
        frozen_layers=0,
        compile_sampling=False,
        generate_batch=options.peer_generate_batch or 0,
    )
    libraries = [options.peer] if options.peer else []
    result = against(work, other, libraries, options.threads, options.turns, options.before)
    print(json.dumps(result) if options.json else table(result))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--task", choices=TASKS, default="imdb")
    parser.add_argument("--level", type=float, default=1.0, help="risk level α′, the share of episodes kept")
    parser.add_argument("--precision", choices=PRECISIONS, default="32-true")
    parser.add_argument("--batch", type=int, help="episodes B; default: of the size")
    parser.add_argument("--vocabulary", type=int, help="V; default: of the size")
    parser.add_argument("--epochs", type=int, help="PPO epochs; default 4")
    parser.add_argument("--frozen-layers", type=int, help="of this library's policy; default: none")
    parser.add_argument("--compile-sampling", action="store_true", help="of this library; the first turn compiles")
    parser.add_argument("--peer", choices=PEERS, help="library to take turns with, in an environment of its own")
    parser.add_argument("--peer-precision", choices=PRECISIONS, help="default: the same")
    parser.add_argument("--before", type=Path, help="another checkout of this library to take turns with")
    parser.add_argument("--turns", type=int, default=5, help="measured turns of each, after one that is not")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    parser.add_argument(
        "--peer-generate-batch", type=int, help="prompts that TRL 0.7.2 generates from at a time; default: all"
    )
    options = parser.parse_args()
    if options.peer_generate_batch and options.peer != OLD_TRL:
        parser.error(f"--peer-generate-batch is of --peer {OLD_TRL}")
    return options


def against(
    work: Workload, other: Workload, peers: list[str], threads: int, turns: int, before: Path | None = None
) -> dict[str, Any]:
    """Take turns; the first turn of each warms up and is dropped.

    Args:
        work: this library's workload.
        other: the others', which may differ in precision and in what this library alone has.
        peers: libraries to take turns with.
        threads: of torch, each.
        turns: that are measured.
        before: another checkout of this library to take turns with.
    """
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        save_models(folder, work)
        workers = {"ours": stack.enter_context(Worker("ours", folder, work, threads))}
        for peer in peers:
            workers[peer] = stack.enter_context(Worker(peer, folder, other, threads))
        if before:
            workers["before"] = stack.enter_context(Worker("ours", folder, other, threads, before.resolve()))
        taken: dict[str, list[Turn]] = {name: [] for name in workers}
        for number in range(turns + 1):
            for name, worker in workers.items():
                turn = worker.turn()
                if number:
                    taken[name].append(turn)
        libraries = {name: summary(taken[name], worker) for name, worker in workers.items()}
    libraries["ours"] |= flops(taken["ours"], work)
    result: dict[str, Any] = {"workload": work.to_dict(), "threads": threads, "turns": turns, "libraries": libraries}
    for name in list(libraries)[1:]:
        libraries[name]["precision"] = other.precision
        result["against " + name] = ratios(taken, libraries, name)
    return result


def ratios(taken: dict[str, list[Turn]], libraries: dict[str, Any], name: str) -> dict[str, Any]:
    """Of another library to ours: how much faster, and the share of its memory."""
    ours, theirs = libraries["ours"], libraries[name]
    pairs = [its["seconds"] / mine["seconds"] for mine, its in zip(taken["ours"], taken[name], strict=True)]
    return {
        "speed": median(pairs),
        "speed_range": [min(pairs), max(pairs)],
        "cpu_time": theirs["cpu_seconds"] / ours["cpu_seconds"],
        "peak_memory": ours["peak_mb"] / theirs["peak_mb"],
        "iteration_memory": ours["iteration_mb"] / theirs["iteration_mb"],
    }


def summary(turns: list[Turn], worker: Worker) -> dict[str, Any]:
    """Medians over a library's turns."""
    seconds = median(turn["seconds"] for turn in turns)
    peak = median(turn["peak_mb"] for turn in turns)
    return {
        "seconds": seconds,
        "cpu_seconds": median(turn["cpu_seconds"] for turn in turns),
        "phases": {name: median(turn["phases"][name] for turn in turns) for name in turns[0]["phases"]},
        "response_tokens_per_second": median(turn["response_tokens"] / turn["seconds"] for turn in turns),
        "peak_mb": peak,
        "iteration_mb": peak - worker.resting_mb,
    }


def flops(turns: list[Turn], work: Workload) -> dict[str, float]:
    """The update's useful FLOP/s, and the share of the matrix product that was timed just before."""
    rates = [(work.update_flops / turn["phases"]["update"], turn["matrix_product_flops"]) for turn in turns]
    return {
        "update_flops": median(rate for rate, _ in rates),
        "matrix_product_flops": median(product for _, product in rates),
        "update_share": median(rate / product for rate, product in rates),
    }


def table(result: dict[str, Any]) -> str:
    """What a person reads."""
    lines = [", ".join(f"{name}={value}" for name, value in result["workload"].items())]
    for name, figures in result["libraries"].items():
        phases = "  ".join(f"{phase} {seconds:.3f}" for phase, seconds in figures["phases"].items())
        lines.append(
            f"{name:<10} {figures['seconds']:.3f} s  ({phases})  {figures['response_tokens_per_second']:.0f} tokens/s, "
            f"peak {figures['peak_mb']:.0f} MB, of which {figures['iteration_mb']:.0f} MB come and go"
        )
    ours = result["libraries"]["ours"]
    lines.append(
        f"update: {ours['update_flops'] / 1e9:.1f} GFLOP/s of the matrix product's "
        f"{ours['matrix_product_flops'] / 1e9:.1f} ({ours['update_share']:.0%})"
    )
    for name, figures in result.items():
        if name.startswith("against"):
            low, high = figures["speed_range"]
            lines.append(
                f"{name}: {figures['speed']:.2f}x the speed ({low:.2f} to {high:.2f} over the pairs), "
                f"{1 / figures['cpu_time']:.2f} of the CPU time, {figures['peak_memory']:.2f} of the peak memory, "
                f"{figures['iteration_memory']:.2f} of what comes and goes"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
