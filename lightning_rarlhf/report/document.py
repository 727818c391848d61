"""Writes the report's files: report.md, table.csv, table.tex, matched_kl.csv."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightning_rarlhf.functional.statistics import LEAST_TAIL
from lightning_rarlhf.one_move import in_one_move
from lightning_rarlhf.records.results import Run
from lightning_rarlhf.report.cell_texts import explanation, paper_metrics
from lightning_rarlhf.report.comparison import Comparison
from lightning_rarlhf.report.identity import chosen_by_validation, training_of
from lightning_rarlhf.report.matched_kl import STATISTICS, Curve, Match, MatchedKL
from lightning_rarlhf.report.matched_kl_words import statements
from lightning_rarlhf.report.methods import Method
from lightning_rarlhf.report.numbers import number
from lightning_rarlhf.report.table_csv import as_csv
from lightning_rarlhf.report.table_latex import as_latex
from lightning_rarlhf.report.table_markdown import as_markdown, as_paper_markdown, markdown_table
from lightning_rarlhf.terminal.plain_text import name_to_show

MAIN = "report.md"
TEXTS = (MAIN, "table.csv", "table.tex", "matched_kl.csv")
"""every text file that a report can have"""
_CAPTIONS = {
    "quantile_curve": "Bands: bootstrap over prompts, at each share of prompts by itself; not for the whole curve, "
    f"and none of fewer than {LEAST_TAIL} prompts. Of more than six methods only the first one's is drawn.",
    "score_quantiles": "Bands: Dvoretzky-Kiefer-Wolfowitz over prompts, for a method's whole curve at once, valid for "
    "every number of prompts. They cover no training seeds, and two bands that overlap do not make two methods equal: "
    "the paired differences in the tables are sharper. Of more than six methods only the first one's is drawn.",
    "frontier": "Bars: bootstrap over prompts, of each run by itself; none where the prompts are too few.",
    "matched_kl": "Bands: above at each KL, below (differences) at all KL at once, each method and each "
    "statistic by itself.",
}
"""which interval a picture shows"""
_SHOWN_KL = 5
"""KL values of the table in report.md; the CSV file has them all"""
_MATCHED_COLUMNS = ("statistic", "kl", "quantity", "estimate", "low", "high", "interval")
_TOO_FAR = "none: runs too far apart to interpolate"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that a report shows."""

    runs: Sequence[Method]
    """all runs, those of sweeps included, by label"""
    comparison: Comparison | None
    matched: MatchedKL | None
    notes: Sequence[str]
    pictures: Sequence[Path]
    """PNG files, in reading order"""


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write the text files of the report; each replaces its former version in one move.

    Returns:
        the paths written.
    """
    texts = {"report.md": _markdown(report, folder)}
    if report.comparison is not None:
        texts |= {"table.csv": as_csv(report.comparison), "table.tex": as_latex(report.comparison)}
    if report.matched is not None:
        texts["matched_kl.csv"] = _matched_csv(report.matched)
    return [_write(folder / name, text) for name, text in texts.items()]


def _write(path: Path, text: str) -> Path:
    with in_one_move(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def _markdown(report: Report, folder: Path) -> str:
    first = report.runs[0].runs[0]
    data = first.identity.get("data") or {}
    parts = [f"# {data.get('name') or 'Report'}: {', '.join(method.label for method in report.runs)}"]
    if report.comparison is not None:
        lines = [*explanation(report.comparison), *report.notes]
        parts.append("\n".join(f"- {line}" for line in lines))
        if paper_metrics(report.comparison):
            parts += ["## In the paper's form", as_paper_markdown(report.comparison)]
        parts += ["## Every metric", as_markdown(report.comparison)]
    elif report.notes:
        parts.append("\n".join(f"- {line}" for line in report.notes))
    if report.matched is not None:
        parts += ["## At equal KL", "\n".join(f"- {line}" for line in statements(report.matched))]
        parts += [_matched_markdown(match, report.matched) for match in report.matched.matches if len(match.kl)]
    if report.pictures:
        parts.append("## Pictures")
        parts += [_picture(path.relative_to(folder).as_posix()) for path in report.pictures]
    parts += ["## Runs", _runs_markdown(report.runs)]
    return "\n\n".join(parts) + "\n"


def _picture(path: str) -> str:
    name = Path(path).stem
    picture = f"![{name.replace('_', ' ')}]({path})"
    return f"{picture}\n\n{_CAPTIONS[name]}" if name in _CAPTIONS else picture


def _matched_markdown(match: Match, result: MatchedKL) -> str:
    """A few KL values; intervals where runs are near, differences in bold where their simultaneous band excludes 0."""
    rows = []
    for at in np.linspace(0, len(match.kl) - 1, _SHOWN_KL).round().astype(int):
        row = [number(match.kl[at], 2)]
        for statistic in STATISTICS:
            curves = (*match.curves[statistic], match.difference[statistic])
            row += [_at(curve, at, sign=curve is curves[2], near=bool(match.supported[at])) for curve in curves]
        rows.append(row)
    tail = f"worst {100 * result.alpha:g} %"
    names = [f"{name}: {what}" for name in ("mean", tail) for what in (match.first, match.second, "difference")]
    return markdown_table(["KL (nats)", *names], rows)


def _at(curve: Curve, at: int, *, sign: bool, near: bool) -> str:
    estimate, low, high = (float(part[at]) for part in curve)
    if not near or not math.isfinite(high - low):
        return number(estimate, 3, sign=sign)
    text = f"{number(estimate, 3, sign=sign)}<br>[{number(low, 3, sign=sign)} to {number(high, 3, sign=sign)}]"
    return f"**{text}**" if sign and not low <= 0 <= high else text


def _matched_csv(result: MatchedKL) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_MATCHED_COLUMNS)
    for match in result.matches:
        for statistic in STATISTICS if len(match.kl) else ():
            name = statistic if statistic == "mean" else f"mean of the worst {100 * result.alpha:g} %"
            pointwise = f"{100 * result.confidence:g} % at each KL"
            simultaneous = f"{100 * result.confidence:g} % at all KL at once"
            quantities = (
                (match.first, match.curves[statistic][0], pointwise),
                (match.second, match.curves[statistic][1], pointwise),
                (f"{match.second} - {match.first}", match.difference[statistic], simultaneous),
            )
            few = result.few.get(statistic)
            too_few = f"none: fewer than {LEAST_TAIL} prompts {few}" if few else ""
            for quantity, curve, interval in quantities:
                columns = (match.kl, match.supported, *curve)
                for kl, near, estimate, low, high in zip(*(column.tolist() for column in columns), strict=True):
                    none = too_few or ("" if near else _TOO_FAR)
                    ends = (-math.inf, math.inf, none) if none else (low, high, interval)
                    writer.writerow([name, kl, quantity, estimate, *ends])
    return file.getvalue()


def _trained(run: Run) -> str:
    """The state whose numbers these are: how many steps of which training, and whether validation chose it."""
    training = training_of(run)
    if not training:
        return "–"
    chosen = ", chosen by validation" if chosen_by_validation(run) else ""
    seed = "" if training["seed"] is None else f", seed {training['seed']}"
    return f"{training['module']}, {training['steps']} steps{seed}{chosen}"


def _runs_markdown(methods: Iterable[Method]) -> str:
    rows = []
    for method in methods:
        for run in method.runs:
            known = run.identity
            data = known.get("data") or {}
            rows.append(
                [
                    method.label,
                    f"`{name_to_show(str(run.folder))}`",
                    str(known.get("policy")),
                    _trained(run),
                    str(data.get("name")),
                    str(known["evaluation"].get("seed")),
                    str(known.get("config_sha256") or "–")[:12],
                    str(known["generations_sha256"])[:12],
                    str(known.get("code_version")),
                    str(known.get("created")),
                ]
            )
    header = [
        "method",
        "run",
        "policy",
        "trained",
        "data",
        "evaluation seed",
        "config",
        "generations",
        "version",
        "tested",
    ]
    return markdown_table(header, rows)
