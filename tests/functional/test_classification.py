"""AUC by brute force over pairs and by torchmetrics; calibration by hand and by torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error

from lightning_rarlhf.functional.classification import (
    auroc,
    auroc_interval,
    calibration_null,
    expected_calibration_error,
    reliability,
)


@pytest.mark.parametrize("levels", [5, 1000])
def test_auroc_is_the_share_of_pairs_in_the_right_order(levels):
    rng = np.random.default_rng(levels)
    scores, labels = rng.integers(levels, size=60) / levels, rng.integers(2, size=60).astype(float)
    positives, negatives = scores[labels == 1], scores[labels == 0]
    pairs = [(a > b) + 0.5 * (a == b) for a in positives for b in negatives]
    assert float(auroc(scores, labels)) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    theirs = binary_auroc(torch.from_numpy(scores).float(), torch.from_numpy(labels).long(), thresholds=None)
    assert float(auroc(scores, labels)) == pytest.approx(theirs.item(), abs=1e-6)


def test_auroc_of_many_samples_at_once():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(7, 30)), rng.integers(2, size=(7, 30)).astype(float)
    labels[3] = 1  # one class only
    rows = [float(auroc(a, b)) for a, b in zip(scores, labels, strict=True)]
    assert auroc(scores, labels, axis=1).tolist() == pytest.approx(rows)
    assert rows[3] == 0.5


def test_ends_of_an_auroc_are_where_it_is_z_standard_errors_away():
    generator = np.random.default_rng(2)
    scores, labels = generator.normal(size=60), np.repeat([1, 0], [12, 48])
    found = auroc_interval(scores + labels, labels, confidence=0.9)
    assert found.estimate == pytest.approx(float(auroc(scores + labels, labels)))
    for end in (found.low, found.high):
        spread = 1 + 29 * (1 - end) / (2 - end) + 29 * end / (1 + end)
        assert abs(found.estimate - end) == pytest.approx(1.6448536 * math.sqrt(end * (1 - end) * spread / (12 * 48)))
    other = auroc_interval(-scores - labels, labels, confidence=0.9)
    assert (other.low, other.high) == pytest.approx((1 - found.high, 1 - found.low))


def test_the_interval_of_few_positives_near_perfection_is_covered_and_perfection_is_not_certain():
    """Of 490 negatives and 10 positives that lie three deviations above them."""
    generator, labels = np.random.default_rng(0), np.repeat([1, 0], [10, 490])
    truth, experiments = stats.norm.cdf(3 / math.sqrt(2)), 300
    found = [auroc_interval(generator.normal(size=500) + 3 * labels, labels) for _ in range(experiments)]
    assert sum(not interval.excludes(truth) for interval in found) / experiments >= 0.93
    apart = auroc_interval(np.arange(30.0), np.repeat([0, 1], [25, 5]))
    assert (apart.estimate, apart.high) == (1, 1)
    assert 0.7 < apart.low < 0.8
    assert auroc_interval(np.zeros(30), np.repeat([0, 1], [25, 5])).estimate == 0.5


def test_an_auroc_of_one_class_or_of_no_numbers_is_refused():
    with pytest.raises(ValueError, match="labels: got 3 positives of 3, expected both classes"):
        auroc_interval(np.zeros(3), np.ones(3))
    with pytest.raises(ValueError, match="NaN"):
        auroc_interval(np.array([np.nan, 1.0]), np.array([0, 1]))


def test_calibration_by_hand():
    """Bins of a half: {.1, .3} with one positive, {.8} with none: gaps .3 and .8, two thirds and one third."""
    found = reliability([0.1, 0.3, 0.8], [0, 1, 0], bins=2)
    assert found.counts.tolist() == [2, 1]
    assert found.confidence.tolist() == pytest.approx([0.2, 0.8])
    assert found.frequency.tolist() == [0.5, 0.0]
    assert expected_calibration_error(found) == pytest.approx((2 * 0.3 + 0.8) / 3)


def test_calibration_agrees_with_torchmetrics():
    rng = np.random.default_rng(1)
    p = rng.uniform(size=500)
    y = (rng.uniform(size=500) < p**2).astype(np.int64)
    theirs = binary_calibration_error(torch.from_numpy(p), torch.from_numpy(y), n_bins=15)
    assert expected_calibration_error(reliability(p, y, bins=15)) == pytest.approx(theirs.item(), abs=1e-6)


@pytest.mark.parametrize("mirrored", [False, True])
def test_calibrated_probabilities_lie_in_the_range_of_chance_and_others_above_it(mirrored):
    draw = np.random.default_rng(0)
    inside = 0
    for repeat in range(40):
        p = draw.uniform(size=200)
        y = draw.uniform(size=200) < p
        both, outcomes = (np.concatenate([p, 1 - p]), np.concatenate([y, ~y])) if mirrored else (p, y)
        low, high = np.quantile(calibration_null(p, mirrored=mirrored, simulations=200, seed=repeat), [0.025, 0.975])
        inside += low <= expected_calibration_error(reliability(both, outcomes)) <= high
    assert inside >= 34
    assert expected_calibration_error(reliability(p, ~y)) > high
