"""What is unequal between runs without forbidding the comparison, in a sentence each: a reader has to know it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lightning_rarlhf.report.comparison import Comparison
from lightning_rarlhf.report.identity import (
    chosen_by_validation,
    drawn_by,
    same_reference,
    seeds_unknown,
    training_of,
    unequal_steps,
)
from lightning_rarlhf.report.methods import Method
from lightning_rarlhf.report.numbers import decimals_for, ends, number
from lightning_rarlhf.report.training_chance import has_moved

_SAMPLING = ("temperature", "top_k", "top_p", "min_new_tokens", "max_new_tokens")


def notes(comparison: Comparison) -> list[str]:
    """Of unequal sampling, seeds without a record or unequally long, unequal references, and KL if clearly unequal.

    And of states that validation chose beside others.
    """
    methods = comparison.methods
    seeds = (*_unrecorded(methods), *_lengths(methods), *_states(methods))
    return [*_sampling(methods), *seeds, *_references(methods), *_kl(comparison)]


def one_reference(methods: Sequence[Method]) -> bool:
    """Whether every run's KL is measured from the same model."""
    runs = [run for method in methods for run in method.runs]
    return all(same_reference(runs[0], run) for run in runs)


def kl_bounds(methods: Sequence[Method]) -> list[str]:
    """Methods whose KL is a bound: at equal KL they are further from the reference on paper than in truth."""
    bounded = ", ".join(m.label for m in methods if any(drawn_by(run).get("kl_bound") for run in m.runs))
    said = (
        f"KL of {bounded} is an upper bound, log-ratios of the chosen responses plus a constant; intervals cover the "
        "first part alone, and a method that is ahead of these at equal KL may be level at their true KL."
    )
    return [said] if bounded else []


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


def _unrecorded(methods: Sequence[Method]) -> Iterator[str]:
    for method in methods:
        if seeds_unknown(method.runs):
            yield f"{method.label}: how its runs were trained is not recorded; they are taken as seeds by name."


def _lengths(methods: Sequence[Method]) -> Iterator[str]:
    for method in methods:
        if steps := unequal_steps(method.runs):
            after = f"{', '.join(map(str, steps))} steps"
            if all(map(chosen_by_validation, method.runs)):
                yield f"{method.label}: validation chose the states of its runs, after {after}."
            else:
                yield (
                    f"{method.label}: its runs were trained for {after}; unless validation chose that (early "
                    "stopping), they are not seeds of one method."
                )


def _states(methods: Sequence[Method]) -> Iterator[str]:
    """Where the best state of one method stands beside another's last, the choice is part of the difference."""
    trained = [method for method in methods if any(map(training_of, method.runs))]
    best = [method.label for method in trained if any(map(chosen_by_validation, method.runs))]
    other = [method.label for method in trained if method.label not in best]
    if best and other:
        yield (
            f"Validation chose the tested state of {', '.join(best)} among its fit's, not that of {', '.join(other)}: "
            "part of a difference between them may be that choice."
        )


def _references(methods: Sequence[Method]) -> Iterator[str]:
    if not one_reference(methods):
        yield "KL is measured from different references; KL values are not comparable, and no frontier is drawn."


def _kl(comparison: Comparison) -> Iterator[str]:
    """Between all methods, the baseline too, that are not the reference itself, whose KL is 0 for every response."""
    row = comparison.cells.get("kl_mean", {})
    if not one_reference(comparison.methods):
        return
    labels = [m.label for m in comparison.methods if m.label in row and any(map(has_moved, m.runs))]
    decimals = decimals_for([row[label].estimate for label in labels])
    intervals = [row[label].estimate for label in labels]
    apart = any(a.low > b.high or b.low > a.high for a in intervals for b in intervals)
    if apart:
        each = ", ".join(
            f"{label} {number(row[label].estimate.estimate, decimals)} ({ends(row[label].estimate, decimals)})"
            for label in labels
        )
        yield f"KL from the reference is not equal: {each} nats. Compare rewards at equal KL with --sweep."
