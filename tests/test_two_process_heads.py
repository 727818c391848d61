"""Reward models and RECT's head: two processes, whose shares of a batch are unlike, fit what one process fits."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train
from tests.datamodules.data_files import write_csv, write_jsonl
from tests.decoding.hosts import save_world
from tests.test_configs import QUIET, ROOT
from tests.test_rect_module import arguments
from tests.test_reward_module import pairs, texts
from tests.tiny_models import save_classifier
from tests.two_processes import together

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

KINDS = ("labels", "preferences", "rect")
RUNS = {"alone": ("auto", "1"), "two": ("ddp", "2")}


def commands(root: Path, name: str) -> list[list[str]]:
    """Batches of 7 rows are 4 and 3; labels are known of some rows only, and responses end at different lengths."""

    def settings(kind: str) -> list[str]:
        strategy, devices = RUNS[name]
        folder = root / name / kind
        return [
            *("--trainer.strategy", strategy, "--trainer.devices", devices, "--trainer.max_steps", "4"),
            *("--trainer.default_root_dir", str(folder), "--data.batch_size", "7"),
            *("--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.5"),
            *("--trainer.val_check_interval", "2", "--trainer.check_val_every_n_epoch", "null"),
            *("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", str(folder)),
        ]

    def reward(kind: str, data: str, *more: str) -> list[str]:
        config = ["--config", str(ROOT / "configs" / "reward" / f"{kind}.yaml"), "--data.path", str(root / data)]
        backbone = ["--model.backbone.pretrained", str(root / "backbone"), "--data.text_tokens", "32"]
        return ["fit", *config, *backbone, *more, *QUIET, *settings(kind)]

    return [
        reward("labels", "labels.csv", "--data.label_columns", "[toxic, kind]"),
        reward("preferences", "pairs.jsonl", "--data.prompt_column", "prompt"),
        ["fit", *arguments(root, root / name / "rect"), *settings("rect")],
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = save_world(tmp_path_factory.mktemp("heads"))
    backbone = save_classifier(root / "backbone", labels=("LABEL_0", "LABEL_1"))
    config = json.loads((backbone / "config.json").read_text())  # each process draws its own dropout
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (backbone / "config.json").write_text(json.dumps(config))
    rows = [row | {"kind": row["kind"] if n % 2 == 0 else -1} for n, row in enumerate(texts(240))]
    write_csv(root / "labels.csv", rows)
    write_jsonl(root / "pairs.jsonl", pairs(60))
    for command in commands(root, "alone"):
        train.main(command)
    together(root, commands(root, "two"))
    return root


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (path for path in folder.rglob("*.safetensors"))
    return load_file(file)


def metrics(folder: Path) -> list[dict[str, float]]:
    (path,) = folder.rglob("metrics.csv")
    with path.open(newline="") as lines:
        rows = [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(lines)]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_fit_what_one_fits(root, kind):
    alone, two = metrics(root / "alone" / kind), metrics(root / "two" / kind)
    assert any("val/loss" in row for row in alone)
    assert len(alone) == len(two) >= 3
    for one, other in zip(alone, two, strict=True):
        assert other == pytest.approx(one, rel=1e-5, abs=1e-5)
    one, other = weights(root / "alone" / kind), weights(root / "two" / kind)
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=0, atol=1e-5)
