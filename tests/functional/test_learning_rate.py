from __future__ import annotations

import pytest

from lightning_rarlhf.functional.learning_rate import warmup_then_decay


def test_the_learning_rate_rises_then_falls_and_is_never_0_within_the_run():
    factors = [warmup_then_decay(step, warmup=4, total=12) for step in range(13)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:] == pytest.approx([1 - k / 8 for k in range(9)])
    assert min(factors[:12]) > 0
    assert warmup_then_decay(0, warmup=0, total=5) == 1.0
