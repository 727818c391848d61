"""The two claims on a tail that fresh prompts can show, and what either needs; nothing is assumed of the scores.

A trial is one prompt with one completion, drawn as the prompts that the claim is on. Each claim errs with chance
1 - confidence at most; of several claims on the same prompts one or more errs with the sum of their chances at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from lightning_rarlhf.certify.numbers import at_least, at_most_percent, exact, exact_percent
from lightning_rarlhf.errors import DataError, UserError
from lightning_rarlhf.functional.bounds import (
    anderson_cvar_bound,
    clopper_pearson,
    prompts_needed_for_cvar,
    prompts_needed_for_rate,
    shows_cvar,
    shows_rate,
)
from lightning_rarlhf.functional.tail_reward import as_score

if TYPE_CHECKING:
    from lightning_rarlhf.functional.checks import Array

_PLANNED_FAILURES = (0, 1, 2, 5, 10, 20, 50)
_PLANNED_RATES = (0.1, 0.2, 0.5)
"""true rates, as shares of the claimed one, for which a plan tells the chance of success"""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the trials say of a claim."""

    shown: bool
    """whether the bound keeps the claim"""
    n: int
    """trials"""
    failures: int | None
    """scores below the threshold; None for a claim on the mean of a tail"""
    estimate: float
    """rate of failures, or CVaR, of the trials themselves"""
    bound: float
    """with this confidence the rate is at most, or the CVaR at least, this"""
    method: str
    """of the bound"""
    needed: int | None
    """prompts that would show the claim with as many failures, or with scores distributed as these; None = no number
    of them, for the trials' own rate or CVaR does not keep the claim"""
    sentence: str
    """all that in words"""


@dataclass(frozen=True, kw_only=True)
class PlannedRow:
    """One way to show a claim on a rate."""

    failures: int
    """allowed"""
    prompts: int
    """needed"""
    chance: dict[str, float]
    """of showing the claim, by the true rate in %"""


@dataclass(frozen=True, kw_only=True)
class RateClaim:
    """P(score < threshold) ≤ max_rate, by the exact binomial bound of Clopper and Pearson."""

    kind: ClassVar[str] = "rate"
    threshold: float
    """a score below it is a failure, in the score's own unit"""
    max_rate: float
    """in (0, 1)"""
    confidence: float
    """in (0, 1)"""

    def __post_init__(self) -> None:
        _require_share("max_rate", self.max_rate)
        _require_share("confidence", self.confidence)

    def __str__(self) -> str:
        rate, confidence = exact_percent(self.max_rate), exact_percent(self.confidence)
        return f"P(score < {exact(self.threshold)}) ≤ {rate}, with {confidence} confidence"

    def verdict(self, scores: Array) -> Verdict:
        """Judge by one score per fresh prompt, f64 [n]."""
        failures, n = int((scores < as_score(self.threshold)).sum()), len(scores)
        upper = clopper_pearson(failures, n, self.confidence, "upper")
        needed = self.needed(failures) if upper.estimate < self.max_rate else None
        shown = shows_rate(failures, n, self.max_rate, 1 - self.confidence)
        # the bound is a root that was searched for: in its last digits it may be on the other side of the claim
        bound = min(upper.high, self.max_rate) if shown else max(upper.high, math.nextafter(self.max_rate, 1))
        at_most = at_most_percent(bound, self.max_rate)
        seen = f"{failures:,} of {n:,} prompts failed, so that the rate is at most {at_most}"
        return Verdict(
            shown=shown,
            n=n,
            failures=failures,
            estimate=upper.estimate,
            bound=bound,
            method=upper.method,
            needed=needed,
            sentence=f"{_opening(shown)}: {self}; {seen}{'' if shown else f'; {self._missing(failures, needed)}'}.",
        )

    def needed(self, failures: int = 0) -> int:
        """Fewest prompts that show the claim when so many of them fail."""
        try:
            return prompts_needed_for_rate(self.max_rate, 1 - self.confidence, failures=failures)
        except ValueError as error:
            raise UserError(f"max_rate: got {self.max_rate:g}, but {error}") from None

    def plan(self) -> list[PlannedRow]:
        """How many prompts to draw: for some numbers of failures, the prompts and the chance of success."""
        from scipy import stats

        def row(failures: int) -> PlannedRow:
            n, rates = self.needed(failures), [share * self.max_rate for share in _PLANNED_RATES]
            chance = {_percent(rate): float(stats.binom.cdf(failures, n, rate)) for rate in rates}
            return PlannedRow(failures=failures, prompts=n, chance=chance)

        return [row(failures) for failures in _PLANNED_FAILURES]

    def plan_sentence(self) -> str:
        """The least that the claim needs."""
        return f"{self}: needs {self.needed():,} fresh prompts if none fails, {self.needed(1):,} if one does."

    def _missing(self, failures: int, needed: int | None) -> str:
        if needed is None:
            return "the rate seen is not below the claimed one, so more prompts like these would not show it"
        if failures == 0:
            return f"with no failure the claim needs {needed:,} prompts"
        count = f"{failures:,} failure{'s' if failures > 1 else ''}"
        return f"with {count} the claim needs {needed:,} prompts, with none {self.needed():,}"


