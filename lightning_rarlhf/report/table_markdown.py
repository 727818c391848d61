"""The side-by-side table in Markdown: every metric, and the paper's columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lightning_rarlhf.report.cell_texts import CellText, cell_texts, heading_of, paper_metrics
from lightning_rarlhf.report.comparison import Comparison
from lightning_rarlhf.report.metric_names import metric_name


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
