"""A short fault campaign; the long one is `python -m benchmarks.faults`."""

from __future__ import annotations

import random

from benchmarks.fault_world import World
from benchmarks.faults import kills


def test_a_run_that_is_killed_twice_loses_nothing(tmp_path):
    world = World(tmp_path, iterations=10)
    world.remember_reference(fresh=False)
    assert {kind for kind, _ in world.reference} == {"iteration", "validation", "end"}
    verdicts = list(kills(world, random.Random(1), 2))
    assert [lost for _, lost in verdicts] == [[], []]
    assert all("killed" in name for name, _ in verdicts), verdicts
