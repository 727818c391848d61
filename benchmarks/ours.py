"""This library's worker: the module's own training step, under a real Trainer, one iteration a turn."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from benchmarks.serve import Phases, Turns
from benchmarks.workload import Workload
from lightning_rarlhf.config import PolicyConfig, PPOConfig, SamplingConfig
from lightning_rarlhf.data_types import PromptBatch
from lightning_rarlhf.ppo_module import RiskAversePPOModule
from lightning_rarlhf.reward_models import ClassifierReward

TURNS_AT_MOST = 10_000


class TakeTurns(Callback):
    """Blocks before each batch until the other side gives a turn; times the phases of the module's step."""

    def __init__(self, work: Workload) -> None:
        self._work = work
        self._turns = Turns()
        self._phases = Phases()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.risk_level = self._work.risk_level
        timed = self._phases.timed
        drawn = "draw" if hasattr(pl_module, "draw") else "generate"  # of an older checkout
        setattr(pl_module, drawn, timed("sample", getattr(pl_module, drawn)))
        pl_module.score = timed("score", pl_module.score)
        pl_module.update = timed("update", pl_module.update)
        pl_module.actor.statistics = timed("old_logprobs", pl_module.actor.statistics)
        pl_module.reference.response_logprobs = timed("reference", pl_module.reference.response_logprobs)
        self._turns.ready()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: object, batch_idx: int) -> int:
        return 0 if self._turns.wait() else -1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: object, batch_idx: int
    ) -> None:
        tokens = int(outputs["rollout"].response_mask.sum())
        self._turns.done(
            self._phases.take(),
            response_tokens=tokens,
            after=lambda: {"matrix_product_flops": matrix_product_flops(self._work)},
        )


def matrix_product_flops(work: Workload) -> float:
    """FLOP/s of the better of two products: the first layer of the MLP over the kept tokens, and a square one."""
    dtype = torch.bfloat16 if work.precision == "bf16-mixed" else torch.float32
    tokens = work.kept * (work.prompt + work.response)
    return max(_flops(tokens, work.hidden, 4 * work.hidden, dtype), _flops(1024, 1024, 1024, dtype))


def _flops(rows: int, inner: int, columns: int, dtype: torch.dtype) -> float:
    left, right = torch.randn(rows, inner, dtype=dtype), torch.randn(inner, columns, dtype=dtype)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return 2 * rows * inner * columns / sorted(times)[len(times) // 2]


def prompt_batch(work: Workload) -> PromptBatch:
    """Random prompts of full length."""
    ids = torch.randint(1, work.vocabulary, (work.batch, work.prompt), generator=torch.Generator().manual_seed(1))
    return PromptBatch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        index=torch.arange(work.batch),
        prompts=tuple(" ".join(f"w{token}" for token in row) for row in ids.tolist()),
        labels=torch.ones(work.batch, dtype=torch.int64),
        source_scores=torch.full((work.batch,), torch.nan),
    )


def main(folder: Path, work: Workload) -> None:
    """Serve turns until the other side closes the line."""
    # an older checkout has no such settings
    options = {name: value for name in ("frozen_layers", "compile_sampling") if (value := getattr(work, name, 0))}
    module = RiskAversePPOModule(
        policy=PolicyConfig(pretrained=str(folder / "policy"), **options),
        reward=ClassifierReward(
            str(folder / "reward"), dtype="bfloat16" if work.precision == "bf16-mixed" else "float32"
        ),
        sampling=SamplingConfig(max_new_tokens=work.response),
        ppo=PPOConfig(epochs=work.epochs),
    )
    with tempfile.TemporaryDirectory() as scratch:
        trainer = pl.Trainer(
            default_root_dir=scratch,
            precision=work.precision,  # type: ignore[arg-type]
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_epochs=1,
            callbacks=[TakeTurns(work)],
        )
        trainer.fit(module, DataLoader([prompt_batch(work)] * TURNS_AT_MOST, batch_size=None))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    main(Path(sys.argv[1]), Workload(**json.loads(sys.argv[2])))
