"""Training seeds of one point of a sweep: which runs they are, and what their chance adds to a point's interval.

k seeds of one configuration scatter in KL, mean and tail reward together. Each resample moves the seeds' average by a
draw from the multivariate Student t of k − 1 degrees of freedom with their covariance over k, so that the spread of two
or three seeds is not taken for the true one. It comes on top of the prompts' resampling; what differs from seed to seed
by chance of sampling alone is counted twice: intervals are rather too wide than too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lightning_rarlhf.records.results import Run
from lightning_rarlhf.report.identity import training_of
from lightning_rarlhf.report.methods import Method, method_folder
from lightning_rarlhf.report.training_chance import has_reference_weights

Array: TypeAlias = NDArray[np.float64]


def seed_groups(runs: Sequence[Run]) -> list[list[int]]:
    """Numbers of the runs that are training seeds of one point, in the order of their first.

    Runs whose training is recorded are seeds if the record differs in the seed alone. After unequal steps they are
    checkpoints, hence points of their own, unless their folders say that they are seeds, as where validation chose how
    long each was trained. Runs whose training is not recorded are seeds if their folders differ in a seed alone.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, run in enumerate(runs):
        groups.setdefault(_point(run), []).append(number)
    found: list[list[int]] = []
    for members in groups.values():
        for group in _of_equal_steps(runs, members):
            merged = next((other for other in found if _are_named_seeds(runs, [*other, *group], members)), None)
            if merged is None:
                found.append(group)
            else:
                merged.extend(group)
    return sorted(map(sorted, found))


def _of_equal_steps(runs: Sequence[Run], members: Sequence[int]) -> list[list[int]]:
    steps = {number: training_of(runs[number]).get("steps") for number in members}
    return [[number for number in members if steps[number] == each] for each in dict.fromkeys(steps.values())]


def _are_named_seeds(runs: Sequence[Run], numbers: Sequence[int], members: Sequence[int]) -> bool:
    """Whether they are of one method, and neither a folder but for its seed nor a seed tells them apart."""
    if not set(numbers) <= set(members):
        return False
    seeds = [training_of(runs[number]).get("seed") for number in numbers]
    return len({method_folder(runs[number].folder) for number in numbers}) == 1 and len(set(seeds)) == len(seeds)


def has_unseeded_points(method: Method) -> bool:
    """Whether a point of the method rests on one training run; the reference's weights are the same for all methods."""
    return any(
        len(group) == 1 and not has_reference_weights(method.runs[group[0]]) for group in seed_groups(method.runs)
    )


def has_seeds(method: Method) -> bool:
    """Whether a point of the method rests on several training seeds."""
    return any(len(group) > 1 for group in seed_groups(method.runs))


def with_seed_noise(samples: Array, groups: Sequence[Sequence[int]], seed: int) -> Array:
    """One column per group: the seeds' average, moved in every resample by the chance of the seeds.

    Args:
        samples: [3, R, K], KL, mean and tail reward of K runs in every resample; row 0 of R is the data as they are.
        groups: numbers of the runs of each point.
        seed: of the draws.

    Returns:
        [3, R, points]; row 0 is the average itself.
    """
    generator = np.random.default_rng(seed)
    columns = []
    for group in groups:
        own = samples[:, :, list(group)]
        average = own.mean(axis=2)
        if len(group) > 1:
            average[:, 1:] += _noise(own[:, 0], average.shape[1] - 1, generator)
        columns.append(average)
    return np.stack(columns, axis=2)


def _noise(seeds: Array, resamples: int, generator: np.random.Generator) -> Array:
    """[3, resamples], of k seeds [3, k]: multivariate t of k − 1 degrees with the covariance of their mean."""
    count = seeds.shape[1]
    spread = (seeds - seeds.mean(axis=1, keepdims=True)) / np.sqrt(count * (count - 1))
    normal = spread @ generator.normal(size=(count, resamples))
    return np.asarray(normal / np.sqrt(generator.chisquare(count - 1, size=resamples) / (count - 1)))


def _point(run: Run) -> tuple[object, ...]:
    training = training_of(run)
    if training.get("method_sha256"):
        drawn = str(run.identity.get("sampling")), str(run.identity.get("method"))
        return "recorded", training["method_sha256"], training.get("chosen"), *drawn
    return "folder", method_folder(run.folder)
