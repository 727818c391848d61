"""Run folders as `test` leaves them, with scores and KL of the test's choice; written by the library's own writers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_rarlhf.base_modules.evaluation import summarise
from lightning_rarlhf.config import EvaluationConfig
from lightning_rarlhf.data_types import PromptBatch, Samples
from lightning_rarlhf.records.generations import Completions, GenerationWriter, rows_by_prompt
from lightning_rarlhf.records.results_file import publish, results_of

EOS = 1
WORDS = ("warm", "food", "was", "good")
PROMPTS = 120
DATA = {
    "name": "synthetic",
    "revision": None,
    "prompt_tokens": 4,
    "seed": 0,
    "sha256": {"test": "a" * 64},
}
REWARD = {"reward": "CallableReward", "function": "some.function"}


def difficulty(n: int = PROMPTS) -> np.ndarray:
    """A fixed score for each prompt alone."""
    return np.random.default_rng(99).normal(size=n)


def scores_of(seed: int, *, gain: float = 0.0, n: int = PROMPTS, noise: float = 1.0) -> np.ndarray:
    """[n], what a policy makes of the prompts: their difficulty, a gain and noise of its own."""
    return difficulty(n) + gain + noise * np.random.default_rng(seed).normal(size=n)


def write_run(
    folder: Path,
    scores: np.ndarray,
    *,
    kl: np.ndarray | float = 1.0,
    prompt_scores: np.ndarray | None = None,
    first_index: int = 1000,
    prompt: str = "prompt",
    judges: dict[str, np.ndarray] | None = None,
    config: EvaluationConfig | None = None,
    reverse: bool = False,
    **identity: Any,
) -> Path:
    """Write ``generations.jsonl`` and ``results.json`` of scores [n], or [n, k] for k completions a prompt."""
    folder.mkdir(parents=True, exist_ok=True)
    table = scores.reshape(len(scores), -1)
    n, k = table.shape
    config = config or EvaluationConfig(resamples=100, completions=k, tail_thresholds=(0.0,))
    kls = np.broadcast_to(np.asarray(kl, dtype=float).reshape(-1, 1), (n, 1)) * np.ones((1, k))
    own = difficulty(n) if prompt_scores is None else prompt_scores
    order = np.arange(n)[::-1] if reverse else np.arange(n)
    writer = GenerationWriter(folder / "generations.jsonl")
    for rows in np.array_split(order, 3):
        samples = _samples(rows, first_index, prompt)
        completions = [
            Completions(
                samples=samples,
                scores=_f32(table[rows, draw]),
                kl=_f32(kls[rows, draw]),
                judges={name: _f32(values[rows]) for name, values in (judges or {}).items()},
            )
            for draw in range(k)
        ]
        writer.write(rows_by_prompt(completions, _f32(own[rows]), torch.tensor([EOS])))
    finished = writer.finish()
    known = {"module": "PPO", "policy": str(folder), "reference": "start", "reward": REWARD, "data": DATA, "seed": 0}
    known |= {"training": None, "human_texts": {"n": 2, "sha256": "a" * 64}}
    known |= {"sampling": {"temperature": 1.0, "top_p": 1.0}, "config": str(folder)} | identity
    publish(finished, results_of(finished, summarise(finished, config), known, config))
    return folder


def _samples(rows: np.ndarray, first_index: int, prompt: str) -> Samples:
    count = len(rows)
    batch = PromptBatch(
        input_ids=torch.full((count, 2), 5),
        attention_mask=torch.ones(count, 2, dtype=torch.bool),
        index=torch.from_numpy(rows + first_index),
        prompts=tuple(f"{prompt} {row}" for row in rows),
        labels=torch.from_numpy((rows % 3 > 0).astype(np.int64)),
        source_scores=torch.full((count,), torch.nan),
    )
    lengths = torch.from_numpy(rows % 3 + 1)
    mask = torch.arange(3)[None] < lengths[:, None]
    response = torch.where(mask, 7, 0)
    response[:, 0] = torch.where(torch.from_numpy(rows % 2 == 0), EOS, 7)
    return Samples(
        batch=batch,
        sequences=torch.cat([batch.input_ids, response], dim=1),
        response_mask=mask,
        responses=tuple(" ".join(WORDS[: row % 4 + 1]) for row in rows.tolist()),
    )


def _f32(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float32))
