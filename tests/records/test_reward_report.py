from __future__ import annotations

import json

import numpy as np
import pytest

from lightning_rarlhf.functional.bounds import clopper_pearson
from lightning_rarlhf.records.reward_report import measures_of_labels, measures_of_pairs, write_reward_report


def test_a_reward_that_orders_nearly_every_pair_still_has_an_interval() -> None:
    margins = np.repeat([-1.0, 1.0], [5, 295])
    found = measures_of_pairs(margins)["pairs/accuracy"]
    assert found == clopper_pearson(295, 300)
    tied = measures_of_pairs(np.append(margins, 0.0))["pairs/accuracy"]
    assert tied.estimate == pytest.approx(295.5 / 301)


def test_classes_that_do_not_overlap_leave_an_auc_uncertain() -> None:
    labels = np.repeat([1.0, 0.0], [5, 95])[:, None]
    found = measures_of_labels(np.random.default_rng(0).normal(size=(100, 1)) + 20 * labels, labels, ["toxic"])
    auc = found["toxic/auroc"]
    assert (auc.estimate, auc.high) == (1, 1)
    assert auc.low < 0.9


def test_an_end_that_is_not_known_is_null_and_said_so(tmp_path, capsys) -> None:
    """A tie among few mistakes: no exact interval, and too few that differ for a bootstrap. JSON has no Infinity."""
    margins = np.repeat([-1.0, 0.0, 1.0], [4, 1, 295])
    metrics = measures_of_pairs(margins)
    assert not metrics["pairs/accuracy"].is_bounded
    write_reward_report(
        tmp_path, metrics, {"pairs": (margins, (margins > 0).astype(float))}, {"module": "RewardModule"}
    )
    text = (tmp_path / "reward_results.json").read_text()
    assert "Infinity" not in text
    accuracy = json.loads(text)["metrics"]["pairs/accuracy"]
    assert (accuracy["low"], accuracy["high"]) == (None, None)
    assert "pairs/accuracy: 0.985 (too few for an interval), n = 300" in capsys.readouterr().out
