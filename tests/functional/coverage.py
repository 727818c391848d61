"""How often nominal 95 % intervals hold the truth: ``python -m tests.functional.coverage`` prints the full table.

The tests run fewer experiments of the same; docs/results.md has the table.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np
from scipy import stats

from lightning_rarlhf.functional.bounds import clopper_pearson
from lightning_rarlhf.functional.statistics import Interval, mean_interval
from lightning_rarlhf.functional.tail_intervals import cvar_contrast_interval, cvar_interval, paired_cvar_interval

SIZES = (10, 25, 50, 100, 200, 500)
"""prompts, a column of the table each"""
Draw = Callable[[np.random.Generator, int], np.ndarray]


def exceptional(generator: np.random.Generator, n: int) -> np.ndarray:
    """One prompt in twenty-five is not zero: a repetition rate, a rare failure."""
    return (generator.random(n) < 0.04) * generator.random(n)


def two_humps(generator: np.random.Generator, n: int) -> np.ndarray:
    """Logits of a classifier that is nearly always sure."""
    return np.where(generator.random(n) < 0.15, generator.normal(-4, 0.5, n), generator.normal(5, 1, n))


MEANS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda g, n: g.normal(size=n), 0.0),
    "skewed (log-normal)": (lambda g, n: g.lognormal(size=n), math.exp(0.5)),
    "two humps": (two_humps, 0.15 * -4 + 0.85 * 5),
    "4 % not zero": (exceptional, 0.02),
}


def tail_mean(alpha: float) -> float:
    """CVaR of unit-normal scores."""
    return float(-stats.norm.pdf(stats.norm.ppf(alpha)) / alpha)


def related(generator: np.random.Generator, n: int) -> np.ndarray:
    """[n, 3], unit-normal scores of completions, seeds or methods that share half their variance, the prompt's."""
    return math.sqrt(0.5) * (generator.normal(size=(n, 1)) + generator.normal(size=(n, 3)))


TAILS: dict[str, tuple[Callable[..., Interval], float]] = {
    "CVaR10": (lambda x, **s: cvar_interval(x[:, 0], 0.1, **s), tail_mean(0.1)),
    "CVaR2": (lambda x, **s: cvar_interval(x[:, 0], 0.02, **s), tail_mean(0.02)),
    "CVaR10 of 3 completions": (lambda x, **s: cvar_interval(x, 0.1, **s), tail_mean(0.1)),
    "difference of two CVaR10": (lambda x, **s: paired_cvar_interval(x[:, 0], x[:, 1], 0.1, **s), 0.0),
    "difference to the mean of 2 seeds, CVaR10": (
        lambda x, **s: cvar_contrast_interval(list(x.T), [1.0, -0.5, -0.5], 0.1, **s),
        0.0,
    ),
}


def of_mean(shape: str, n: int, experiments: int, resamples: int = 200) -> float:
    """Share of the experiments whose `mean_interval` holds the mean."""
    draw, truth = MEANS[shape]
    generator = np.random.default_rng(0)
    found = (mean_interval(draw(generator, n), resamples=resamples, seed=seed) for seed in range(experiments))
    return sum(not interval.excludes(truth) for interval in found) / experiments


def of_tail(name: str, n: int, experiments: int, resamples: int = 200) -> float:
    """Share of the experiments whose interval of a tail holds the truth."""
    interval_of, truth = TAILS[name]
    generator = np.random.default_rng(0)
    found = (interval_of(related(generator, n), resamples=resamples, seed=seed) for seed in range(experiments))
    return sum(not interval.excludes(truth) for interval in found) / experiments


def least(truth: float, *, experiments: int) -> float:
    """What a coverage of `truth` falls short of in so many experiments by chance once in 40 times."""
    return truth - 2 * math.sqrt(truth * (1 - truth) / experiments)


def of_rate(rate: float, n: int) -> float:
    """Chance that the Clopper-Pearson interval holds the rate, summed over every outcome."""
    outcomes = np.arange(n + 1)
    chances = stats.binom.pmf(outcomes, n, rate)
    likely = [int(count) for count in outcomes[chances > 1e-12]]
    return float(sum(chances[count] for count in likely if not clopper_pearson(count, n).excludes(rate)))


if __name__ == "__main__":
    experiments = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    print("| statistic | " + " | ".join(f"n = {n}" for n in SIZES) + " |\n|---|" + "---:|" * len(SIZES))
    for shape in MEANS:
        shares = [f"{of_mean(shape, n, experiments, 999):.3f}" for n in SIZES]
        print(f"| mean, {shape} | " + " | ".join(shares) + " |", flush=True)
    for name in TAILS:
        shares = [
            f"{of_tail(name, n, experiments, 999):.3f}" if n >= (500 if "2" in name[:6] else 100) else "none"
            for n in SIZES
        ]
        print(f"| {name} | " + " | ".join(shares) + " |", flush=True)
    print("| rate of 2 %, Clopper-Pearson | " + " | ".join(f"{of_rate(0.02, n):.3f}" for n in SIZES) + " |")
