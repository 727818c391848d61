"""Fit and test every method on one task, then report them side by side: one command, as often as it takes.

What is done is left out, and a fit that was stopped goes on from its last checkpoint. A stage is done when its file is
there: results.json of a test, huggingface/config.json of a fit; delete its folder to run it again.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_rarlhf.compare.runner import alone, run_stages, states_of, train
from lightning_rarlhf.compare.stages import METHODS, Settings, Stage, plan, report_commands
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.report.__main__ import main as report
from lightning_rarlhf.terminal.one_line_parser import OneLineParser

_CONFIGS = Path(os.path.relpath(Path(__file__).resolve().parents[2] / "configs"))
"""relative, so that a checkout that is moved with its runs still knows what it did"""


def main(args: Sequence[str] | None = None) -> int:
    """Run the comparison that the command-line arguments `args` describe; none = those of this process.

    Returns:
        exit status: 0, 1 if a stage failed, 2 for a mistake of the user's, which is one line on stderr.
    """
    arguments = _parser().parse_args(args)
    try:
        settings = _settings(arguments)
        stages = plan(settings)
        if arguments.dry_run:
            _show(stages)
            return 0
        with alone(settings.runs):
            problems = run_stages(stages, train, _say)
            status = _report(settings)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from here\n")
        return 130
    for problem in problems:
        sys.stderr.write(f"failed: {problem}\n")
    return 1 if problems else status


def _settings(arguments: argparse.Namespace) -> Settings:
    return Settings(
        task=arguments.task,
        configs=_CONFIGS,
        runs=arguments.runs or Path("runs/compare") / arguments.task,
        methods=tuple(name.strip() for name in arguments.methods.split(",") if name.strip()),
        seeds=arguments.seeds,
        policy=arguments.policy,
        reward=arguments.reward,
        data=arguments.data,
        extra=tuple(_tagged(text) for text in arguments.extra),
    )


def _tagged(text: str) -> tuple[str, tuple[str, ...]]:
    tag, equals, words = text.partition("=")
    if not equals:
        raise UserError(f"--with: got {text!r}, expected TAG='--key value ...'")
    return tag.strip(), tuple(shlex.split(words))


def _show(stages: Sequence[Stage]) -> None:
    states = states_of(stages)
    for number, stage in enumerate(stages, start=1):
        _say(f"[{number}/{len(stages)}] {stage.name} ({states[stage.name]})")
        _say(f"    train.py {shlex.join(stage.command)}")


def _report(settings: Settings) -> int:
    return max((report(command) for command in report_commands(settings)), default=0)


def _say(line: str) -> None:
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m lightning_rarlhf.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ",".join(method.name for method in METHODS)
    parser.add_argument("--task", default="jigsaw", help="a task's name, as of configs/TASK.yaml")
    parser.add_argument("--methods", default="", metavar="A,B", help=f"some of {names}, and what they need; none = all")
    parser.add_argument("--seeds", type=int, default=1, help="training seeds of RLHF, RA-RLHF and Quark: 0, 1, ...")
    parser.add_argument("--policy", default="gpt2", help="hub id or folder of the model that SFT starts from")
    parser.add_argument("--reward", help="hub id or folder of the reward's classifier; none = the configuration's")
    parser.add_argument("--data", help="folder of the task's data; none = the hub")
    parser.add_argument("--runs", type=Path, help="folder of the comparison; none = runs/compare/TASK")
    parser.add_argument(
        "--with",
        dest="extra",
        action="append",
        default=[],
        metavar="TAG=ARGS",
        help="further arguments of train.py for the stages of a TAG: all, fit, test, a method, or method:fit, "
        "method:test; can be given several times",
    )
    parser.add_argument("--dry_run", action="store_true", help="print the plan and do nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
