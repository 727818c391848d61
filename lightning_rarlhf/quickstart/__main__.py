"""SFT, RLHF and RA-RLHF of a tiny policy on synthetic comments, tested side by side: offline, on two cores, in minutes.

Every step is a command of `train.py`, shown before it runs. Arguments that are not listed by ``--help`` go to the three
fits, such as ``--seed_everything 1``.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import shutil
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

import train
from lightning_rarlhf.figures import draw_score_distributions
from lightning_rarlhf.quickstart.findings import ALPHA, Outcome, headline, print_outcomes, read_outcome
from lightning_rarlhf.quickstart.tiny_policy import write_tiny_policy

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "quickstart"
PICTURE = "reward_distribution.png"
_CHATTER = (
    "GPU available",
    "TPU available",
    "Loading `train_dataloader`",
    "`Trainer.fit` stopped: `max_s",
)


def main(args: Sequence[str] | None = None) -> None:
    """Run the quickstart with the command-line arguments `args`; none = those of this process."""
    folder, fit_args = _parse(args)
    started = time.monotonic()
    # Enough for a network this small; two threads on cores that are busy elsewhere took many times as long (measured).
    torch.set_num_threads(1)
    _hush()
    write_tiny_policy(folder / "policy")
    _say(1, "SFT: a tiny policy learns to write restaurant comments, one in five of them harsh")
    _forget_checkpoints(folder)
    _train("fit", ["sft.yaml"], folder / "policy", folder / "sft", fit_args)
    start = folder / "sft" / "huggingface"
    _say(2, "RLHF from and against it: every episode counts")
    _train("fit", ["rarlhf.yaml", "rlhf.yaml"], start, folder / "rlhf", fit_args)
    _say(3, "RA-RLHF from and against it: the worst episodes count")
    _train("fit", ["rarlhf.yaml"], start, folder / "rarlhf", fit_args)
    _say(4, "the same test of all three")
    outcomes = [_test(folder, name, run) for name, run in (("SFT", "sft"), ("RLHF", "rlhf"), ("RA-RLHF", "rarlhf"))]
    picture = _draw(outcomes, folder / PICTURE)
    _say(5, "what came of it")
    print_outcomes(outcomes)
    print(
        f"picture: {picture}\nmodels:  {folder}/{{sft,rlhf,rarlhf}}/huggingface\ncurves:  tensorboard --logdir {folder}"
    )
    print(f"done in {time.monotonic() - started:.0f} s")


def _parse(args: Sequence[str] | None) -> tuple[Path, list[str]]:
    parser = argparse.ArgumentParser(prog="python -m lightning_rarlhf.quickstart", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/quickstart"), help="what everything is written to")
    known, fit_args = parser.parse_known_args(args)
    return known.folder, fit_args


def _test(folder: Path, name: str, run: str) -> Outcome:
    """Test what the run exported, in the way of all three: same prompts, same random numbers, KL from SFT."""
    reference = str(folder / "sft" / "huggingface")
    _train("test", ["rarlhf.yaml"], folder / run / "huggingface", folder / run, ["--model.reference", reference])
    return read_outcome(name, folder / run / "generations.jsonl")


def _forget_checkpoints(folder: Path) -> None:
    """Each quickstart starts afresh; a fit would refuse the folder of a finished run."""
    for run in ("sft", "rlhf", "rarlhf"):
        shutil.rmtree(folder / run / "checkpoints", ignore_errors=True)


def _train(command: str, configs: list[str], policy: Path, root: Path, more: list[str]) -> None:
    arguments = [command]
    for config in configs:
        arguments += ["--config", os.path.relpath(CONFIGS / config)]
    arguments += ["--model.policy.pretrained", str(policy), "--trainer.default_root_dir", str(root), *more]
    print(f"$ python train.py {shlex.join(arguments)}", flush=True)
    train.main(arguments)


def _draw(outcomes: list[Outcome], path: Path) -> Path:
    prompts = len(outcomes[0].scores)
    return draw_score_distributions(
        {outcome.name: outcome.scores for outcome in outcomes},
        path,
        title=headline(outcomes[0], outcomes[1:]),
        subtitle=f"{prompts:,} test prompts that no policy was trained on, one response each; 95 % bootstrap intervals",
        alpha=ALPHA,
    )


def _say(step: int, what: str) -> None:
    print(f"\n[{step}/5] {what}", flush=True)


def _hush() -> None:
    """Hide what six runs in a row would repeat: bars of reading a few weights, and notes on the machine."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    # Lightning suspects a mistake where a program with arguments of its own calls the command line.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: not record.getMessage().startswith(_CHATTER))


if __name__ == "__main__":
    main()
