"""The side-by-side table in LaTeX, as a paper prints it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lightning_rarlhf.report.cell_texts import CellText, cell_texts, explanation, heading_of, paper_metrics
from lightning_rarlhf.report.comparison import Comparison
from lightning_rarlhf.report.metric_names import metric_name

_LATEX = {"\\": r"\textbackslash{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"}, "~": r"\textasciitilde{}"}
_LATEX |= {"^": r"\textasciicircum{}", "≤": r"$\leq$", "±": r"$\pm$", "−": "$-$", "↑": r"$\uparrow$"}
_LATEX |= {"↓": r"$\downarrow$", "α": r"$\alpha$", "Δ": r"$\Delta$", "†": r"$\dagger$"}


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
