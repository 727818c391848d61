"""The two files that every method's `test` writes: ``generations.jsonl``, and ``results.json`` computed from it.

Generations are streamed to disk, one JSON object a line, and renamed into place when complete; the results are then
read off the finished file. Neither file is ever half-written. Documented in docs/results.md.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_rarlhf import __version__
from lightning_rarlhf.config import EvaluationConfig
from lightning_rarlhf.data_types import Samples
from lightning_rarlhf.functional.statistics import Interval, cvar_interval, mean_interval
from lightning_rarlhf.metrics import level_name
from lightning_rarlhf.sampling import finish_reasons

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA_VERSION = 1
GENERATIONS = "generations.jsonl"
RESULTS = "results.json"
PREDICTIONS = "predictions.jsonl"


class GenerationWriter:
    """Streams generations to ``<file>.partial`` and renames it when the last one is written."""

    def __init__(self, path: Path, eos_token_ids: Tensor) -> None:
        self.path = path
        self._eos_token_ids = eos_token_ids
        self._partial = path.with_name(path.name + ".partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("w", encoding="utf-8")

    def add(self, samples: Samples, *, scores: Tensor, kl: Tensor, prompt_scores: Tensor) -> None:
        """Write one line a prompt.

        Args:
            samples: B prompts with their responses.
            scores: f32 [B], reward of prompt + response.
            kl: f32 [B], Σ_t log π − log π_ref, in nats.
            prompt_scores: f32 [B], reward of the prompt alone.
        """
        batch = samples.batch
        columns = {
            "index": batch.index.tolist(),
            "prompt": batch.prompts,
            "label": batch.labels.tolist(),
            "source_score": [_finite(x) for x in batch.source_scores.tolist()],
            "prompt_score": prompt_scores.tolist(),
            "response": samples.responses,
            "score": scores.tolist(),
            "kl": kl.tolist(),
            "tokens": samples.lengths.tolist(),
            "finish_reason": finish_reasons(samples, self._eos_token_ids),
        }
        for row in zip(*columns.values(), strict=True):
            self._file.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n")

    def close(self) -> Path:
        """Put the finished file in place."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._partial, self.path)
        return self.path


def report(generations: Path, identity: dict[str, Any], config: EvaluationConfig) -> None:
    """Print the table of a finished generations file and write ``results.json`` beside it."""
    metrics = summarise(generations, config)
    print_table(metrics, title=f"{identity['policy']}: {identity['module']}, responses in {generations}", config=config)
    write_results(generations.with_name(RESULTS), metrics, identity, config, generations)


def summarise(generations: Path, config: EvaluationConfig) -> dict[str, Interval]:
    """Every number of the results table, each with its bootstrap interval over prompts.

    ``score_mean`` (also by class), ``score_tail_le_<t>`` for prompts whose own score is at most t, ``cvar_<100 α>``,
    ``kl_mean``, ``response_length_mean``, ``eos_rate``.
    """
    column = read_columns(generations)
    settings = {"confidence": config.confidence, "resamples": config.resamples, "seed": config.seed}
    groups = {"score_mean": column["score"]}
    for label, name in ((1, "wanted"), (0, "unwanted")):
        groups[f"score_mean/{name}"] = column["score"][column["label"] == label]
    for threshold in config.tail_thresholds:
        groups[f"score_tail_le_{threshold:g}"] = column["score"][column["prompt_score"] <= threshold]
    groups |= {"kl_mean": column["kl"], "response_length_mean": column["tokens"], "eos_rate": column["stopped"]}
    means = {name: mean_interval(values, **settings) for name, values in groups.items() if len(values) > 1}
    tails = {
        level_name(level): cvar_interval(column["score"], level, **settings)
        for level in config.tail_levels
        if level * len(column["score"]) >= 1
    }
    return means | tails


def read_columns(generations: Path) -> dict[str, NDArray[np.float64]]:
    """The numeric columns of a generations file, f64 [n] each; ``stopped`` is 1 where the response ended by itself."""
    import numpy as np

    def rows() -> Iterator[tuple[float, ...]]:
        with generations.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                numbers = (row["index"], row["label"], row["prompt_score"], row["score"], row["kl"], row["tokens"])
                yield (*numbers, row["finish_reason"] == "stop")

    names = ("index", "label", "prompt_score", "score", "kl", "tokens", "stopped")
    table: NDArray[np.float64] = np.fromiter(rows(), dtype=np.dtype((np.float64, len(names)))).view(np.float64)
    return dict(zip(names, table.reshape(-1, len(names)).T, strict=True))


def write_results(
    path: Path, metrics: dict[str, Interval], identity: dict[str, Any], config: EvaluationConfig, generations: Path
) -> dict[str, Any]:
    """Write ``results.json`` in one move and return its content."""
    config_text = str(identity.pop("config", ""))
    content = {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "code_version": __version__,
        "torch_version": torch.__version__,
        "config_sha256": hashlib.sha256(config_text.encode()).hexdigest() if config_text else None,
        "generations_sha256": _sha256(generations),
        "evaluation": asdict(config),
        **identity,
        "metrics": {name: _as_json(interval) for name, interval in metrics.items()},
    }
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return content


def print_table(metrics: dict[str, Interval], title: str, config: EvaluationConfig) -> None:
    """Show the results in the terminal, a line a metric."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    for heading in ("estimate", f"{100 * config.confidence:g} % interval", "n"):
        table.add_column(heading, justify="right")
    for name, interval in metrics.items():
        table.add_row(name, f"{interval.estimate:.3f}", _ends(interval), str(interval.n))
    Console().print(table)


def _ends(interval: Interval) -> str:
    if math.isinf(interval.low) and math.isinf(interval.high):
        return "too few prompts"
    return f"{interval.low:.3f} to {interval.high:.3f}"


def _as_json(interval: Interval) -> dict[str, Any]:
    """An end that the data cannot tell (±inf) is null."""
    return {**asdict(interval), "low": _finite(interval.low), "high": _finite(interval.high)}


def _finite(value: float) -> float | None:
    """JSON has neither NaN nor infinity: what is unknown is null."""
    return value if math.isfinite(value) else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
