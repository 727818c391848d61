from __future__ import annotations

from types import SimpleNamespace

import pytest

from callbacks import RiskSchedule
from lightning_rarlhf.errors import ScheduleError


def started(schedule: RiskSchedule, total: float = 194, batch_size: int | None = 128) -> RiskSchedule:
    """Start it as a Trainer of `total` iterations would."""
    schedule.on_train_start(trainer_of(total, batch_size), SimpleNamespace(risk_level=1.0))
    return schedule


def trainer_of(total: float, batch_size: int | None = 128, global_step: int = 0):
    data = SimpleNamespace() if batch_size is None else SimpleNamespace(batch_size=batch_size)
    return SimpleNamespace(estimated_stepping_batches=total, datamodule=data, global_step=global_step)


def test_the_level_falls_from_1_to_alpha():
    schedule = started(RiskSchedule(risk_level=0.4, warmup=30, rho=0.95))
    levels = [schedule.level(m) for m in range(194)]
    assert levels[:31] == [1.0] * 31
    assert levels[31] == pytest.approx(1 - 0.6 / (185 - 30))
    assert levels[185:] == [0.4] * 9
    assert levels == sorted(levels, reverse=True)


def test_the_module_is_told_before_each_iteration():
    schedule = started(RiskSchedule(risk_level=0.4, warmup=30, rho=0.95))
    module = SimpleNamespace(risk_level=1.0)
    schedule.on_train_batch_start(trainer_of(194, global_step=190), module, None, 0)
    assert module.risk_level == 0.4


def test_it_says_what_it_will_do(capsys, caplog):
    caplog.set_level("INFO")
    started(RiskSchedule(risk_level=0.4, warmup=30, rho=0.95))
    text = caplog.text + capsys.readouterr().err
    assert "M=194" in text
    assert "m=33: 127" in text  # the first episode that is left out
    assert ": 52;" in text  # the final tail
    assert "73.8%" in text  # published schedule: mean kept fraction .738


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"risk_level": 0.0}, r"risk_level: got 0.0, expected α in \(0, 1\]"),
        ({"risk_level": 1.1}, "risk_level: got 1.1"),
        ({"rho": 0.0}, r"rho: got 0.0, expected ρ in \(0, 1\]"),
        ({"rho": 1.5}, "rho: got 1.5"),
        ({"warmup": -1}, "warmup: got -1, expected n ≥ 0"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, message):
    with pytest.raises(ScheduleError, match=message):
        RiskSchedule(**settings)


@pytest.mark.parametrize(
    ("schedule", "total", "batch_size", "message"),
    [
        (RiskSchedule(warmup=30, rho=0.5), 60, 128, "warmup n=30 is not before .* = 30"),
        (RiskSchedule(warmup=0, rho=1.0), 60, 128, "is never reached.*the last iteration is 59"),
        (RiskSchedule(warmup=0, rho=0.99), 60, 128, "is never reached"),
        (RiskSchedule(risk_level=0.1, warmup=0), 60, 8, r"less than one episode: α·B = 0.1·8 = 0.8.*at least 1/α = 10"),
        (RiskSchedule(warmup=0), float("inf"), 128, "the run has no end"),
        (RiskSchedule(warmup=0), 60, None, "no batch_size"),
    ],
)
def test_a_schedule_that_cannot_do_what_it_says_is_refused(schedule, total, batch_size, message):
    with pytest.raises(ScheduleError, match=message):
        started(schedule, total, batch_size)


def test_a_module_without_risk_level_is_refused():
    with pytest.raises(ScheduleError, match="has no risk_level"):
        RiskSchedule().setup(trainer_of(10), SimpleNamespace(), "fit")


def before_loaders(batches: int | None, **options):
    """A Trainer before it has asked for loaders; `batches` is what the data module knows of an epoch."""
    data = SimpleNamespace(batch_size=8) if batches is None else SimpleNamespace(batch_size=8, train_batches=batches)
    limits = {"max_steps": -1, "max_epochs": 1, "accumulate_grad_batches": 1} | options
    return SimpleNamespace(datamodule=data, **limits)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (before_loaders(31), "warmup n=30 is not before"),
        (before_loaders(62, accumulate_grad_batches=2), "warmup n=30 is not before"),
        (before_loaders(100, max_steps=31), "warmup n=30 is not before"),
        (before_loaders(None, max_steps=31, max_epochs=None), "warmup n=30 is not before"),
    ],
)
def test_a_run_that_is_too_short_is_refused_before_models_are_loaded(trainer, message):
    module, schedule = SimpleNamespace(risk_level=1.0), RiskSchedule(warmup=30)
    schedule.setup(trainer, module, "test")
    with pytest.raises(ScheduleError, match=message):
        schedule.setup(trainer, module, "fit")


@pytest.mark.parametrize(
    "trainer",
    [
        before_loaders(31, max_epochs=2),
        before_loaders(31, fast_dev_run=1),
        before_loaders(None),  # not known yet: it may be long enough
        before_loaders(31, max_epochs=-1),
    ],
)
def test_a_run_that_may_be_long_enough_begins(trainer):
    RiskSchedule(warmup=30).setup(trainer, SimpleNamespace(risk_level=1.0), "fit")


def test_risk_level_1_is_always_possible():
    assert started(RiskSchedule(risk_level=1.0, warmup=99, rho=1.0), 10).level(9) == 1.0


def test_the_level_is_unknown_before_the_fit():
    with pytest.raises(ScheduleError, match="no length yet"):
        RiskSchedule().level(0)


def test_a_resumed_schedule_tells_what_differs(caplog, capsys):
    caplog.set_level("INFO")
    state = started(RiskSchedule(risk_level=0.4)).state_dict()
    resumed = RiskSchedule(risk_level=0.3)
    resumed.load_state_dict(state)
    started(resumed, total=250)
    text = caplog.text + capsys.readouterr().err
    assert "risk_level is now 0.3; the checkpoint's was 0.4" in text
    assert "250 iterations; the checkpoint's had 194" in text
    assert resumed.level(249) == 0.3
