"""What is unequal between runs without forbidding the comparison, in a sentence each: a reader has to know it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from lightning_rarlhf.report.comparison import Comparison
from lightning_rarlhf.report.methods import Method
from lightning_rarlhf.report.numbers import decimals_for, ends, number

_SAMPLING = ("temperature", "top_k", "top_p", "min_new_tokens", "max_new_tokens")


def notes(comparison: Comparison) -> list[str]:
    """Of unequal sampling, references and KL; the last only where the difference is clear."""
    return [*_sampling(comparison.methods), *_references(comparison.methods), *_kl(comparison)]


def one_reference(methods: Sequence[Method]) -> bool:
    """Whether every run's KL is measured from the same model."""
    return len({reference_of(run.identity.get("reference")) for method in methods for run in method.runs}) == 1


def reference_of(name: object) -> str:
    """A reference's name; a folder by its real path."""
    text = str(name)
    return os.path.realpath(text) if os.path.isdir(text) else text


def _sampling(methods: Sequence[Method]) -> Iterator[str]:
    for key in _SAMPLING:
        used = {
            method.label: ", ".join(sorted({str((run.identity.get("sampling") or {}).get(key)) for run in method.runs}))
            for method in methods
        }
        if len(set(used.values())) > 1:
            yield (
                f"Sampling differs: {key} is " + "; ".join(f"{value} in {label}" for label, value in used.items()) + "."
            )


def _references(methods: Sequence[Method]) -> Iterator[str]:
    if not one_reference(methods):
        yield "KL is measured from different references; KL values are not comparable, and no frontier is drawn."


def _kl(comparison: Comparison) -> Iterator[str]:
    """Between the first method that was trained and those after it; the baseline is often the reference itself."""
    row = comparison.cells.get("kl_mean", {})
    if len(row) < 3 or not one_reference(comparison.methods):
        return
    labels = [method.label for method in comparison.methods[1:] if method.label in row]
    decimals = decimals_for([row[label].estimate for label in labels])
    intervals = [row[label].estimate for label in labels]
    apart = any(a.low > b.high or b.low > a.high for a in intervals for b in intervals)
    if apart:
        each = ", ".join(
            f"{label} {number(row[label].estimate.estimate, decimals)} ({ends(row[label].estimate, decimals)})"
            for label in labels
        )
        yield f"KL from the reference is not equal: {each} nats. Compare rewards at equal KL with --sweep."
