"""Small real runs of `train.py` in processes of their own, to be killed, starved and lied to."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_PATIENCE = 600.0
"""seconds that a run may take on a busy machine; it takes ten on a free one"""
TIMED_OUT = "timed out"
"""how the line of a run begins that was given up: it hung, or the machine was too busy; the tracebacks tell"""

_CONFIG = """\
seed_everything: 0
model:
  class_path: RiskAversePPOModule
  init_args:
    policy: {{pretrained: {world}/policy}}
    reward: {{class_path: CallableReward, init_args: {{function: benchmarks.fault_parts.reward}}}}
    sampling: {{max_new_tokens: 8}}
    ppo: {{epochs: 2, minibatch_size: 4}}
    optimizer: {{class_path: torch.optim.Adam, init_args: {{lr: 1.0e-3}}}}
    evaluation: {{tail_levels: [0.1]}}
data:
  class_path: SyntheticDataModule
  init_args: {{comments: 300, batch_size: 8, val_size: 16, test_size: 16, eval_batch_size: 8, progress: false}}
trainer:
  max_steps: {iterations}
  max_epochs: -1
  val_check_interval: 7
  check_val_every_n_epoch: null
  accelerator: cpu
  devices: {processes}
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: RiskSchedule
      init_args: {{risk_level: 0.5, warmup: 3, rho: 0.8}}
checkpoint:
  monitor: val/cvar_10
  every_n_iterations: 5
"""


@dataclass
class World:
    """A folder with a tiny policy and a configuration, and the journal of a run that nothing happened to."""

    folder: Path
    iterations: int = 60
    processes: int = 1
    overlay: Sequence[str] = ()
    reference: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from lightning_rarlhf.quickstart.tiny_policy import write_tiny_policy

        self.folder = self.folder.resolve()
        write_tiny_policy(self.folder / "policy", layers=1, width=16, heads=2)
        text = _CONFIG.format(world=self.folder, iterations=self.iterations, processes=self.processes)
        (self.folder / "world.yaml").write_text(text)

    def run(self, name: str) -> Run:
        """A run with a folder of its own."""
        return Run(self, self.folder / name)

    def remember_reference(self) -> None:
        """Let a run go through undisturbed; every other one is compared with it."""
        run = self.run("reference")
        done = run.start().wait()
        assert done.status == 0, f"the undisturbed run failed:\n{done.errors}"
        self.reference = dict(run.entries())


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
            return f"{TIMED_OUT}:\n{self.errors[-8000:]}"
        return f"status {self.status}: {self.errors[-500:]}"

    @property
    def complaint(self) -> str:
        """The line that the user is left with."""
        lines = [line for line in self.errors.splitlines() if line.startswith("error: ")]
        return lines[0] if len(lines) == 1 and "Traceback" not in self.errors else ""


@dataclass
class Run:
    """One run's folder; started as often as it takes."""

    world: World
    folder: Path

    @property
    def last(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    def start(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        file_limit: int | None = None,
        resume: str = "auto",
    ) -> Process:
        """``train.py fit``, going on from the last checkpoint if there is one."""
        self.folder.mkdir(exist_ok=True, parents=True)
        journal = json.dumps({"class_path": "benchmarks.fault_parts.Journal", "init_args": {"path": str(self.journal)}})
        command = [
            *(sys.executable, str(ROOT / "train.py"), "fit", "--config", str(self.world.folder / "world.yaml")),
            *("--trainer.default_root_dir", str(self.folder), "--ckpt_path", resume),
            *(f"--trainer.callbacks+={journal}", *self.world.overlay, *arguments),
        ]
        return Process(command, self.folder, dict(environment or {}), file_limit)

    @property
    def journal(self) -> Path:
        return self.folder / "journal.jsonl"

    def entries(self) -> Iterator[tuple[tuple[str, int], dict[str, Any]]]:
        """Every line of the journal with what it is about; an iteration that was repeated comes several times."""
        for line in self.journal.read_text().splitlines() if self.journal.exists() else []:
            entry = json.loads(line)
            kind = next(name for name in ("iteration", "validation", "end") if name in entry)
            yield (kind, entry[kind]), entry

    def differences(self) -> list[str]:
        """What is not, to the bit, as in the undisturbed run; empty = nothing was lost."""
        reference, seen, found = self.world.reference, set(), []
        for key, entry in self.entries():
            seen.add(key)
            if reference.get(key) != entry:
                found.append(f"{key} differs")
        found += [f"{key} is missing" for key in reference if key not in seen]
        left = [path.name for path in self.folder.rglob("*.partial*")]
        return found + [f"left behind: {name}" for name in left]


class Process:
    """A started run, in a process group of its own."""

    def __init__(
        self, command: list[str], folder: Path, environment: dict[str, str], file_limit: int | None = None
    ) -> None:
        self.phase_file = folder / "phase"
        self.phase_file.unlink(missing_ok=True)
        self._errors = (folder / "stderr.txt").open("w+")
        fixed = {
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONFAULTHANDLER": "1",  # tells where a run hung, see `wait`
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "SLURM"))}
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**inherited, **fixed, "FAULT_PHASE": str(self.phase_file), **environment},
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,
            preexec_fn=_file_limit(file_limit) if file_limit else None,  # noqa: PLW1509 - one thread
        )

    def wait_for(self, phase: str | None, iteration: int) -> bool:
        """Wait until this is done (None = anything) at this iteration or later; False = the process ended first."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            now = self.phase_file.read_text().split() if self.phase_file.exists() else []
            if len(now) == 2 and int(now[1]) >= iteration and phase in (None, now[0]):
                return True
            time.sleep(0.001)
        return False

    def send(self, number: int) -> None:
        """Signal the first process of the run."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    def kill_all(self) -> None:
        """SIGKILL every process of the run."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def wait(self, patience: float = _PATIENCE) -> Ended:
        """Until every process of the run has ended; those that have not by then say where they are, and are killed."""
        timed_out = False
        try:
            self.process.wait(patience)
            _wait_for_group(self.process.pid, patience)
        except subprocess.TimeoutExpired:
            timed_out = True
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGABRT)
            time.sleep(2)
        finally:
            self.kill_all()
            status = self.process.wait()
        self._errors.seek(0)
        errors = self._errors.read()
        self._errors.close()
        return Ended(status, errors, timed_out)


def _wait_for_group(group: int, patience: float) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise subprocess.TimeoutExpired("process group", patience)


def _file_limit(limit: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """Mount a tmpfs of this size at `folder`; False = not permitted here."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], check=False, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=False, capture_output=True)


def random_moment(chance: random.Random, phases: Sequence[str | None], first: int, last: int) -> tuple[str | None, int]:
    """A phase and an iteration in which something is to happen."""
    return chance.choice(phases), chance.randrange(first, last)
