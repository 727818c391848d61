from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from callbacks import RunCheckpoint
from lightning_rarlhf.errors import UserError
from tests.callbacks.scripted import ScriptedModule, fit

REWARD = (0.0, 1.0, 5.0, 3.0, 7.0, 6.0, 2.0)
PERPLEXITY = (40.0, 41.0, 44.0, 47.0, 60.0, 48.0, 50.0)
SCRIPT = {step: {"val/cvar_10": REWARD[step], "val/perplexity": PERPLEXITY[step]} for step in range(7)}


def checkpoint(folder: Path, **settings) -> RunCheckpoint:
    return RunCheckpoint(**{"dirpath": str(folder / "checkpoints"), "monitor": "val/cvar_10"} | settings)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def weight(path: str | Path) -> float:
    """Iterations that the saved state has had."""
    return float(torch.load(path, weights_only=True)["state_dict"]["weight"])


@pytest.fixture
def told(caplog, capsys):
    caplog.set_level("INFO")
    return lambda: caplog.text + capsys.readouterr().err


# Without a guard


@pytest.mark.parametrize("every_n_iterations", [1, 2, 25])
@pytest.mark.parametrize("every", [1, 2])
def test_the_best_is_kept_whenever_the_last_is_written(tmp_path, every_n_iterations, every):
    """`last.ckpt` may be written just before the validation; that is no reason to pass over the best."""
    fit(SCRIPT, [checkpoint(tmp_path, every_n_iterations=every_n_iterations)], tmp_path, every=every)
    assert files(tmp_path) == ["best-step=4.ckpt", "last.ckpt"]
    assert weight(tmp_path / "checkpoints" / "best-step=4.ckpt") == 4
    assert weight(tmp_path / "checkpoints" / "last.ckpt") == 6


def test_the_smaller_metric_and_several_checkpoints(tmp_path):
    fit(SCRIPT, [checkpoint(tmp_path, mode="min", save_top_k=2)], tmp_path)
    assert files(tmp_path) == ["best-step=1.ckpt", "best-step=6.ckpt", "last.ckpt"]


def test_without_a_monitor_only_the_last_is_kept(tmp_path):
    fit(SCRIPT, [checkpoint(tmp_path, monitor=None)], tmp_path)
    assert files(tmp_path) == ["last.ckpt"]


def test_a_monitor_that_is_not_logged_is_refused_with_the_metrics_there_are(tmp_path):
    with pytest.raises(UserError, match="validation does not log 'val/cvar_1'; .* val/cvar_10, val/perplexity"):
        fit(SCRIPT, [checkpoint(tmp_path, monitor="val/cvar_1")], tmp_path)


