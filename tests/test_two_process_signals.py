"""A signal to one of two processes: both stop after the same iteration, with one checkpoint that goes on."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from lightning_rarlhf.quickstart.tiny_policy import write_tiny_policy
from tests.two_processes import started

ROOT = Path(__file__).parent.parent
PATIENCE = 300
"""seconds"""
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def test_both_stop_after_the_same_iteration_whichever_was_told(tmp_path, monkeypatch):
    policy = write_tiny_policy(tmp_path / "policy", layers=1, width=16, heads=2)
    (tmp_path / "scores.json").write_text(json.dumps({}))
    monkeypatch.setenv("RARLHF_SCORES", str(tmp_path / "scores.json"))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    command = [
        *("fit", "--config", str(ROOT / "configs" / "quickstart" / "rarlhf.yaml")),
        *("--model.policy.pretrained", str(policy), "--trainer.default_root_dir", str(tmp_path / "run")),
        *("--model.reward.function", "tests.two_processes.scripted", "--trainer.callbacks", "[]"),
        *("--trainer.max_steps", "1000", "--trainer.max_epochs", "100", "--trainer.logger", "false"),
        *("--trainer.enable_progress_bar", "false", "--trainer.devices", "2", "--trainer.strategy", "ddp"),
        *("--data.batch_size", "4", "--data.comments", "100", "--data.test_size", "4"),
        *("--model.sampling.max_new_tokens", "4", "--model.ppo.epochs", "1", "--checkpoint.every_n_iterations", "2"),
    ]
    with started(tmp_path, [command]) as processes:
        deadline = time.monotonic() + PATIENCE
        while not last.exists() and time.monotonic() < deadline and processes[0].poll() is None:
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGTERM)
        statuses = [process.wait(timeout=PATIENCE) for process in processes]
    printed = (tmp_path / "rank0.txt").read_text()
    assert statuses == [128 + signal.SIGTERM] * 2, printed[-3000:]
    (stopped,) = re.findall(r"stopped after (\d+) iterations; go on with --ckpt_path last", printed)
    checkpoint = torch.load(last, weights_only=True)
    assert checkpoint["global_step"] == int(stopped) >= 2
    assert not list(tmp_path.rglob("*.partial*"))
