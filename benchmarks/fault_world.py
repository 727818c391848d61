"""Small real runs of `train.py` in processes of their own, to be killed, starved and lied to."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fault_process import Process

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
    """A folder with a tiny policy and a configuration, and the journal of a run that nothing happened to.

    That run has an interpreter of its own, unless asked otherwise. The others have one each if `fresh`, or with several
    processes, which the trainer starts; else they are forked.
    """

    folder: Path
    iterations: int = 60
    processes: int = 1
    overlay: Sequence[str] = ()
    fresh: bool = False
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

    def remember_reference(self, *, fresh: bool = True) -> None:
        """Let a run go through undisturbed; every other one is compared with it."""
        run = self.run("reference")
        done = run.start(fresh=fresh).wait()
        if done.status != 0:
            raise RuntimeError(f"the undisturbed run failed: {done.failure}")
        self.reference = dict(run.entries())


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
        fresh: bool = False,
    ) -> Process:
        """``train.py fit``, going on from the last checkpoint if there is one."""
        self.folder.mkdir(exist_ok=True, parents=True)
        journal = json.dumps({"class_path": "benchmarks.fault_parts.Journal", "init_args": {"path": str(self.journal)}})
        command = [
            *("fit", "--config", str(self.world.folder / "world.yaml")),
            *("--trainer.default_root_dir", str(self.folder), "--ckpt_path", resume),
            *(f"--trainer.callbacks+={journal}", *self.world.overlay, *arguments),
        ]
        fresh = fresh or self.world.fresh or self.world.processes > 1
        return Process(command, self.folder, environment or {}, file_limit=file_limit, fresh=fresh)

    @property
    def journal(self) -> Path:
        # beside the folder: a full disk is a fault of the run, not of what is known of it
        return self.folder.with_suffix(".journal.jsonl")

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
