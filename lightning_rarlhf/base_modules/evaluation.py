"""The results of a method's `test`: every number with its interval, computed from the finished generations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from lightning_rarlhf.config import EvaluationConfig
from lightning_rarlhf.functional.bounds import clopper_pearson
from lightning_rarlhf.functional.statistics import (
    LEAST_TAIL,
    SMALL_NOTE,
    Interval,
    is_small,
    mean_interval,
    unbounded,
)
from lightning_rarlhf.functional.tail_intervals import cvar_interval
from lightning_rarlhf.functional.tail_reward import lowest_rows, rows_at_most
from lightning_rarlhf.functional.toxicity import TOXIC_FROM, maximum_toxicity
from lightning_rarlhf.metrics import DISTINCT, level_name, share_name, threshold_name
from lightning_rarlhf.records.generations import read_columns
from lightning_rarlhf.records.results_file import GENERATIONS, publish, results_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class _Bootstrap(TypedDict):
    confidence: float
    resamples: int
    seed: int


def report(
    finished: Path,
    identity: Mapping[str, Any],
    config: EvaluationConfig,
    measured: Mapping[str, NDArray[np.float64]] | None = None,
) -> None:
    """Compute the results of finished generations, put both files in place and print the table.

    Args:
        finished: what `GenerationWriter.finish` returned.
        identity: what the results say of policy, reward and data.
        config: what to report.
        measured: figures that are not in the generations, by name: [n] a number per text or prompt, NaN = left out.
    """
    metrics = summarise(finished, config) | _measured(measured or {}, config)
    folder = finished.parent
    publish(finished, results_of(finished, metrics, identity, config))
    title = f"{identity['policy']}: {identity['module']}, responses in {folder / GENERATIONS}"
    print_table(metrics, title=title, config=config)


def summarise(generations: Path, config: EvaluationConfig) -> dict[str, Interval]:
    """Every number that the generations hold, each with its interval over prompts; docs/results.md has the list.

    A figure without two prompts to compute it from is left out. With k completions a prompt is still one draw of the
    bootstrap: its completions stay together.
    """
    column = read_columns(generations)
    settings = _settings(config)
    groups = _score_groups(column, config) | {
        "kl_mean": column["kl"],
        "response_length_mean": column["tokens"],
        "repetition_rate": column["repetition_rate"],
        **{f"dist_{n}": column[f"dist_{n}"] for n in DISTINCT},
    }
    means = {name: _mean(values, settings) for name, values in groups.items()}
    result = {name: interval for name, interval in means.items() if interval is not None}
    result |= _hard_prompts(column, config)
    result["eos_rate"] = _rate(column["stopped"], settings)
    for scores, prefix in ((column["score"], ""), *((column[f"judge/{j}"], f"judge/{j}/") for j in config.judges)):
        result |= _tails(scores, prefix, config)
    return result | _toxicity(column, config)


def print_table(metrics: Mapping[str, Interval], title: str, config: EvaluationConfig) -> None:
    """Show the results in the terminal, a line a metric."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    for heading in ("estimate", f"{100 * config.confidence:g} % interval", "n"):
        table.add_column(heading, justify="right")
    for name, interval in metrics.items():
        table.add_row(name, f"{interval.estimate:.3f}", _ends(interval), str(interval.n))
    console = Console()
    console.print(table)
    if any(map(is_small, metrics.values())):
        console.print(SMALL_NOTE)


def _score_groups(
    column: Mapping[str, NDArray[np.float64]], config: EvaluationConfig
) -> dict[str, NDArray[np.float64]]:
    by_class = {name: column["score"][column["label"] == label] for label, name in ((1, "wanted"), (0, "unwanted"))}
    return {
        "score_mean": column["score"],
        **{f"score_mean/{name}": scores for name, scores in by_class.items()},
        **{f"judge/{name}/score_mean": column[f"judge/{name}"] for name in config.judges},
    }


