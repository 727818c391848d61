from __future__ import annotations

import pytest
import torch

from lightning_rarlhf.stepping import stopwatch
from lightning_rarlhf.stepping.stopwatch import Stopwatch


def test_phases_add_up_and_make_the_iteration(monkeypatch):
    times = iter([0.0, 1.0, 10.0, 12.0, 20.0, 24.0])
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(times))
    clock = Stopwatch(torch.device("cpu"))
    for phase in ("rollout", "score", "rollout"):
        with clock(phase):
            pass
    assert clock.seconds == {"rollout": 5.0, "score": 2.0, "iteration": 7.0}


def test_a_phase_that_fails_is_timed_and_fails(monkeypatch):
    times = iter([0.0, 3.0])
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(times))
    clock = Stopwatch(torch.device("cpu"))
    with pytest.raises(KeyError), clock("update"):
        raise KeyError
    assert clock.seconds["update"] == 3.0
