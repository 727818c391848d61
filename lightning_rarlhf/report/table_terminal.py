"""The side-by-side table in the terminal, in as many parts as its width asks for."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_rarlhf.report.cell_texts import CellText, cell_texts, explanation, heading_of
from lightning_rarlhf.report.comparison import Comparison
from lightning_rarlhf.report.metric_names import metric_name
from lightning_rarlhf.report.numbers import TOO_FEW

_WIDE = 10_000
"""columns of a terminal that is none: a file or a pipe takes any width"""
_NAME = 30
"""columns that a metric's name has at least, if the terminal is narrow"""


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
