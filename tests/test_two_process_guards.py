"""NaN on one of two processes: neither hangs, both skip or stop alike, and their weights stay equal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lightning_rarlhf.quickstart.tiny_policy import write_tiny_policy
from tests.two_processes import started

PLAN = {1: "scores", 2: "logits", 4: "gradient"}
ITERATIONS = 6


def configuration(policy: Path, folder: Path, strategy: str, on_failure: str) -> dict:
    poison = {"class_path": "tests.poison.PoisonOneProcess", "init_args": {"plan": PLAN, "folder": str(folder)}}
    schedule = {"class_path": "RiskSchedule", "init_args": {"risk_level": 0.5, "warmup": 0, "rho": 0.5}}
    reward = {"class_path": "CallableReward", "init_args": {"function": "tests.poison.scores"}}
    data = {"prompt_tokens": 6, "val_size": 0, "test_size": 4, "batch_size": 8, "progress": False}
    return {
        "seed_everything": 3,
        "model": {
            "class_path": "RiskAversePPOModule",
            "init_args": {
                "policy": {"pretrained": str(policy)},
                "reward": reward,
                "sampling": {"max_new_tokens": 6},
                "ppo": {"epochs": 2, "minibatch_size": 4},
                "guard": {"on_failure": on_failure, "max_skips": 2},
                "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001}},
            },
        },
        "data": {"class_path": "SyntheticDataModule", "init_args": data},
        "trainer": {
            "max_steps": ITERATIONS,
            "accelerator": "cpu",
            "strategy": strategy,
            "devices": 2,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder),
            "callbacks": [schedule, poison],
        },
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DDP and FSDP2 that skip, and DDP that stops: one pair of processes, for starting it is what takes long."""
    root = tmp_path_factory.mktemp("guards")
    policy = write_tiny_policy(root / "policy", layers=2, width=16, heads=2)
    commands = []
    for strategy, on_failure in (("ddp", "skip"), ("fsdp2", "skip"), ("ddp", "stop")):
        folder = root / f"{strategy}-{on_failure}"
        folder.mkdir()
        config = configuration(policy, folder, strategy, on_failure)
        if strategy == "fsdp2":  # of each process's 4 prompts; scores are then made in a thread
            config["model"]["init_args"]["ppo"]["micro_rollout_batch_size"] = 3
        (folder / "mine.yaml").write_text(yaml.safe_dump(config))
        commands.append(["fit", "--config", str(folder / "mine.yaml")])
    with started(root, commands) as processes:
        statuses = [process.wait(timeout=300) for process in processes]
    printed = "\n".join((root / f"rank{rank}.txt").read_text()[-3000:] for rank in range(2))
    assert statuses == [2, 2], printed
    return root


def lines(folder: Path, rank: int) -> list[dict]:
    return [json.loads(line) for line in (folder / f"rank{rank}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_both_skip_the_same_iterations_and_keep_equal_weights(runs, strategy):
    first, second = (lines(runs / f"{strategy}-skip", rank) for rank in range(2))
    assert first == second
    assert [line["iteration"] for line in first] == list(range(ITERATIONS))
    assert [not line["moved"] for line in first] == [step in PLAN for step in range(ITERATIONS)]
    assert first[-1]["skipped"] == len(PLAN)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_each_process_leaves_its_bundle(runs, strategy):
    bundles = {path.name for path in (runs / f"{strategy}-skip" / "crash").iterdir()}
    assert bundles >= {f"iteration-1-rank{rank}" for rank in range(2)}
    said = [
        json.loads((runs / f"{strategy}-skip" / "crash" / f"iteration-1-rank{rank}" / "crash.json").read_text())
        for rank in range(2)
    ]
    assert "another process" in said[0]["message"]
    assert "not finite" in said[1]["message"]
    gradient = json.loads((runs / f"{strategy}-skip" / "crash" / "iteration-4-rank0" / "crash.json").read_text())
    assert gradient["gradients_not_finite"]


def test_both_stop(runs):
    assert [len(lines(runs / "ddp-stop", rank)) for rank in range(2)] == [1, 1]
    printed = [(runs / f"rank{rank}.txt").read_text() for rank in range(2)]
    assert "error: iteration 1: " in printed[0] or "error: iteration 1: " in printed[1]
    assert not any("Traceback" in text for text in printed), printed