def _hard_prompts(column: Mapping[str, NDArray[np.float64]], config: EvaluationConfig) -> dict[str, Interval]:
    """Mean reward of the prompts that score low by themselves; which these are is taken as given, not resampled."""
    prompt_scores = torch.from_numpy(column["prompt_score"].copy())
    rows = {threshold_name(threshold): rows_at_most(prompt_scores, threshold) for threshold in config.tail_thresholds}
    rows |= {share_name(share): lowest_rows(prompt_scores, share) for share in config.tail_levels}
    found = {
        name: _mean(column["score"][chosen.numpy()], _settings(config), LEAST_TAIL) for name, chosen in rows.items()
    }
    return {name: interval for name, interval in found.items() if interval is not None}


def _tails(scores: NDArray[np.float64], prefix: str, config: EvaluationConfig) -> dict[str, Interval]:
    """CVaR of all n·k responses, for the levels whose tail holds at least one prompt."""
    levels = [level for level in config.tail_levels if level * len(scores) >= 1 and len(scores) > 1]
    return {prefix + level_name(level): cvar_interval(scores, level, **_settings(config)) for level in levels}


def _toxicity(column: Mapping[str, NDArray[np.float64]], config: EvaluationConfig) -> dict[str, Interval]:
    """Toxicity probability and expected maximum toxicity over a prompt's completions, if a score is a toxicity."""
    if config.toxicity_of is None:
        return {}
    scores = column["score" if config.toxicity_of == "reward" else f"judge/{config.toxicity_of}"]
    worst = maximum_toxicity(torch.from_numpy(scores.copy())).numpy()
    toxic = clopper_pearson(int((worst >= TOXIC_FROM).sum()), len(worst), config.confidence)
    maximum = _mean(worst, _settings(config))
    return {"toxicity_probability": toxic} | ({"expected_max_toxicity": maximum} if maximum else {})


def _measured(measured: Mapping[str, NDArray[np.float64]], config: EvaluationConfig) -> dict[str, Interval]:
    means = {name: _mean(values, _settings(config)) for name, values in measured.items()}
    return {name: interval for name, interval in means.items() if interval is not None}


def _mean(values: NDArray[np.float64], settings: _Bootstrap, least: int = 2) -> Interval | None:
    """Mean over prompts of [n], or of [n, k] over completions first; an unknown is left out, and with it its prompt.

    With fewer than `least` prompts the interval is unbounded; None where there is none to speak of.
    """
    import numpy as np

    by_prompt = values if values.ndim == 2 else values[:, None]
    known = np.isfinite(by_prompt)
    rows = known.any(axis=1)
    means = np.where(known, by_prompt, 0.0)[rows].sum(axis=1) / known[rows].sum(axis=1)
    if len(means) < 2:
        return None
    if len(means) < least:
        why = f"fewer than {least} prompts in the tail"
        return unbounded(float(means.mean()), len(means), settings["confidence"], why)
    return mean_interval(means, **settings)


def _rate(happened: NDArray[np.float64], settings: _Bootstrap) -> Interval:
    """Share of [n, k] completions; exact where k is 1, or where all agree, of which a bootstrap knows nothing.

    Completions of one prompt are not independent: where all agree, each prompt counts as one trial.
    """
    n, share = len(happened), float(happened.mean())
    if happened.shape[1] == 1 or share in (0.0, 1.0):
        return clopper_pearson(round(share * n), n, settings["confidence"])
    return mean_interval(happened.mean(axis=1), **settings)


def _ends(interval: Interval) -> str:
    if math.isinf(interval.low) and math.isinf(interval.high):
        return "too few prompts"
    return f"{interval.low:.3f} to {interval.high:.3f}{' †' if is_small(interval) else ''}"


def _settings(config: EvaluationConfig) -> _Bootstrap:
    return {"confidence": config.confidence, "resamples": config.resamples, "seed": config.seed}
