from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from lightning_rarlhf.report.training_curves import CURVES, TrainingCurve, across_seeds, read_training_curves, smoothed

SCORE = "objective/score_mean"


def log(run: Path, version: int, values: Mapping[str, Sequence[float]], start: int = 0) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run / "lightning_logs" / f"version_{version}"))
    for tag, numbers in values.items():
        for step, value in enumerate(numbers, start=start):
            writer.add_scalar(tag, value, step)
    writer.close()


def test_logged_curves_come_back(tmp_path: Path) -> None:
    log(tmp_path, 0, {SCORE: [1.0, 2.0, 3.0], "risk/level": [1.0, 0.9, 0.8], "ppo/policy_loss": [0.1] * 3})
    found = read_training_curves(tmp_path)
    assert set(found) == {SCORE, "risk/level"}
    assert found[SCORE].iteration.tolist() == [0, 1, 2]
    assert found[SCORE].value.tolist() == [1.0, 2.0, 3.0]


def test_a_long_run_is_read_whole(tmp_path: Path) -> None:
    log(tmp_path, 0, {SCORE: list(range(2500))})
    assert len(read_training_curves(tmp_path)[SCORE].value) == 2500


def test_a_resumed_run_goes_on_where_the_later_file_begins(tmp_path: Path) -> None:
    log(tmp_path, 9, {SCORE: [0.0, 1.0, 2.0, 3.0]})
    log(tmp_path, 10, {SCORE: [20.0, 30.0, 40.0]}, start=2)
    log(tmp_path, 11, {"val/score_mean": [5.0]})  # a test leaves a file too
    found = read_training_curves(tmp_path)[SCORE]
    assert found.iteration.tolist() == [0, 1, 2, 3, 4]
    assert found.value.tolist() == [0.0, 1.0, 20.0, 30.0, 40.0]


def test_a_run_that_was_resumed_into_the_same_folder_has_each_iteration_once(tmp_path: Path) -> None:
    """A logger with a version of its own: both files lie in one folder, and the killed run's last iterations twice."""
    log(tmp_path, 0, {SCORE: [0.0, 1.0, 2.0, 3.0]})
    log(tmp_path, 0, {SCORE: [20.0, 30.0, 40.0]}, start=2)
    found = read_training_curves(tmp_path)[SCORE]
    assert found.iteration.tolist() == [0, 1, 2, 3, 4]
    assert found.value.tolist() == [0.0, 1.0, 20.0, 30.0, 40.0]


def test_a_run_that_was_begun_anew_replaces_the_old_one(tmp_path: Path) -> None:
    log(tmp_path, 0, {SCORE: [0.0] * 9})
    log(tmp_path, 1, {SCORE: [7.0, 8.0]})
    assert read_training_curves(tmp_path)[SCORE].value.tolist() == [7.0, 8.0]


def test_no_logs_are_no_curves(tmp_path: Path) -> None:
    assert read_training_curves(tmp_path) == {}


def curve(values: Sequence[float], start: int = 0) -> TrainingCurve:
    return TrainingCurve(np.arange(start, start + len(values), dtype=float), np.array(values, dtype=float))


def test_the_running_mean_by_hand() -> None:
    values = list(np.random.default_rng(0).normal(size=80))  # 5 % of 80: 2 to either side
    found = smoothed(curve(values)).value
    assert found[0] == pytest.approx(np.mean(values[:3]))
    assert found[40] == pytest.approx(np.mean(values[38:43]))
    assert found[79] == pytest.approx(np.mean(values[77:]))


def test_short_runs_are_not_smoothed() -> None:
    assert smoothed(curve([1.0, 5.0, 2.0])).value.tolist() == [1.0, 5.0, 2.0]


def test_seeds_are_averaged_where_all_of_them_logged() -> None:
    band = across_seeds([curve([1.0, 2.0, 3.0]), curve([4.0, 7.0, 9.0], start=1)], SCORE)
    assert band.iteration.tolist() == [1, 2]
    assert band.mean.tolist() == [3.0, 5.0]
    assert band.sd == pytest.approx([np.sqrt(2), np.sqrt(8)])


def test_one_seed_has_no_spread() -> None:
    assert np.isnan(across_seeds([curve([1.0, 2.0])], SCORE).sd).all()


def test_what_a_rule_sets_is_not_smoothed() -> None:
    level = [1.0] * 50 + [0.2] * 50
    assert across_seeds([curve(level)], "risk/level").mean.tolist() == level
    assert across_seeds([curve(level)], SCORE).mean.tolist() != level


def test_the_tags_are_those_that_the_module_logs() -> None:
    source = Path(__file__).resolve().parents[2] / "lightning_rarlhf" / "ppo_module.py"
    assert [tag for tag in CURVES if f'"{tag}"' not in source.read_text()] == []
