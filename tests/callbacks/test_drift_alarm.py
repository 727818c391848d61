from __future__ import annotations

import warnings

import pytest

from callbacks import DriftAlarm, RunCheckpoint
from lightning_rarlhf.errors import UserError
from tests.callbacks.scripted import MemoryLogger, fit

JUDGE = "val/judge/polite"
RISING = (0, 1, 2, 3, 4, 5, 6)
FALLING = (9, 8, 7, 6, 5, 4, 3)


def script(scores, judges):
    return {
        step: {"val/score_mean": float(score), JUDGE: float(judge)}
        for step, (score, judge) in enumerate(zip(scores, judges, strict=True))
    }


def alarm(**settings) -> DriftAlarm:
    return DriftAlarm(**{"judge": JUDGE, "window": 3, "min_trend": 1.0} | settings)


def rings(scores, judges, folder, **settings) -> list[int]:
    """Iterations at which the alarm was logged as on."""
    logger = MemoryLogger()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(script(scores, judges), [alarm(**settings)], folder, logger=logger)
    return [step for step, name, value in logger.logged if name == "drift/judge/polite" and value == 1]


def test_it_warns_once_when_reward_rises_and_the_judge_falls(tmp_path):
    logger = MemoryLogger()
    with pytest.warns(UserWarning, match="drift: from iteration 1 to 3, val/score_mean rose from 1 to 3 while") as said:
        fit(script(RISING, FALLING), [alarm()], tmp_path, logger=logger)
    messages = [str(warning.message) for warning in said if "drift:" in str(warning.message)]
    assert len(messages) == 1
    assert "val/judge/polite got worse, from 8 to 6" in messages[0]
    drift = [(step, value) for step, name, value in logger.logged if name == "drift/judge/polite"]
    assert drift == [(3, 1.0), (4, 1.0), (5, 1.0), (6, 1.0)]  # the window is full at iteration 3


@pytest.mark.parametrize(
    ("scores", "judges"),
    [(RISING, RISING), (FALLING, FALLING), (FALLING, RISING), (RISING, (5,) * 7), ((1,) * 7, FALLING)],
)
def test_it_is_silent_while_they_do_not_drift_apart(tmp_path, scores, judges):
    assert rings(scores, judges, tmp_path) == []


def test_it_ends_and_begins_again(tmp_path, caplog):
    caplog.set_level("INFO")
    # windows that end at 3, 4, 5, 6; the judge of the window ending at 4 is no longer falling
    assert rings(RISING, (9, 8, 7, 6, 7, 6, 5), tmp_path) == [3, 6]
    assert "iteration 4: val/score_mean and val/judge/polite no longer drift apart" in caplog.text


def test_a_judge_whose_small_values_are_good(tmp_path):
    assert rings(RISING, RISING, tmp_path, judge_mode="min") == [3, 4, 5, 6]
    assert rings(RISING, FALLING, tmp_path, judge_mode="min") == []


def test_the_window_and_the_trend_matter(tmp_path):
    nearly = (9, 8, 7, 7.5, 5, 4, 3)  # one pair of validations is out of order
    assert rings(RISING, nearly, tmp_path, window=5) == []
    assert rings(RISING, nearly, tmp_path, window=5, min_trend=0.8) == [5, 6]
    assert rings(RISING, FALLING, tmp_path, window=6) == [6]


def test_any_two_metrics_can_be_watched(tmp_path):
    scripted = {step: {"a": float(step), "b": -float(step)} for step in range(7)}
    with pytest.warns(UserWarning, match="a rose from 1 to 3 while b got worse, from -1 to -3"):
        fit(scripted, [alarm(score="a", judge="b")], tmp_path)


def test_it_can_end_the_fit(tmp_path):
    with pytest.warns(UserWarning, match="drift:"):
        trainer, module = fit(script(RISING, FALLING), [alarm(stop=True)], tmp_path)
    assert module.validated == [1, 2, 3]
    assert trainer.global_step == 3


def test_two_judges_have_an_alarm_each(tmp_path):
    scripted = {step: {**row, "val/judge/kind": float(step)} for step, row in script(RISING, FALLING).items()}
    first, second = alarm(), alarm(judge="val/judge/kind")
    with pytest.warns(UserWarning, match="val/judge/polite got worse"):
        fit(scripted, [first, second, RunCheckpoint(dirpath=str(tmp_path))], tmp_path)
    assert (first.ringing, second.ringing) == (True, False)


def test_a_resumed_run_goes_on_with_its_window(tmp_path):
    def callbacks() -> list:
        return [alarm(), RunCheckpoint(dirpath=str(tmp_path), every_n_iterations=1)]

    fit(script(RISING, FALLING), callbacks(), tmp_path, steps=2)
    resumed = callbacks()
    with pytest.warns(UserWarning, match="from iteration 1 to 3"):
        fit(script(RISING, FALLING), resumed, tmp_path, steps=3, ckpt_path=tmp_path / "last.ckpt")
    assert [step for step, _, _ in resumed[0].history] == [1, 2, 3]


def test_a_validation_that_a_resumed_run_repeats_counts_once(tmp_path):
    """The best checkpoint is written in its own validation, which a run that goes on from it catches up on."""

    def callbacks() -> list:
        return [alarm(), RunCheckpoint(dirpath=str(tmp_path), monitor="val/score_mean", save_top_k=9)]

    resumed = callbacks()
    with pytest.warns(UserWarning, match="from iteration 1 to 3"):
        fit(script(RISING, FALLING), callbacks(), tmp_path, steps=4)
    with pytest.warns(UserWarning, match="from iteration 1 to 3"):
        _, module = fit(script(RISING, FALLING), resumed, tmp_path, steps=3, ckpt_path=tmp_path / "best-step=2.ckpt")
    assert module.validated == [2, 3]
    assert resumed[0].history == [(1, 1.0, 8.0), (2, 2.0, 7.0), (3, 3.0, 6.0)]


def test_a_metric_that_is_not_logged_is_refused(tmp_path):
    with pytest.raises(UserError, match="'val/judge/kind' is not logged; expected one of .*val/judge/polite"):
        fit(script(RISING, FALLING), [alarm(judge="val/judge/kind")], tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 2}, "window=2, expected at least 3"),
        ({"min_trend": 0.0}, "min_trend=0.0, expected more than 0"),
        ({"score": JUDGE}, "judge and score are both val/judge/polite"),
    ],
)
def test_settings_that_make_no_alarm_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        alarm(**settings)
