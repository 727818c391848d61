"""The limit by itself; what a run does with it is in `test_run_checkpoint`."""

from __future__ import annotations

import math

import pytest

from callbacks.rise_limit import RiseLimit
from lightning_rarlhf.errors import UserError


@pytest.mark.parametrize(
    ("value", "allowed"), [(30.0, True), (48.0, True), (math.nextafter(48.0, 99.0), False), (math.nan, False)]
)
def test_a_rise_of_exactly_the_share_is_allowed(value: float, allowed: bool) -> None:
    guard = RiseLimit("val/perplexity", 0.2, 40.0)
    assert guard.allows(value, 3) is allowed
    assert guard.refused == (not allowed)


def test_a_start_that_is_not_known_or_not_positive_is_refused() -> None:
    guard = RiseLimit("val/perplexity", 0.2, None)
    with pytest.raises(UserError, match="does not know val/perplexity at the start"):
        guard.allows(1.0, 0)
    for value in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="val/perplexity before the first iteration: got .*, expected a number"):
            guard.begin(value)
    assert guard.start is None


@pytest.mark.parametrize(("given", "start"), [(None, 40.0), (50.0, 50.0)])
def test_the_start_that_the_user_gives_goes_before_the_checkpoints(given: float | None, start: float) -> None:
    before = RiseLimit("val/perplexity", 0.0, None)
    before.begin(40.0)
    assert not before.allows(41.0, 1)
    resumed = RiseLimit("val/perplexity", 0.5, given)
    resumed.load_state_dict(before.state_dict())
    assert (resumed.start, resumed.refused, resumed.limit) == (start, 1, 1.5 * start)


def test_a_checkpoint_of_before_there_was_a_guard_knows_nothing() -> None:
    guard = RiseLimit("val/perplexity", 0.2, None)
    guard.load_state_dict({"monitor": None})
    assert (guard.start, guard.refused) == (None, 0)
