"""Side-by-side report of evaluated runs: table, figures, and a comparison at equal KL.

A RUN is a folder with the results.json and generations.jsonl of `train.py test`; lightning_logs beside them give the
training curves. The first method is the baseline. Runs in folders that differ only in their seed (rlhf/seed_0,
rlhf/seed_1, or rlhf-seed0, ...) or that were given one LABEL are seeds of one method.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_rarlhf.errors import UserError
from lightning_rarlhf.terminal.one_line_parser import OneLineParser
from lightning_rarlhf.terminal.plain_text import error_line, name_to_show, visible


def main(args: Sequence[str] | None = None) -> int:
    """Report the runs named by the command-line arguments `args`; none = those of this process.

    Returns:
        exit status: 0, or 2 for a mistake of the user's, which is one line on stderr.
    """
    settings = _parser().parse_args(args)
    try:
        _report(settings)
    except UserError as error:
        sys.stderr.write(error_line(error))
        return 2
    except OSError as error:
        sys.stderr.write(error_line(f"{error.filename or settings.output}: {error.strerror or error}"))
        return 2
    return 0


def _report(settings: argparse.Namespace) -> None:
    from lightning_rarlhf.report.assemble import Request, assemble

    request = Request(
        runs=tuple(settings.runs),
        names=tuple(_labelled("--name", text) for text in settings.name),
        sweeps=tuple(_labelled("--sweep", text) for text in settings.sweep),
        output=settings.output,
        alpha=settings.alpha,
        resamples=settings.resamples,
        seed=settings.seed,
        figures=settings.figures,
    )
    for path in assemble(request):
        print(visible(f"wrote {path}"))


def _labelled(option: str, text: str) -> tuple[str, tuple[Path, ...]]:
    label, _, folders = text.partition("=")
    paths = tuple(Path(part.strip()) for part in folders.split(",") if part.strip())
    if not label.strip() or not paths:
        raise UserError(f"{option}: got {text!r}, expected LABEL=RUN or LABEL=RUN,RUN,...")
    return name_to_show(label), paths


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m lightning_rarlhf.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folder of a tested run; the first: baseline")
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="LABEL=RUN[,RUN...]",
        help="call these runs LABEL; several are seeds of one method; a RUN not listed otherwise is added",
    )
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="LABEL=RUN,RUN[,...]",
        help="a method's runs at several KL (checkpoints, KL targets), to compare at equal KL; give two or more",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/report"), help="folder that is written to")
    parser.add_argument("--alpha", type=float, default=0.1, help="risk level of the tail in pictures and at equal KL")
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap samples of each interval")
    parser.add_argument("--seed", type=int, default=0, help="of the resampling")
    parser.add_argument("--no-figures", dest="figures", action="store_false", help="tables only")
    return parser


if __name__ == "__main__":
    sys.exit(main())