def test_a_run_without_a_guard_validates_only_when_due(tmp_path):
    _, module = fit(SCRIPT, [checkpoint(tmp_path)], tmp_path, every=3)
    assert module.validated == [3, 6]


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_the_last_knows_what_the_validation_after_it_found(tmp_path, steps):
    """Written just before that validation, and written again: a resumed run does not repeat it."""
    fit(SCRIPT, [checkpoint(tmp_path, save_top_k=6)], tmp_path, steps=steps)
    resumed = checkpoint(tmp_path, save_top_k=6)
    _, module = fit(SCRIPT, [resumed], tmp_path, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    assert module.validated == list(range(steps + 1, 7))
    assert sorted(float(score) for score in resumed.best_k_models.values()) == sorted(REWARD[1:])


# With a guard


@pytest.mark.parametrize(
    ("max_rise", "best"),
    [(0.6, 4), (0.5, 4), (0.25, 5), (0.2, 5), (0.15, 2), (0.05, 1)],
)
def test_the_best_is_chosen_within_the_guard(tmp_path, max_rise, best):
    """Limits of 64, 60, 50, 48, 46 and 42; a rise of exactly the limit is within it."""
    callback = checkpoint(tmp_path, guard="val/perplexity", max_rise=max_rise)
    _, module = fit(SCRIPT, [callback], tmp_path)
    assert module.validated == [0, 1, 2, 3, 4, 5, 6]  # once before the first iteration, to know the start
    assert Path(callback.best_model_path).name == f"best-step={best}.ckpt"
    assert files(tmp_path) == [f"best-step={best}.ckpt", "last.ckpt"]


def test_it_says_where_the_guard_starts_and_what_it_refused(tmp_path, told):
    fit(SCRIPT, [checkpoint(tmp_path, guard="val/perplexity", max_rise=0.25)], tmp_path)
    text = told()
    assert "val/perplexity starts at 40; above 50 nothing is the best" in text
    assert "iteration 4: val/perplexity is 60, above the limit of 50" in text
    assert text.count("not a candidate") == 1


def test_where_no_state_is_within_the_guard_no_best_is_kept_and_it_says_so(tmp_path, told):
    fit(SCRIPT, [checkpoint(tmp_path, guard="val/perplexity", max_rise=0.0)], tmp_path)
    assert files(tmp_path) == ["last.ckpt"]
    assert "no best checkpoint: val/perplexity was above its limit, 40, at all of 6 validations" in told()


def test_what_the_guard_refused_before_a_resume_counts(tmp_path, told):
    settings = {"guard": "val/perplexity", "max_rise": 0.0}
    fit(SCRIPT, [checkpoint(tmp_path, **settings)], tmp_path, steps=4)
    assert "at all of 4 validations" in told()
    fit(SCRIPT, [checkpoint(tmp_path, **settings)], tmp_path, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    assert "at all of 6 validations" in told()


def test_a_guard_that_is_nan_refuses(tmp_path):
    script = {**SCRIPT, 4: {"val/cvar_10": 9.0, "val/perplexity": float("nan")}}
    callback = checkpoint(tmp_path, guard="val/perplexity", max_rise=0.25)
    fit(script, [callback], tmp_path)
    assert Path(callback.best_model_path).name == "best-step=5.ckpt"


def test_a_start_that_is_given_needs_no_validation(tmp_path):
    callback = checkpoint(tmp_path, guard="val/perplexity", max_rise=0.1, guard_start=43.0)
    _, module = fit(SCRIPT, [callback], tmp_path)
    assert module.validated == [1, 2, 3, 4, 5, 6]
    assert Path(callback.best_model_path).name == "best-step=2.ckpt"


def test_a_resumed_run_keeps_the_start_and_the_best(tmp_path):
    settings = {"guard": "val/perplexity", "max_rise": 0.2}
    fit(SCRIPT, [checkpoint(tmp_path, **settings)], tmp_path, steps=3)
    assert files(tmp_path) == ["best-step=2.ckpt", "last.ckpt"]
    resumed = checkpoint(tmp_path, **settings)
    last = tmp_path / "checkpoints" / "last.ckpt"
    _, module = fit(SCRIPT, [resumed], tmp_path, steps=6, ckpt_path=last)
    assert 0 not in module.validated  # the start is not measured anew on a policy that has been trained
    assert resumed.guard_start == 40.0
    assert files(tmp_path) == ["best-step=5.ckpt", "last.ckpt"]


def test_a_resumed_run_that_does_not_know_the_start_asks_for_it(tmp_path):
    fit(SCRIPT, [checkpoint(tmp_path)], tmp_path, steps=3)
    last = tmp_path / "checkpoints" / "last.ckpt"
    trained = []

    class Spy(Callback):
        def on_train_batch_start(self, trainer, module, *_) -> None:
            trained.append(trainer.global_step)

    with pytest.raises(UserError, match="does not know val/perplexity at the start; give checkpoint.guard_start"):
        fit(SCRIPT, [Spy(), checkpoint(tmp_path, guard="val/perplexity")], tmp_path, ckpt_path=last)
    assert trained == []
    fit(SCRIPT, [checkpoint(tmp_path, guard="val/perplexity", guard_start=40.0)], tmp_path, ckpt_path=last)
    assert files(tmp_path) == ["best-step=5.ckpt", "last.ckpt"]


def test_a_guard_that_is_not_logged_or_not_positive_is_refused(tmp_path):
    with pytest.raises(UserError, match="validation does not log 'val/ppl'; expected one of its metrics: val/cvar_10"):
        fit(SCRIPT, [checkpoint(tmp_path, guard="val/ppl")], tmp_path)
    with pytest.raises(UserError, match="val/cvar_10 before the first iteration: got 0, expected a number above 0"):
        fit(SCRIPT, [checkpoint(tmp_path, guard="val/cvar_10")], tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"monitor": None, "guard": "val/perplexity"}, "guard=val/perplexity without a monitor"),
        ({"guard": "a", "max_rise": -0.1}, "max_rise: got -0.1, expected a share of at least 0"),
        ({"guard": "a", "max_rise": float("inf")}, "max_rise: got inf"),
        ({"guard": "a", "guard_start": -1.0}, "guard_start of a: got -1, expected a number above 0"),
    ],
)
def test_settings_that_make_no_guard_are_refused(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        checkpoint(tmp_path, **settings)


def test_the_metric_of_the_checkpoint_is_that_of_its_state(tmp_path):
    callback = checkpoint(tmp_path, guard="val/perplexity")
    fit(SCRIPT, [callback], tmp_path)
    state = torch.load(callback.best_model_path, weights_only=True)
    assert float(callback.best_model_score) == REWARD[5]
    module = ScriptedModule(SCRIPT)
    module.load_state_dict(state["state_dict"])
    assert module.weight.item() == 5


# Faults


class KilledError(Exception):
    """Stands for a kill: nothing runs after it."""


class Kills(Callback):
    def __init__(self, hook: str, step: int) -> None:
        self.step = step
        setattr(self, hook, self.kill)

    def kill(self, trainer, *_) -> None:
        if trainer.global_step == self.step and not trainer.sanity_checking:
            raise KilledError


@pytest.mark.parametrize(("every", "killed_at"), [(2, 2), (2, 4), (3, 3), (3, 8), (4, 4), (4, 8)])
def test_a_run_that_is_killed_in_a_validation_catches_up_on_it(tmp_path, every, killed_at):
    """4 and 8 end an epoch; the validation at 8 is of a run that has no iteration left."""
    script = {step: {"val/cvar_10": float(step)} for step in range(9)}
    kwargs = {"folder": tmp_path, "steps": 8, "every": every}
    with pytest.raises(KilledError):
        fit(script, [Kills("on_validation_batch_start", killed_at), checkpoint(tmp_path, save_top_k=9)], **kwargs)
    resumed = checkpoint(tmp_path, save_top_k=9)
    fit(script, [resumed], **kwargs, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    due = sorted({*range(every, 9, every), 8})
    assert sorted(float(score) for score in resumed.best_k_models.values()) == due
    assert sorted(weight(path) for path in resumed.best_k_models) == due


def test_a_run_that_is_killed_after_a_validation_does_not_repeat_it(tmp_path):
    with pytest.raises(KilledError):
        fit(SCRIPT, [Kills("on_train_batch_start", 3), checkpoint(tmp_path, save_top_k=6)], tmp_path)
    resumed = checkpoint(tmp_path, save_top_k=6)
    _, module = fit(SCRIPT, [resumed], tmp_path, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    assert module.validated == [4, 5, 6]
    assert sorted(float(score) for score in resumed.best_k_models.values()) == sorted(REWARD[1:])


def test_a_run_that_is_killed_in_the_validation_that_it_catches_up_on_does_so_again(tmp_path):
    last = tmp_path / "checkpoints" / "last.ckpt"
    for start in (None, last):
        with pytest.raises(KilledError):
            fit(
                SCRIPT,
                [Kills("on_validation_batch_start", 4), checkpoint(tmp_path, every_n_iterations=1)],
                tmp_path,
                every=2,
                ckpt_path=start,
            )
    _, module = fit(SCRIPT, [checkpoint(tmp_path)], tmp_path, every=2, ckpt_path=last)
    assert module.validated == [4, 6]
    assert files(tmp_path) == ["best-step=4.ckpt", "last.ckpt"]


class FullDisk(Callback):
    """From one step to another no file can grow beyond some bytes."""

    def __init__(self, first: int, last: int) -> None:
        self.full = range(first, last)
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_train_batch_start(self, trainer, module, *_) -> None:
        limit = 100 if trainer.global_step + 1 in self.full else self.limits[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, self.limits[1]))

    def on_exception(self, *_) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)


def test_a_full_disk_stops_the_run_with_the_checkpoint_before_it_intact(tmp_path):
    with pytest.raises(UserError) as caught:
        fit(SCRIPT, [FullDisk(4, 9), checkpoint(tmp_path, every_n_iterations=1, monitor=None)], tmp_path)
    assert "iteration 4: checkpoint " in str(caught.value)
    assert "could not be written: File too large; the one before it is intact; free the disk" in str(caught.value)
    assert files(tmp_path) == ["last.ckpt"]
    assert weight(tmp_path / "checkpoints" / "last.ckpt") == 3


@pytest.mark.filterwarnings("ignore:iteration [45]")
def test_a_full_disk_may_be_waited_out(tmp_path):
    callback = checkpoint(tmp_path, every_n_iterations=1, on_write_error="continue", save_top_k=2)
    fit(SCRIPT, [FullDisk(4, 6), callback], tmp_path)  # 4 would have been the best
    assert weight(tmp_path / "checkpoints" / "last.ckpt") == 6
    assert files(tmp_path) == ["best-step=2.ckpt", "best-step=3.ckpt", "last.ckpt"]
    assert sorted(Path(path).name for path in callback.best_k_models) == ["best-step=2.ckpt", "best-step=3.ckpt"]
    assert Path(callback.best_model_path).name == "best-step=2.ckpt"


@pytest.mark.filterwarnings("ignore:iteration [56]")
def test_a_run_whose_final_state_could_not_be_written_does_not_end_well(tmp_path):
    with pytest.raises(UserError, match="iteration 6: checkpoint .* could not be written: File too large"):
        fit(SCRIPT, [FullDisk(5, 9), checkpoint(tmp_path, every_n_iterations=1, on_write_error="continue")], tmp_path)
    assert weight(tmp_path / "checkpoints" / "last.ckpt") == 4


def test_what_a_killed_run_left_half_written_is_cleared_away(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best-step=3.ckpt.partial").write_text("half")
    fit(SCRIPT, [checkpoint(tmp_path)], tmp_path)
    assert files(tmp_path) == ["best-step=4.ckpt", "last.ckpt"]


def by_minutes(tmp_path, written) -> RunCheckpoint:
    """Every two minutes; `written` grows with the iteration of each checkpoint."""

    class Spy(RunCheckpoint):
        def _save_checkpoint(self, trainer, filepath) -> None:
            super()._save_checkpoint(trainer, filepath)
            written.append(trainer.global_step)

    return Spy(dirpath=str(tmp_path / "checkpoints"), every_n_iterations=100, every_n_minutes=2.0)


def test_the_trigger_by_minutes_counts_whole_iterations(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    written = []

    class Clock(Callback):
        def on_train_batch_start(self, trainer, *_) -> None:
            now[0] += 60

    callback = by_minutes(tmp_path, written)
    fit(SCRIPT, [Clock(), callback], tmp_path, every=100)
    assert written == [2, 4, 6]


def test_by_minutes_all_processes_go_by_the_clock_of_the_first(tmp_path, monkeypatch):
    """This one's clock stands still; the first process says after iterations 2 and 5 that it is time."""
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    written, asked = [], []

    class FirstProcess(Callback):
        def on_train_start(self, trainer, *_) -> None:
            def broadcast(value, src=0):
                if not isinstance(value, bool):
                    return value
                asked.append((trainer.global_step, value))
                return trainer.global_step in (2, 5)

            monkeypatch.setattr(trainer.strategy, "broadcast", broadcast)

    callback = by_minutes(tmp_path, written)
    fit(SCRIPT, [FirstProcess(), callback], tmp_path, every=100)
    assert written == [2, 5, 6]
    assert asked == [(step, False) for step in range(1, 6)]  # the last iteration is written whatever the time


def test_another_monitor_starts_the_best_anew_and_keeps_the_rest(tmp_path):
    fit(SCRIPT, [checkpoint(tmp_path, guard="val/perplexity", max_rise=9.0)], tmp_path, steps=3)
    last = tmp_path / "checkpoints" / "last.ckpt"
    resumed = checkpoint(tmp_path, monitor="val/perplexity", mode="min", guard="val/perplexity", max_rise=9.0)
    fit(SCRIPT, [resumed], tmp_path, ckpt_path=last)
    assert resumed.guard_start == 40.0
    assert float(resumed.best_model_score) == 48.0
