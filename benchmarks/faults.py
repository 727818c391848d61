"""A fault campaign: small runs are killed, starved and lied to, resumed, and compared to the bit with an unharmed one.

    python -m benchmarks.faults                      # every kind; 20 kills; about 15 minutes on 2 cores
    python -m benchmarks.faults --kinds kill --count 20
    python -m benchmarks.faults --kinds kill --count 5 --processes 2

Prints how many faults of each kind were tried and survived. Exit status 1 if any was not: a number of the resumed run
differs, a checkpoint was lost, or the user was left without one clear line.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.fault_parts import PHASES
from benchmarks.fault_process import TIMED_OUT
from benchmarks.fault_world import Run, World, random_moment, small_disk

Verdict = list[str]
"""what was lost; empty = survived"""
Verdicts = Iterator[tuple[str, Verdict]]
"""what was tried, and its verdict"""
_KILLS_PER_RUN = 4


def kills(world: World, chance: random.Random, count: int) -> Verdicts:
    """SIGKILL in every phase: up to four times in one run, of two processes one at a time or both at once."""
    for first in range(0, count, _KILLS_PER_RUN):
        run = world.run(f"kill-{first}")
        moments = sorted(chance.randrange(world.iterations - 1) for _ in range(min(_KILLS_PER_RUN, count - first)))
        killed = [_kill_once(run, chance, PHASES[(first + n) % len(PHASES)], m) for n, m in enumerate(moments)]
        lost = _finish(run)
        yield from ((name, alone + lost) for name, alone in killed)


def _kill_once(run: Run, chance: random.Random, phase: str, iteration: int) -> tuple[str, Verdict]:
    """What was killed when; and whether a process that was left alone noticed."""
    process = run.start(*_another_seed(chance))
    process.wait_for(phase, iteration)
    time.sleep(chance.random() * 0.02)
    now = process.phase_file.read_text().strip() if process.phase_file.exists() else "loading"
    if run.world.processes > 1 and chance.random() < 0.5:
        process.send(signal.SIGKILL)  # the first alone: the others have to notice
    else:
        process.kill_all()
    ended = process.wait()
    name = f"killed in: {now}" if ended.status != 0 else f"had ended before: {now}"
    return name, [ended.failure] if ended.timed_out else []


def signals(world: World, chance: random.Random, count: int) -> Verdicts:
    """Ctrl-C and SIGTERM: status 130 and 143, nothing repeated; a second Ctrl-C ends at once."""
    for number in range(count):
        run = world.run(f"signal-{number}")
        sent = (signal.SIGINT, signal.SIGTERM)[number % 2]
        phase, iteration = random_moment(chance, PHASES, 1, world.iterations - 8)
        process = run.start()
        process.wait_for(phase, iteration)
        process.send(sent)
        ended = process.wait()
        lost = [] if ended.status == 128 + sent else [f"expected {128 + sent}; {ended.failure}"]
        lost += _finish(run)
        keys = [key for key, _ in run.entries()]
        lost += [f"{key} was repeated" for key in set(keys) if keys.count(key) > 1]
        yield f"{sent.name} in {phase} {iteration}", lost
    run = world.run("signal-twice")
    process = run.start(environment={"FAULT_REWARD": "slow"})
    process.wait_for("sampling", world.iterations // 3)
    process.send(signal.SIGINT)
    process.send(signal.SIGTERM)
    began = time.monotonic()
    ended = process.wait()
    lost = [] if ended.status in (130, 143) and time.monotonic() - began < 10 else [ended.failure]
    yield "two signals", lost + _finish(run)


def full_disk(world: World, chance: random.Random, count: int) -> Verdicts:
    """A disk that fills up: stop with one line, or go on and write again when there is room; by tmpfs or file limit."""
    for number in range(count):
        run = world.run(f"disk-{number}")
        first = _stopped_at(run, chance.randrange(6, world.iterations // 2))
        before = run.last.read_bytes() if run.last.exists() else b""
        limit = max(1, len(before) // 2)
        process = run.start(file_limit=limit)
        ended = process.wait()
        lost = [] if ended.status == 2 and "could not be written" in ended.complaint else [ended.failure]
        if run.last.exists() and run.last.read_bytes() != before:
            lost.append("the checkpoint before it was touched")
        yield f"file limit of {limit} bytes after iteration {first}", lost + _finish(run)
    with small_disk(world.folder / "disk-small", 4) as mounted:
        if mounted:
            yield "tmpfs filled and freed, on_write_error=continue", _fill_and_free(world)
        else:
            print("  a tmpfs cannot be mounted here: the full disk is a limit on the size of files", flush=True)


def _fill_and_free(world: World) -> Verdict:
    run = world.run("disk-small")
    go_on = ("--checkpoint.on_write_error", "continue")
    process = run.start(*go_on)
    process.wait_for("sampling", 12)
    filler = run.folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 12))
        except OSError:
            pass
    process.wait_for("sampling", 30)
    filler.unlink()
    ended = process.wait()
    lost = [] if ended.status == 0 and "could not be written: No space left" in ended.errors else [ended.failure]
    return lost + run.differences()


def rewards(world: World, chance: random.Random, count: int) -> Verdicts:
    """A reward that is slow, and one that fails for good: the run ends with a reason, and goes on when it is mended."""
    run = world.run("reward-slow")
    slow = run.start(environment={"FAULT_REWARD": "slow"}).wait()
    yield "slow", ([] if slow.status == 0 else [slow.failure]) + run.differences()
    for number in range(count):
        run = world.run(f"reward-{number}")
        call = chance.randrange(3, world.iterations)
        ended = run.start(environment={"FAULT_REWARD": f"fail:{call}"}).wait()
        lost = [] if ended.status == 2 and "failed 3 times (ConnectionError" in ended.complaint else [ended.failure]
        yield f"fails from call {call} on", lost + _finish(run)


def corrupt_checkpoints(world: World, chance: random.Random, count: int) -> Verdicts:
    """`last.ckpt` truncated, emptied, overwritten, or something else: refused by name; the best one still goes on."""
    damages: list[tuple[str, Callable[[bytes], bytes]]] = [
        ("truncated", lambda data: data[: chance.randrange(1, len(data))]),
        ("empty", lambda data: data[:0]),
        ("a page inverted", lambda data: _overwritten(data, chance)),
        ("another archive", lambda data: data[:4] + bytes(100)),
        ("text", lambda data: b"not a checkpoint of %d bytes" % len(data)),
    ]
    for number in range(count):
        name, damage = damages[number % len(damages)]
        run = world.run(f"corrupt-{number}")
        _stopped_at(run, chance.randrange(16, world.iterations - 8))
        damaged = damage(run.last.read_bytes())
        run.last.write_bytes(damaged)
        ended = run.start().wait()
        lost = [] if ended.status == 2 and "last.ckpt" in ended.complaint else [ended.failure]
        lost += [] if run.last.read_bytes() == damaged else ["the damaged file was overwritten"]
        best = sorted((run.folder / "checkpoints").glob("best-*.ckpt"))[-1]
        yield f"{name}, on from {best.name}", lost + _finish(run, resume=str(best))


def _overwritten(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(0, len(data) - 4096)
    return data[:start] + bytes(255 - byte for byte in data[start : start + 4096]) + data[start + 4096 :]


def corrupt_caches(world: World, chance: random.Random, count: int) -> Verdicts:
    """The datasets library's cache damaged between two starts: made anew, or refused in one line."""
    from lightning_rarlhf.quickstart.grammar import make_comments

    table = world.folder / "comments.csv"
    rows = [f'"{comment.text}",{comment.label}' for comment in make_comments(300, seed=1)]
    table.write_text("text,label\n" + "\n".join(rows) + "\n")
    data = ["--data", "TextFileDataModule", "--data.path", str(table), "--data.text_column", "text"]
    cached = World(world.folder / "cached", world.iterations, 1, [*data, "--data.prompt_tokens", "11"], fresh=True)
    environment = {"HF_DATASETS_CACHE": str(cached.folder / "cache"), "HF_HOME": str(cached.folder / "home")}
    os.environ |= environment
    cached.remember_reference()
    for number in range(count):
        run = cached.run(f"cache-{number}")
        _stopped_at(run, chance.randrange(6, world.iterations - 8))
        files = [f for f in (cached.folder / "cache").rglob("*") if f.is_file() and f.stat().st_size]
        for file in files:
            content = file.read_bytes()
            file.write_bytes(content[: len(content) // 2] if number % 2 == 0 else bytes(len(content)))
        ended = run.start().wait()
        lost: Verdict = []
        if ended.status != 0:
            lost = [] if ended.complaint else [ended.failure]
            shutil.rmtree(cached.folder / "cache", ignore_errors=True)
        how = "cut in half" if number % 2 == 0 else "zeroed"
        said = "made anew" if ended.status == 0 else ended.complaint
        yield f"{len(files)} files {how}: {said}", lost + _finish(run)


_JUMPING_CLOCK = """
import random, time
_real, _chance = time.time, random.Random({seed})
_state = [0.0, 0]
def _jumping():
    _state[1] += 1
    if _state[1] % 50 == 0:
        _state[0] = _chance.choice((-1, 1)) * _chance.random() * 10 * 365 * 86400
    return _real() + _state[0]
time.time = _jumping
"""


def clock_jumps(world: World, chance: random.Random, count: int) -> Verdicts:
    """The wall clock leaps up to ten years back and forth, with a trigger by minutes; killed once, resumed."""
    for number in range(count):
        run = world.run(f"clock-{number}")
        folder = world.folder / f"clock-code-{number}"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(_JUMPING_CLOCK.format(seed=number))
        environment = {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        minutes = ("--checkpoint.every_n_minutes", "0.02")
        process = run.start(*minutes, environment=environment, fresh=True)
        process.wait_for(None, chance.randrange(world.iterations - 8))
        process.kill_all()
        process.wait()
        ended = run.start(*minutes, environment=environment, fresh=True).wait()
        lost = [] if ended.status == 0 else [ended.failure]
        yield f"clock {number}", lost + run.differences()


def _another_seed(chance: random.Random) -> list[str]:
    """On a resume, which goes on with its own."""
    return ["--seed_everything", "0"] if chance.random() < 0.5 else []


def _stopped_at(run: Run, iteration: int) -> int:
    """Kill the run at this iteration."""
    process = run.start()
    process.wait_for(None, iteration)
    process.kill_all()
    process.wait()
    return iteration


def _finish(run: Run, resume: str = "auto") -> Verdict:
    """Let the run go on to its end, with another seed on the command line, and compare."""
    ended = run.start(*(["--seed_everything", "7"] if run.last.exists() else []), resume=resume).wait()
    return ([] if ended.status == 0 else [ended.failure]) + run.differences()


KINDS: dict[str, tuple[Callable[[World, random.Random, int], Verdicts], int]] = {
    "kill": (kills, 20),
    "signal": (signals, 4),
    "disk": (full_disk, 2),
    "reward": (rewards, 2),
    "checkpoint": (corrupt_checkpoints, 5),
    "cache": (corrupt_caches, 2),
    "clock": (clock_jumps, 2),
}
"""each kind of fault and how many are tried"""


def campaign(
    world: World, kinds: Sequence[str], seed: int, counts: int | None = None
) -> dict[str, tuple[int, int, int]]:
    """Try the faults of these kinds, `counts` of each or as many as `KINDS` says; what was lost is printed.

    Returns:
        Kind → (tried, survived, timed out).
    """
    world.remember_reference()
    outcome = {}
    for kind in kinds:
        inflict, count = KINDS[kind]
        verdicts = []
        for name, lost in inflict(world, random.Random(f"{seed} {kind}"), counts or count):
            print(f"  {kind}: {name}: {'; '.join(lost[:3]) or 'survived'}", flush=True)
            verdicts.append((name, lost))
        timed_out = sum(any(TIMED_OUT in line for line in lost) for _, lost in verdicts)
        outcome[kind] = (len(verdicts), sum(not lost for _, lost in verdicts), timed_out)
    return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--count", type=int, default=None, help="faults of each kind; default 20 kills, 2-5 of others")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overlay", nargs="*", default=[], help="further KEY=VALUE settings of the runs")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        overlay = [f"--{setting}" for setting in chosen.overlay]
        world = World(Path(folder), chosen.iterations, chosen.processes, overlay)
        outcome = campaign(world, chosen.kinds, chosen.seed, chosen.count)
    print(f"\n{'fault':<12}{'tried':>8}{'survived':>10}{'lost':>8}{'timed out':>12}")
    for kind, (tried, survived, timed_out) in outcome.items():
        print(f"{kind:<12}{tried:>8}{survived:>10}{tried - survived - timed_out:>8}{timed_out:>12}")
    return int(any(survived < tried for tried, survived, _ in outcome.values()))


if __name__ == "__main__":
    sys.exit(main())
