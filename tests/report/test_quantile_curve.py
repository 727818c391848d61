from __future__ import annotations

import numpy as np
import pytest

from lightning_rarlhf.report.quantile_curve import quantile_curve


def test_means_of_the_lowest_prompts_by_hand() -> None:
    curve = quantile_curve(np.array([3.0, 1.0, 4.0, 2.0]), np.array([30.0, 10.0, 40.0, 20.0]), resamples=50)
    assert curve.estimate[[0, 24, 25, 49, 74, 99]].tolist() == [10.0, 10.0, 15.0, 15.0, 20.0, 25.0]


def test_the_last_point_is_the_mean_and_its_band_the_bootstrap_of_a_mean() -> None:
    generator = np.random.default_rng(0)
    reward = generator.normal(size=400)
    curve = quantile_curve(generator.normal(size=400), reward, resamples=2000)
    assert curve.estimate[99] == pytest.approx(reward.mean())
    reach = 1.96 * reward.std() / 20
    assert (curve.low[99], curve.high[99]) == pytest.approx((reward.mean() - reach, reward.mean() + reach), abs=0.02)


def test_the_band_of_a_low_share_is_wider_than_that_of_all() -> None:
    generator = np.random.default_rng(1)
    curve = quantile_curve(generator.normal(size=300), generator.normal(size=300), resamples=300)
    width = curve.high - curve.low
    assert width[4] > 2 * width[99]
    assert ((curve.low <= curve.high) & (curve.low <= curve.estimate + 0.5))[3:].all()


def test_a_share_of_fewer_than_ten_prompts_has_no_band() -> None:
    """As everywhere in a report: of 300 prompts 3 % are 9, 4 % are 12."""
    generator = np.random.default_rng(1)
    curve = quantile_curve(generator.normal(size=300), generator.normal(size=300), resamples=50)
    assert np.isfinite(curve.estimate).all()
    for end in (curve.low, curve.high):
        assert np.isnan(end).tolist() == [True] * 3 + [False] * 97


def test_the_band_covers_the_truth() -> None:
    """Reward = prompt score + noise: the mean of the lowest 20 % is known; 95 % bands miss it in 1 of 20 samples."""
    from scipy import stats

    truth = -stats.norm.pdf(stats.norm.ppf(0.2)) / 0.2
    hits = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        score = generator.normal(size=300)
        curve = quantile_curve(score, score + generator.normal(size=300), resamples=200, seed=seed)
        hits += curve.low[19] <= truth <= curve.high[19]
    assert hits >= 52


def test_equal_rewards_have_no_band() -> None:
    curve = quantile_curve(np.arange(50.0), np.full(50, 2.0), resamples=50)
    assert (curve.low[19:] == 2.0).all()
    assert (curve.high[19:] == 2.0).all()
