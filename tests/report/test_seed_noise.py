from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightning_rarlhf.records.provenance import training_record
from lightning_rarlhf.records.results import Run, read_run
from lightning_rarlhf.report.matched_kl import Points, _match, _Samples, match_kl
from lightning_rarlhf.report.matched_kl_words import statements
from lightning_rarlhf.report.methods import Method
from lightning_rarlhf.report.seed_noise import has_unseeded_points, seed_groups, with_seed_noise
from tests.report.run_folders import scores_of, write_run


def run(
    folder: Path, name: str, number: int, *, seed: int, target: float = 1.0, steps: int = 9, kl: float = 1.0
) -> Run:
    training = training_record("PPO", {"target": target}, seed=seed, steps=steps)
    return read_run(write_run(folder / name, scores_of(number, gain=kl**0.5), kl=kl, training=training))


def test_seeds_are_told_by_their_records_wherever_they_lie(tmp_path: Path) -> None:
    runs = [run(tmp_path, f"r{n}", n, seed=n % 2, target=1.0 + n // 2) for n in range(4)]
    assert seed_groups(runs) == [[0, 1], [2, 3]]
    assert not has_unseeded_points(Method(label="a", runs=tuple(runs)))
    assert has_unseeded_points(Method(label="a", runs=tuple(runs[:3])))


def test_checkpoints_of_several_trainings_are_grouped_by_their_steps(tmp_path: Path) -> None:
    runs = [run(tmp_path, f"r{n}", n, seed=n % 2, steps=5 * (1 + n // 2)) for n in range(4)]
    assert seed_groups(runs) == [[0, 1], [2, 3]]


def test_runs_of_unequal_length_are_points_of_their_own_unless_their_folders_name_seeds(tmp_path: Path) -> None:
    def groups(names: tuple[str, ...], seeds: tuple[int, ...], steps: tuple[int, ...]) -> list[list[int]]:
        runs = [run(tmp_path, name, n, seed=seeds[n], steps=steps[n]) for n, name in enumerate(names)]
        return seed_groups(runs)

    assert groups(("x", "y"), (0, 1), (50, 100)) == [[0], [1]]
    assert groups(("x", "y", "z"), (0, 1, 2), (50, 100, 50)) == [[0, 2], [1]]
    best = ("kl6/seed_0", "kl6/seed_1", "kl6/seed_2")
    assert groups(best, (0, 1, 2), (50, 100, 50)) == [[0, 1, 2]]
    assert groups(best, (0, 1, 0), (50, 100, 150)) == [[0, 1], [2]]  # seed 0 comes up again
    assert groups((*best, "other"), (0, 1, 2, 3), (50, 100, 50, 100)) == [[0, 2], [1, 3]]


def test_without_records_folders_that_differ_in_a_seed_are_seeds(tmp_path: Path) -> None:
    names = ("kl3/seed_0", "kl3/seed_1", "kl6")
    assert seed_groups([read_run(write_run(tmp_path / n, scores_of(i))) for i, n in enumerate(names)]) == [[0, 1], [2]]


def test_the_reference_itself_needs_no_seeds(tmp_path: Path) -> None:
    start = read_run(write_run(tmp_path / "sft", scores_of(7), kl=0.0))
    assert not has_unseeded_points(Method(label="a", runs=(start,)))


def test_points_of_the_reference_alone_rest_on_no_training(tmp_path: Path) -> None:
    """Best of k on the reference's weights: there is nothing to train again."""
    known = {"policy_sha256": "a" * 64, "reference_sha256": "a" * 64, "method": {"class_path": "BestOfK"}}

    def sweep(label: str, first: int) -> Method:
        numbers = range(first, first + 3)
        runs = [read_run(write_run(tmp_path / f"{label}{n}", scores_of(n), kl=n - first, **known)) for n in numbers]
        return Method(label=label, runs=tuple(runs))

    said = statements(match_kl([sweep("a", 0), sweep("b", 5)], alpha=0.2, resamples=60))
    expected = "These intervals cover prompts; all weights are the reference's, which no training seed changes."
    assert said[-2] == expected


def test_the_noise_of_seeds_is_students_t_of_their_mean() -> None:
    """Of one point without noise over prompts, the interval is the t interval of its seeds."""
    from scipy import stats

    values = np.array([1.0, 2.0, 4.0])
    samples = np.tile(values, (3, 40_001, 1))
    found = with_seed_noise(samples, [[0, 1, 2]], seed=0)[1, :, 0]
    assert found[0] == pytest.approx(values.mean())
    low, high = stats.t.interval(0.95, 2, loc=values.mean(), scale=values.std(ddof=1) / np.sqrt(3))
    assert np.quantile(found[1:], [0.025, 0.975]) == pytest.approx([low, high], abs=0.2)


def test_bands_of_several_seeds_cover_every_kl_at_once() -> None:
    """Two equal methods, four targets of three seeds each; seeds scatter in KL and reward, prompts add a little.

    At nominal 95 %, 80 experiments; bands over prompts alone hold 0 everywhere in far fewer.
    """
    generator, kls, covered = np.random.default_rng(0), np.array([1.0, 2.0, 4.0, 8.0]), np.zeros(2)
    groups = [[3 * point + seed for seed in range(3)] for point in range(4)]

    def method(*, with_seeds: bool) -> _Samples:
        kl = np.repeat(kls, 3) + 0.1 * seed_kl
        reward = np.sqrt(np.repeat(kls, 3)) + 0.1 * seed_reward
        runs = np.stack([kl, reward, reward])[:, None, :] + 0.02 * np.concatenate(
            [np.zeros((3, 1, 1)), generator.normal(size=(3, 200, 1))], axis=1
        )
        if with_seeds:
            moved = with_seed_noise(runs, groups, seed=int(generator.integers(1 << 30)))
        else:
            moved = np.stack([runs[:, :, group].mean(axis=2) for group in groups], axis=2)
        rewards = {"mean": moved[1], "tail": moved[2]}
        points = Points(label="a", kl=moved[0, 0], reward={name: each[0] for name, each in rewards.items()})
        return _Samples(points=points, kl=moved[0], reward=rewards)

    for _ in range(80):
        pairs = []
        for _ in range(2):
            seed_kl, seed_reward = generator.normal(size=(2, 12))
            pairs.append([method(with_seeds=True), method(with_seeds=False)])
        for kind in range(2):
            band = _match(pairs[0][kind], pairs[1][kind], 0.95).difference["mean"]
            covered[kind] += bool(((band.low <= 0) & (band.high >= 0)).all())
    assert covered[0] / 80 >= 0.93
    assert covered[1] / 80 <= 0.75


def test_what_is_covered_is_said(tmp_path: Path) -> None:
    def sweep(label: str, seeds: int) -> Method:
        runs = [
            run(tmp_path, f"{label}{kl}-{s}", 10 * s + int(kl) + len(label), seed=s, target=kl, kl=kl)
            for kl in (1.0, 2.0, 4.0)
            for s in range(seeds)
        ]
        return Method(label=label, runs=tuple(runs))

    many, more, single = sweep("many", 2), sweep("more!", 2), sweep("one", 1)
    said = statements(match_kl([many, more], alpha=0.2, resamples=60))
    assert "cover prompts and training seeds" in said[-2]
    said = statements(match_kl([many, single], alpha=0.2, resamples=60))
    assert "One training run a point of one: these intervals cover prompts, not training seeds" in said[-2]
