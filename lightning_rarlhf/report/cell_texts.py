"""What the side-by-side table says in each cell, whatever its form, and what a reader must know to read it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lightning_rarlhf.functional.statistics import SMALL_NOTE, Interval, is_small
from lightning_rarlhf.report.comparison import Cell, Comparison
from lightning_rarlhf.report.methods import Method
from lightning_rarlhf.report.metric_names import metric_name
from lightning_rarlhf.report.numbers import decimals_for, ends, number, spread
from lightning_rarlhf.report.variance_words import variance_lines

PAPER_COLUMNS = ("score_mean", r"score_tail_le_.*", "cvar_10", "perplexity", "kl_mean")
"""metrics of the paper's Tables 2 and 3, with KL beside them: rewards at different KL are not like for like"""


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


def paper_metrics(comparison: Comparison) -> list[str]:
    """The metrics of the paper's tables that there are, in their order."""
    return [name for pattern in PAPER_COLUMNS for name in comparison.cells if re.fullmatch(pattern, name)]


def heading_of(method: Method) -> str:
    """The method's label, and how many seeds it was trained with if several."""
    return f"{method.label} ({len(method.runs)} seeds)" if len(method.runs) > 1 else method.label


def explanation(comparison: Comparison) -> list[str]:
    """What a reader must know to read the table, a sentence a line."""
    baseline, run = comparison.methods[0], comparison.methods[0].runs[0]
    lines = [f"{len(run):,} prompts; in brackets and below estimates: {100 * run.confidence:g} % intervals."]
    if len(comparison.methods) > 1:
        cells = [cell for row in comparison.cells.values() for cell in row.values()]
        tested = sum(cell.difference is not None and cell.difference.is_bounded for cell in cells)
        lines.append(
            f"Δ: difference to {baseline.label} on the same prompts; * its interval excludes 0. "
            f"{_by_chance(tested, 1 - run.confidence)}"
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


def _by_chance(tested: int, error: float) -> str:
    if not tested:
        return "No difference has an interval: the prompts are too few."
    return (
        f"Of {tested} differences with an interval about {tested * error:.1f} would exclude 0 by chance alone if there "
        "were none."
    )


def _intervals(comparison: Comparison) -> Iterator[Interval]:
    for cell in (cell for row in comparison.cells.values() for cell in row.values()):
        yield cell.estimate
        if cell.difference is not None:
            yield cell.difference


def _marked(interval: Interval, decimals: int, *, sign: bool = False) -> str:
    """The ends, with a dagger where they rest on few prompts."""
    return ends(interval, decimals, sign=sign) + (" †" if is_small(interval) else "")