@dataclass(frozen=True, kw_only=True)
class CVaRClaim:
    """CVaR_α of the score ≥ min_cvar, by the bound of Anderson and DKW for scores in a known range."""

    kind: ClassVar[str] = "cvar"
    min_cvar: float
    """in the score's own unit"""
    alpha: float
    """risk level in (0, 1]"""
    low: float
    """least score possible, known before looking at the scores"""
    high: float
    """highest score possible"""
    confidence: float
    """in [0.5, 1)"""

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1:
            raise UserError(f"confidence: got {self.confidence:g}, expected at least 0.5 and less than 1")
        if not 0 < self.alpha <= 1:
            raise UserError(f"alpha: got {self.alpha:g}, expected more than 0 and at most 1")
        if not self.low < self.high:
            raise UserError(f"range: got {self.low:g} to {self.high:g}, expected the lower end first")
        if not self.low < self.min_cvar < self.high:
            raise UserError(
                f"min_cvar: got {self.min_cvar:g}, expected a value inside the range, {self.low:g} to {self.high:g}"
            )

    def __str__(self) -> str:
        of = "all" if self.alpha == 1 else f"the worst {exact_percent(self.alpha)} of"
        return f"mean of {of} scores ≥ {exact(self.min_cvar)}, with {exact_percent(self.confidence)} confidence"

    def verdict(self, scores: Array) -> Verdict:
        """Judge by one score per fresh prompt, f64 [n].

        Raises:
            DataError: if a score is out of the range, or the tail is less than one prompt.
        """
        self._require_in_range(scores)
        if self.alpha * len(scores) < 1 - 1e-12:
            raise DataError(
                f"alpha: got {self.alpha:g} of {len(scores)} prompts, a tail of less than one; give more: "
                f"{self.plan_sentence()}"
            )
        lower = anderson_cvar_bound(scores, self.alpha, minimum=self.low, confidence=self.confidence)
        shown = shows_cvar(lower.low, self.min_cvar)
        bound = max(lower.low, self.min_cvar) if shown else lower.low  # equal up to rounding error counts as equal
        needed = self.needed(scores)
        proved = at_least(bound, self.min_cvar)
        seen = f"{len(scores):,} prompts have {lower.estimate:.4g}, so that it is at least {proved}"
        return Verdict(
            shown=shown,
            n=len(scores),
            failures=None,
            estimate=lower.estimate,
            bound=bound,
            method=lower.method,
            needed=needed,
            sentence=f"{_opening(shown)}: {self}; {seen}{'' if shown else f'; {self._missing(needed)}'}.",
        )

    def needed(self, scores: Array) -> int | None:
        """Fewest prompts that show the claim if their scores are distributed exactly as `scores` [n]; None = no number.

        Chance makes them a little better or worse: a new set of that size shows the claim about every second time.
        """
        return prompts_needed_for_cvar(scores, self.alpha, self.min_cvar, minimum=self.low, confidence=self.confidence)

    def plan_sentence(self) -> str:
        """The least that the claim needs: every score is the highest possible."""
        import numpy as np

        least = self.needed(np.array([self.high]))
        best = exact(self.high)
        return f"{self}: needs at least {least:,} fresh prompts, if all of them score {best}; others need more."

    def _missing(self, needed: int | None) -> str:
        if needed is None:
            return "the mean seen is not above the claimed one, so more prompts like these would not show it"
        return f"with scores distributed as these the claim needs {needed:,} prompts"

    def _require_in_range(self, scores: Array) -> None:
        outside = int(((scores < self.low) | (scores > self.high)).sum())
        if outside:
            raise DataError(
                f"range: got {self.low:g} to {self.high:g}, but {outside:,} of {len(scores):,} scores are outside; "
                f"they go from {scores.min():.4g} to {scores.max():.4g}; give the range that the score cannot leave"
            )


Claim: TypeAlias = RateClaim | CVaRClaim


def _opening(shown: bool) -> str:
    return "Shown" if shown else "Not shown"


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _require_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise UserError(f"{name}: got {value:g}, expected more than 0 and less than 1")
