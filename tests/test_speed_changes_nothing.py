"""Optimisations keep results: every metric of small runs is what it was before any of them, within 1e-5.

The fixture was recorded at commit b24d791, the last before the first optimisation, by running this file with
`python -m tests.test_speed_changes_nothing` there. Record it again only when the *method* changes on purpose.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from callbacks import RiskSchedule
from lightning_rarlhf.config import PolicyConfig, PPOConfig, SamplingConfig
from lightning_rarlhf.data_types import PromptBatch
from lightning_rarlhf.ppo_module import RiskAversePPOModule
from lightning_rarlhf.reward_models import CallableReward
from tests.quiet_trainer import quiet_trainer
from tests.tiny_models import save_policy

FIXTURE = Path(__file__).parent / "fixtures" / "metrics_before_optimisation.json"
ITERATIONS = 5
LONG = SamplingConfig(max_new_tokens=12)
RUNS = {
    "gpt2": ("gpt2", PPOConfig(), LONG),
    "gptj": ("gptj", PPOConfig(minibatch_size=3), LONG),
    "llama": ("llama", PPOConfig(epochs=2, max_grad_norm=0.5), SamplingConfig(max_new_tokens=9, temperature=0.7)),
    "qwen2": ("qwen2", PPOConfig(rank_by="lambda_return"), SamplingConfig(max_new_tokens=8, top_k=6, top_p=0.9)),
    "minimum": ("gpt2", PPOConfig(minibatch_size=4), SamplingConfig(max_new_tokens=7, min_new_tokens=3)),
}
"""name: architecture, update, sampling; prompts are ragged and most responses end early in every one"""


def worth(prompts, responses):
    """A score that depends on every word and on the length."""
    value = {"good": 1.0, "kind": 0.8, "bad": -1.0, "rude": -0.9, "warm": 0.3, "cold": -0.2}
    return [sum(value.get(word, 0.013) for word in response.split()) for response in responses]


def prompts(first: int, rows: int = 8) -> PromptBatch:
    """Left-padded prompts of 1 to 5 tokens."""
    lengths = [1 + (first + row) % 5 for row in range(rows)]
    ids = [[1] * (6 - n) + [3 + (first + 7 * row + 3 * k) % 14 for k in range(n)] for row, n in enumerate(lengths)]
    return PromptBatch(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor([[False] * (6 - n) + [True] * n for n in lengths]),
        index=torch.arange(first, first + rows),
        prompts=tuple(f"p{row}" for row in range(rows)),
        labels=torch.ones(rows, dtype=torch.int64),
        source_scores=torch.full((rows,), torch.nan),
    )


class Prompts(pl.LightningDataModule):
    """The same ragged prompts in every run, one validation batch as well."""

    batch_size = 8

    def val_dataloader(self):
        return DataLoader([prompts(1000)], batch_size=None)

    def train_dataloader(self):
        return DataLoader([prompts(8 * number) for number in range(ITERATIONS)], batch_size=None)


class Record(Callback):
    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.metrics.append({name: value for name, value in logged.items() if not name.startswith("time/")})


def metrics_of(name: str, folder: Path, part: int | None = None) -> list[dict[str, float]]:
    """Every metric of every iteration of one run, whose prompts are sampled `part` at a time."""
    family, ppo, sampling = RUNS[name]
    os.environ["PL_GLOBAL_SEED"] = "11"
    torch.manual_seed(11)
    module = RiskAversePPOModule(
        policy=PolicyConfig(pretrained=str(save_policy(folder / family, family))),
        reward=CallableReward("tests.test_speed_changes_nothing.worth"),
        ppo=replace(ppo, micro_rollout_batch_size=part),
        sampling=sampling,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=2e-4),
    )
    record = Record()
    quiet_trainer(
        folder,
        max_epochs=1,
        callbacks=[record, RiskSchedule(risk_level=0.5, warmup=1, rho=0.6)],
    ).fit(module, datamodule=Prompts())
    return record.metrics


@pytest.mark.parametrize(
    ("name", "part"), [*((name, None) for name in RUNS), ("gpt2", 3), ("llama", 1), ("minimum", 4)]
)
def test_the_metrics_are_those_before_any_optimisation(name, part, tmp_path, monkeypatch):
    """In parts too, the last of which is smaller, scored in a thread of their own."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    before = json.loads(FIXTURE.read_text())[name]
    now = metrics_of(name, tmp_path, part)
    assert len(now) == ITERATIONS
    for iteration, (old, new) in enumerate(zip(before, now, strict=True)):
        assert old.keys() <= new.keys()
        for metric, value in old.items():
            assert new[metric] == pytest.approx(value, rel=1e-5, abs=1e-5), (iteration, metric)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        recorded = {name: metrics_of(name, Path(scratch) / name) for name in RUNS}
    FIXTURE.write_text(json.dumps(recorded, indent=1) + "\n")
