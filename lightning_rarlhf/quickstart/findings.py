"""What the tests of the quickstart's policies say: numbers with intervals, and sentences that claim no more."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lightning_rarlhf.functional.bounds import clopper_pearson
from lightning_rarlhf.functional.statistics import Interval, mean_interval
from lightning_rarlhf.functional.tail_intervals import cvar_interval, paired_cvar_interval
from lightning_rarlhf.quickstart.grammar import has_bold_word

Array: TypeAlias = NDArray[np.float64]

ALPHA = 0.1
"""risk level of the reported tail"""
TAIL = f"worst {100 * ALPHA:g} %"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One policy's test: n prompts, one response each."""

    name: str
    index: Array
    """[n], the prompts' numbers in the test set"""
    scores: Array
    """[n], in points"""
    kl: Array
    """[n], Σ_t KL from the SFT policy, in nats"""
    bold: int
    """responses with a bold word"""

    @property
    def mean(self) -> Interval:
        """Mean score."""
        return mean_interval(self.scores)

    @property
    def tail(self) -> Interval:
        """CVaR: mean score of the worst responses."""
        return cvar_interval(self.scores, ALPHA)

    @property
    def bad(self) -> Interval:
        """Share of bad outputs: those that score below 0, more harsh than kind."""
        return clopper_pearson(int((self.scores < 0).sum()), len(self.scores))

    @property
    def bold_share(self) -> Interval:
        """Share of responses that risk a bold word."""
        return clopper_pearson(self.bold, len(self.scores))


def read_outcome(name: str, generations: Path) -> Outcome:
    """Read the ``generations.jsonl`` that `test` wrote for the policy called `name`."""
    rows = [json.loads(line) for line in generations.read_text(encoding="utf-8").splitlines()]
    return Outcome(
        name=name,
        index=np.array([row["index"] for row in rows], dtype=np.float64),
        scores=np.array([row["score"] for row in rows], dtype=np.float64),
        kl=np.array([row["kl"] for row in rows], dtype=np.float64),
        bold=sum(has_bold_word(row["response"]) for row in rows),
    )


def change_of_mean(before: Outcome, after: Outcome) -> Interval:
    """Mean score after − before, prompt by prompt."""
    _require_same_prompts(before, after)
    return mean_interval(after.scores - before.scores)


def change_of_tail(before: Outcome, after: Outcome) -> Interval:
    """CVaR after − before, resampling prompts for both at once."""
    _require_same_prompts(before, after)
    return paired_cvar_interval(after.scores, before.scores, ALPHA)


def headline(before: Outcome, others: Sequence[Outcome]) -> str:
    """One line on the tail: what moved by how much, and what did not clearly move."""
    said = [f"{_moved(change_of_tail(before, after))} with {after.name}" for after in others]
    return f"The {TAIL} of outputs: {', '.join(said)}"


def comparison(before: Outcome, after: Outcome) -> str:
    """One line on how the mean and the tail changed, with 95 % intervals."""
    mean, tail = change_of_mean(before, after), change_of_tail(before, after)
    return (
        f"{after.name} against {before.name} on the same prompts: the mean is {_moved(mean)} {_between(mean)}, "
        f"the {TAIL} {_moved(tail)} {_between(tail)}."
    )


def print_outcomes(outcomes: Sequence[Outcome]) -> None:
    """Show every policy's numbers, each with its 95 % interval, and what changed since the first policy."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", title="estimate, and its 95 % interval", title_justify="left", show_lines=True)
    for outcome in outcomes:
        table.add_column(outcome.name, justify="right")
    rows = {
        "mean score (points)": [_cell(outcome.mean) for outcome in outcomes],
        f"mean of the {TAIL} (points)": [_cell(outcome.tail) for outcome in outcomes],
        "bad: score below 0 (%)": [_cell(outcome.bad, 100) for outcome in outcomes],
        "risks a bold word (%)": [_cell(outcome.bold_share, 100) for outcome in outcomes],
        "KL from SFT (nats)": [_cell(mean_interval(outcome.kl)) for outcome in outcomes],
    }
    for metric, cells in rows.items():
        table.add_row(metric, *cells)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print("A bold word pleases three readers in four and annoys the fourth; its prompt does not tell which.\n")
    for after in outcomes[1:]:
        console.print(comparison(outcomes[0], after))


def _cell(interval: Interval, factor: float = 1.0) -> str:
    estimate, low, high = (_number(factor * x) for x in (interval.estimate, interval.low, interval.high))
    return f"{estimate}\n{low} to {high}"


def _moved(change: Interval) -> str:
    if not change.excludes(0.0):
        return "not clearly moved"
    return f"{'up' if change.estimate > 0 else 'down'} {abs(change.estimate):.1f} points"


def _between(change: Interval) -> str:
    return f"({_number(change.low)} to {_number(change.high)})"


def _number(value: float) -> str:
    return f"{value:.1f}".replace("-", "−")


def _require_same_prompts(before: Outcome, after: Outcome) -> None:
    if not np.array_equal(before.index, after.index):
        raise ValueError(f"{after.name} and {before.name} were tested on different prompts; test them on the same ones")
