"""The side-by-side table in four forms: terminal, Markdown, CSV, LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from lightning_rarlhf.functional.statistics import SMALL_NOTE, Interval, is_small
from lightning_rarlhf.report.comparison import Cell, Comparison
from lightning_rarlhf.report.methods import Method
from lightning_rarlhf.report.metric_names import metric_name
from lightning_rarlhf.report.numbers import TOO_FEW, decimals_for, ends, number, spread, verdict
from lightning_rarlhf.report.variance_words import variance_lines

PAPER_COLUMNS = ("score_mean", r"score_tail_le_.*", "cvar_10", "perplexity", "kl_mean")
"""metrics of the paper's Tables 2 and 3, with KL beside them: rewards at different KL are not like for like"""
_WIDE = 10_000
"""columns of a terminal that is none: a file or a pipe takes any width"""
_NAME = 30
"""columns that a metric's name has at least, if the terminal is narrow"""
_CSV_COLUMNS = (
    "metric",
    "method",
    "quantity",
    "estimate",
    "low",
    "high",
    "confidence",
    "n",
    "interval",
    "few_prompts",
    "seeds",
    "sd_over_seeds",
    "verdict",
)
_LATEX = {"\\": r"\textbackslash{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"}, "~": r"\textasciitilde{}"}
_LATEX |= {"^": r"\textasciicircum{}", "≤": r"$\leq$", "±": r"$\pm$", "−": "$-$", "↑": r"$\uparrow$"}
_LATEX |= {"↓": r"$\downarrow$", "α": r"$\alpha$", "Δ": r"$\Delta$", "†": r"$\dagger$"}


@dataclass(frozen=True, kw_only=True)
class CellText:
    """What is printed of one cell."""

    estimate: str
    interval: str
    difference: str = ""
    """to the baseline"""
    difference_interval: str = ""
    clear: bool = False
    """whether the difference's interval excludes 0"""


def cell_texts(comparison: Comparison, metric: str) -> list[CellText | None]:
    """The row of `metric`, one entry per method; None where its results lack it."""
    row = comparison.cells[metric]
    decimals = decimals_for([cell.estimate for cell in row.values()])
    return [_text(row[method.label], decimals) if method.label in row else None for method in comparison.methods]


def _text(cell: Cell, decimals: int) -> CellText:
    estimate = number(cell.estimate.estimate, decimals) + spread(cell.seeds, decimals)
    interval = _marked(cell.estimate, decimals)
    if cell.difference is None:
        return CellText(estimate=estimate, interval=interval)
    change = cell.difference
    return CellText(
        estimate=estimate,
        interval=interval,
        difference=f"Δ {number(change.estimate, decimals, sign=True)}",
        difference_interval=_marked(change, decimals, sign=True),
        clear=change.excludes(0.0),
    )


def heading_of(method: Method) -> str:
    """The method's label, and how many seeds it was trained with if several."""
    return f"{method.label} ({len(method.runs)} seeds)" if len(method.runs) > 1 else method.label


def explanation(comparison: Comparison) -> list[str]:
    """What a reader must know to read the table, a sentence a line."""
    baseline, run = comparison.methods[0], comparison.methods[0].runs[0]
    lines = [f"{len(run):,} prompts; in brackets and below estimates: {100 * run.confidence:g} % intervals."]
    if len(comparison.methods) > 1:
        tested = sum(cell.difference is not None for row in comparison.cells.values() for cell in row.values())
        by_chance = tested * (1 - run.confidence)
        lines.append(
            f"Δ: difference to {baseline.label} on the same prompts; * its interval excludes 0. "
            f"Of {tested} differences about {by_chance:.1f} would exclude 0 by chance alone if there were none."
        )
    if any(len(method.runs) > 1 for method in comparison.methods):
        lines.append("± standard deviation across training seeds.")
    lines += variance_lines(comparison.methods)
    if any(map(is_small, _intervals(comparison))):
        lines.append(SMALL_NOTE)
    if comparison.unpaired:
        names = ", ".join(metric_name(metric).title for metric in comparison.unpaired)
        lines.append(f"Not compared prompt by prompt, hence without Δ: {names}.")
    return lines


def _intervals(comparison: Comparison) -> Iterator[Interval]:
    for cell in (cell for row in comparison.cells.values() for cell in row.values()):
        yield cell.estimate
        if cell.difference is not None:
            yield cell.difference


def _marked(interval: Interval, decimals: int, *, sign: bool = False) -> str:
    """The ends, with a dagger where they rest on few prompts."""
    return ends(interval, decimals, sign=sign) + (" †" if is_small(interval) else "")


