"""Certify a claim on a policy's tail from the generations of fresh prompts; for a shell or a CI gate.

Exit status: 0 = shown, 1 = not shown, 2 = bad input. A trial is one prompt with one completion (draw 0 where there are
several). Decide the claim and the number of prompts (--plan) before looking at any score.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_rarlhf import __version__
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.one_move import in_one_move
from lightning_rarlhf.splits import FIRST_INDEX
from lightning_rarlhf.terminal.one_line_parser import OneLineParser
from lightning_rarlhf.terminal.plain_text import error_line, one_line

if TYPE_CHECKING:  # what is heavy is imported once the arguments are known to be good
    from lightning_rarlhf.certify.claims import Claim, PlannedRow, Verdict
    from lightning_rarlhf.certify.trials import Trials

SCHEMA_VERSION = 1
SHOWN, NOT_SHOWN, BAD_INPUT = 0, 1, 2


def main(args: Sequence[str] | None = None) -> int:
    """Run with the command-line arguments `args` (none = those of this process); gives the exit status."""
    settings = _parser().parse_args(args)
    for stream in (sys.stdout, sys.stderr):  # a terminal without ≤ shall not turn a verdict into a crash
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        claim = _claim(settings)
        return _plan(claim, settings.output) if settings.plan else _certify(claim, settings)
    except UserError as error:
        sys.stderr.write(error_line(error))
        return BAD_INPUT
    except Exception as error:  # the statuses 0 and 1 are verdicts; no crash may look like one
        sys.stderr.write(error_line(f"{type(error).__name__}: {error}; nothing was certified, please report this"))
        return BAD_INPUT


def _certify(claim: Claim, settings: argparse.Namespace) -> int:
    from lightning_rarlhf.certify.trials import read_trials

    trials = read_trials(settings.generations, settings.score, FIRST_INDEX, without_results=settings.without_results)
    verdict, notes = claim.verdict(trials.scores), _notes(trials)
    if settings.output:
        _write(settings.output, _certificate(claim, settings.score, trials, verdict) | {"notes": notes})
    print(verdict.sentence)
    for note in notes:
        sys.stderr.write(f"note: {one_line(note)}\n")
    return SHOWN if verdict.shown else NOT_SHOWN


def _plan(claim: Claim, output: Path | None) -> int:
    from lightning_rarlhf.certify.claims import RateClaim

    rows = claim.plan() if isinstance(claim, RateClaim) else []
    if output:
        plan = [asdict(row) for row in rows]
        _write(output, {"claim": _described(claim), "sentence": claim.plan_sentence(), "plan": plan})
    print(claim.plan_sentence())
    if rows:
        _print_plan(rows)
    return SHOWN


def _print_plan(rows: Sequence[PlannedRow]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("failures allowed", "prompts needed", title="chance of showing it, by the true rate")
    for rate in rows[0].chance:
        table.add_column(rate)
    for column in table.columns:
        column.justify = "right"
    for row in rows:
        table.add_row(f"{row.failures}", f"{row.prompts:,}", *(f"{100 * c:.0f} %" for c in row.chance.values()))
    Console().print(table)


def _notes(trials: Trials) -> list[str]:
    """What the trials rest on that no file can tell."""
    from lightning_rarlhf.certify.trials import freshness_notes

    notes = []
    if trials.results is None:
        notes.append("--without_results: nothing tells whether the file is whole; see that no line was taken away")
    if trials.ignored_draws:
        notes.append(f"draw 0 of each prompt counts; {trials.ignored_draws:,} further completions were left out")
    if trials.prompts.get("predict"):
        notes.append(
            f"whether {trials.prompts['predict']:,} prompts of your own were never trained on is for you to know"
        )
    if trials.results is not None:
        notes += freshness_notes(trials.results)
    if trials.repeated_texts:
        notes.append(
            f"{trials.repeated_texts:,} prompts repeat the text of another; the claim is on prompts that do so"
        )
    return notes


def _certificate(claim: Claim, score: str, trials: Trials, verdict: Verdict) -> dict[str, Any]:
    evidence = {name: value for name, value in asdict(verdict).items() if name not in ("shown", "sentence")}
    return {
        "shown": verdict.shown,
        "sentence": verdict.sentence,
        "claim": {**_described(claim), "score": score},
        "evidence": evidence,
        "generations": {
            "file": str(trials.file),
            "sha256": trials.sha256,
            "prompts": trials.prompts,
            "ignored_draws": trials.ignored_draws,
            "repeated_texts": trials.repeated_texts,
        },
        "results": trials.results,
    }


def _described(claim: Claim) -> dict[str, Any]:
    return {"kind": claim.kind, **asdict(claim)}


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write in one move, so that no reader meets half a certificate."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    head = {"schema_version": SCHEMA_VERSION, "created": created, "code_version": __version__}
    try:
        with in_one_move(path) as partial:
            partial.write_text(json.dumps(head | content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written: {error.strerror}; name another file") from None


def _claim(settings: argparse.Namespace) -> Claim:
    """The claim that the arguments make; what belongs to the other one is refused, not ignored."""
    from lightning_rarlhf.certify.claims import CVaRClaim, RateClaim

    if settings.max_rate is not None:
        _require(settings, "--max_rate", wanted=("threshold",), foreign=("alpha", "range"))
        return RateClaim(threshold=settings.threshold, max_rate=settings.max_rate, confidence=settings.confidence)
    _require(settings, "--min_cvar", wanted=("alpha", "range"), foreign=("threshold",))
    low, high = settings.range
    return CVaRClaim(
        min_cvar=settings.min_cvar, alpha=settings.alpha, low=low, high=high, confidence=settings.confidence
    )


def _require(settings: argparse.Namespace, claim: str, wanted: Sequence[str], foreign: Sequence[str]) -> None:
    for name in wanted:
        if getattr(settings, name) is None:
            raise UserError(f"{claim} needs --{name}")
    for name in foreign:
        if getattr(settings, name) is not None:
            raise UserError(f"--{name} is no part of a claim with {claim}; leave it out")


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m lightning_rarlhf.certify", description=__doc__, allow_abbrev=False)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--generations", type=Path, metavar="FILE", help="generations.jsonl, or the run's folder")
    source.add_argument("--plan", action="store_true", help="without data: how many prompts the claim needs")
    claim = parser.add_mutually_exclusive_group(required=True)
    claim.add_argument("--max_rate", type=_number, metavar="P", help="claim: P(score < threshold) is at most this")
    claim.add_argument("--min_cvar", type=_number, metavar="C", help="claim: the worst scores' mean is at least this")
    parser.add_argument("--threshold", type=_number, metavar="T", help="a score below it is a failure")
    parser.add_argument("--alpha", type=_number, metavar="A", help="share of prompts in the tail, in (0, 1]")
    parser.add_argument(
        "--range", type=_number, nargs=2, metavar=("LOW", "HIGH"), help="what the score cannot leave, known beforehand"
    )
    parser.add_argument("--confidence", type=_number, default=0.99, help="1 - chance of a wrong claim (default 0.99)")
    parser.add_argument("--score", default="score", help="score, or judge/<name> (default score)")
    parser.add_argument(
        "--without_results",
        action="store_true",
        help="accept a file that no results.json vouches for, such as predictions.jsonl; that it is whole is on you",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the certificate, or the plan, as JSON")
    return parser


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"got {text}, expected a finite number")
    return value


if __name__ == "__main__":
    raise SystemExit(main())
