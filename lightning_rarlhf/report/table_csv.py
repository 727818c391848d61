"""The side-by-side table as CSV, for other programs."""

from __future__ import annotations

import csv
import io

from lightning_rarlhf.functional.statistics import Interval, is_small
from lightning_rarlhf.report.comparison import Comparison
from lightning_rarlhf.report.numbers import verdict

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