def print_comparison(comparison: Comparison) -> None:
    """Show the table in the terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    console.width = console.width if console.is_terminal else _WIDE
    columns = [[escape(heading_of(method))] for method in comparison.methods]
    for metric in comparison.cells:
        for column, text in zip(columns, cell_texts(comparison, metric), strict=True):
            column.append(_terminal(text))
    names = ["", *[metric_name(metric).heading for metric in comparison.cells]]
    for part in _fitting(names, columns, console.width):
        table = Table(names[0], show_lines=True)
        for heading, *_ in part:
            table.add_column(heading, justify="right", no_wrap=True)
        for row in zip(names[1:], *(column[1:] for column in part), strict=True):
            table.add_row(escape(row[0]), *row[1:])
        console.print(table)
    for line in explanation(comparison):
        console.print(line, markup=False)


def _fitting(names: Sequence[str], columns: Sequence[list[str]], width: int) -> list[list[list[str]]]:
    """The columns of each table, so that none is wider than the terminal; names of metrics may be wrapped."""
    from rich.cells import cell_len
    from rich.markup import render

    room = width - 4 - min(_NAME, max(map(len, names)))
    tables: list[list[list[str]]] = []
    left = 0
    for column in columns:
        own = 3 + max(cell_len(line) for text in column for line in render(text).plain.split("\n"))
        if not tables or own > left:
            tables.append([])
            left = room
        tables[-1].append(column)
        left -= own
    return tables


def _terminal(text: CellText | None) -> str:
    if text is None:
        return "–"
    lines = [text.estimate, text.interval]
    if text.difference:
        lines += [f"[bold]* {text.difference}[/bold]" if text.clear else text.difference, text.difference_interval]
    return "\n".join(line.replace(TOO_FEW, TOO_FEW.replace(" for ", "\nfor ")) for line in lines)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A pipe table: the first column to the left, the others to the right."""
    align = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in [header, align, *rows]
    )


def as_markdown(comparison: Comparison) -> str:
    """Metrics as rows, methods as columns."""
    header = ["metric", *[heading_of(method) for method in comparison.methods]]
    rows = [
        [metric_name(metric).heading, *map(_markdown, cell_texts(comparison, metric))] for metric in comparison.cells
    ]
    return markdown_table(header, rows)


def paper_metrics(comparison: Comparison) -> list[str]:
    """The metrics of the paper's tables that there are, in their order."""
    return [name for pattern in PAPER_COLUMNS for name in comparison.cells if re.fullmatch(pattern, name)]


def as_paper_markdown(comparison: Comparison) -> str:
    """Methods as rows, a column for each of `PAPER_COLUMNS`."""
    metrics = paper_metrics(comparison)
    columns = [cell_texts(comparison, metric) for metric in metrics]
    rows = [
        [heading_of(method), *[_markdown(column[number]) for column in columns]]
        for number, method in enumerate(comparison.methods)
    ]
    return markdown_table(["method", *[metric_name(metric).heading for metric in metrics]], rows)


def _markdown(text: CellText | None) -> str:
    if text is None:
        return "–"
    lines = [text.estimate, f"[{text.interval}]"]
    if text.difference:
        change = f"{text.difference} ({text.difference_interval})"
        lines.append(f"**\\* {change}**" if text.clear else change)
    return "<br>".join(lines)


def as_csv(comparison: Comparison) -> str:
    """One line per metric, method and quantity (estimate, difference), at full precision."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for metric, row in comparison.cells.items():
        for label, cell in row.items():
            seeds = [cell.seeds.n, cell.seeds.sd if cell.seeds.n > 1 else ""]
            writer.writerow([metric, label, "estimate", *_csv_interval(cell.estimate), *seeds, ""])
            if cell.difference is not None:
                change = cell.difference
                quantity = f"difference to {comparison.methods[0].label}"
                writer.writerow([metric, label, quantity, *_csv_interval(change), "", "", verdict(change)])
    return file.getvalue()


def _csv_interval(interval: Interval) -> list[object]:
    return [
        interval.estimate,
        interval.low,
        interval.high,
        interval.confidence,
        interval.n,
        interval.method,
        "†" if is_small(interval) else "",
    ]


def as_latex(comparison: Comparison) -> str:
    """Two `tabular`s for the booktabs package: methods as rows as in the paper, and every metric."""
    metrics = paper_metrics(comparison)
    columns = [cell_texts(comparison, metric) for metric in metrics]
    by_method = [
        [heading_of(method), *[column[number] for column in columns]]
        for number, method in enumerate(comparison.methods)
    ]
    by_metric = [[metric_name(metric).heading, *cell_texts(comparison, metric)] for metric in comparison.cells]
    notes = "\n".join(f"% {line}" for line in explanation(comparison))
    parts = [
        r"% \usepackage{booktabs}",
        notes,
        _tabular(["method", *[metric_name(metric).heading for metric in metrics]], by_method),
        _tabular(["metric", *[heading_of(method) for method in comparison.methods]], by_metric),
    ]
    return "\n\n".join(parts) + "\n"


def _tabular(header: Sequence[str], rows: Iterable[Sequence[str | CellText | None]]) -> str:
    """Estimates in one line, their intervals and differences small below them."""
    body = [" & ".join(_latex(title) for title in header) + r" \\", r"\midrule"]
    for row in rows:
        name, cells = row[0], [cell if isinstance(cell, CellText) else None for cell in row[1:]]
        body.append(
            " & ".join([_latex(str(name)), *[_latex(cell.estimate) if cell else "--" for cell in cells]]) + r" \\"
        )
        body.append(" & ".join(["", *[_small(f"[{cell.interval}]") if cell else "" for cell in cells]]) + r" \\")
        if any(cell and cell.difference for cell in cells):
            body.append(" & ".join(["", *[_latex_difference(cell) for cell in cells]]) + r" \\")
    align = "l" + "r" * (len(header) - 1)
    return "\n".join([rf"\begin{{tabular}}{{{align}}}", r"\toprule", *body, r"\bottomrule", r"\end{tabular}"])


def _latex_difference(cell: CellText | None) -> str:
    if cell is None or not cell.difference:
        return ""
    text = _small(f"{'* ' if cell.clear else ''}{cell.difference} ({cell.difference_interval})")
    return rf"\textbf{{{text}}}" if cell.clear else text


def _small(text: str) -> str:
    return rf"{{\scriptsize {_latex(text)}}}"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)
