"""The guard of the best checkpoint: how far a second metric may have risen since the run began."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lightning_rarlhf.errors import UserError


class RiseLimit:
    """A positive metric, smaller = better, that no candidate for the best may have raised by more than a share.

    Attributes:
        metric: its name in the log; None = nothing is limited.
        start: its value before the first iteration; None = not known yet.
        refused: states that were above the limit so far.
    """

    def __init__(self, metric: str | None, max_rise: float, start: float | None) -> None:
        """Remember the limit.

        Args:
            metric: see above.
            max_rise: share by which it may exceed its start; 0.2 = at most 1.2 times as high.
            start: value that the rise is counted from; None = `begin` will say.

        Raises:
            UserError: no share, or a start that is not positive.
        """
        if not (math.isfinite(max_rise) and max_rise >= 0):
            raise UserError(f"max_rise: got {max_rise}, expected a share of at least 0; 0.2 = 20 % above the start")
        if start is not None:
            _require_positive(f"guard_start of {metric}", start)
        self.metric = metric
        self.max_rise = max_rise
        self.start = start
        self.refused = 0

    def require_start(self) -> float:
        """The start, from which the rise is counted.

        Raises:
            UserError: it is not known, as when a run goes on from a checkpoint that had no guard.
        """
        if self.start is None:
            raise UserError(
                f"guard: the checkpoint that the run goes on from does not know {self.metric} at the start; give "
                "checkpoint.guard_start"
            )
        return self.start

    @property
    def limit(self) -> float:
        """The highest value that is allowed."""
        return self.require_start() * (1 + self.max_rise)

    def begin(self, value: float) -> None:
        """Count the rise from `value`.

        Raises:
            UserError: it is not positive.
        """
        _require_positive(f"{self.metric} before the first iteration", value)
        self.start = value
        rank_zero_info(f"guard: {self.metric} starts at {value:.4g}; above {self.limit:.4g} nothing is the best")

    def allows(self, value: float, iteration: int) -> bool:
        """Whether a state with this value may be the best; NaN may not. Says so and counts it if not.

        Raises:
            UserError: the start is not known.
        """
        if value <= self.limit:
            return True
        self.refused += 1
        rank_zero_info(
            f"iteration {iteration}: {self.metric} is {value:.4g}, above the limit of {self.limit:.4g}; not a "
            "candidate for the best"
        )
        return False

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know."""
        return {"guard_start": self.start, "refused": self.refused}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it up again; a start that the user gives goes before the checkpoint's."""
        if self.start is None:
            self.start = state.get("guard_start")
        self.refused = state.get("refused", 0)


def _require_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{name}: got {value:g}, expected a number above 0: a share of it is what may be added")
