from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import iteration
from benchmarks.models import save_models
from benchmarks.workload import SIZES, Workload, workload
from lightning_rarlhf.config import PolicyConfig, SamplingConfig
from lightning_rarlhf.loading.policy_loading import load_actor_critic
from lightning_rarlhf.loading.tokenizer import load_tokenizer

SMALL = Workload(2, 64, 2, 50, batch=3, prompt=5, response=4, reward_layers=1, reward_hidden=64, epochs=2)


def test_flops_are_those_that_torch_counts(tmp_path, monkeypatch):
    # oneDNN's products are not counted
    monkeypatch.setattr("lightning_rarlhf.layers.cpu_linear._available", lambda: False)
    save_models(tmp_path, SMALL)
    folder = str(tmp_path / "policy")
    actor = load_actor_critic(PolicyConfig(pretrained=folder, attn_implementation="eager"), load_tokenizer(folder))
    sequences = torch.randint(1, 50, (3, 9))
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        actor(sequences, torch.ones(3, 9, dtype=torch.bool), torch.ones(3, 4, dtype=torch.bool), SamplingConfig())
    critic = 2 * 3 * 4 * 64  # the value head, which the formula leaves out
    # torch does not count the kernel that attends for the last layer's read columns only; eager does it for all nine
    unread = 3 * (9 - 4 - 1) * 4 * 9 * 64
    assert SMALL.forward_flops(3, head_tokens=4) == counted.get_total_flops() - critic - unread


def test_the_update_pays_for_the_kept_rows_only():
    full = workload("tiny", "imdb")
    assert workload("tiny", "imdb", risk_level=0.25).update_flops == full.update_flops / 4
    assert workload("tiny", "imdb", risk_level=0.4).kept == 13  # ⌈12.8⌉
    assert workload("tiny", "imdb", risk_level=0.2).kept == 7
    assert workload("tiny", "imdb", batch=30, risk_level=0.1).kept == 3  # not 4: 0.1 · 30 is 3 up to rounding


def test_frozen_layers_are_paid_for_by_nobody():
    head = 2 * SMALL.kept * 4 * 64 * 50
    plain, frozen = SMALL, replace(SMALL, frozen_layers=1)
    layer = plain.forward_flops(3, head_tokens=4) - replace(plain, layers=1).forward_flops(3, head_tokens=4)
    assert plain.update_flops - frozen.update_flops == plain.epochs * (3 * layer + head)
    assert Workload(**plain.to_dict()) == plain
    assert Workload(**frozen.to_dict()) == frozen
    assert "frozen_layers" not in plain.to_dict()


def test_a_measurement_from_the_command_line(monkeypatch, capsys):
    """Slow, 10 s: a real worker imports everything. It is the one test that the benchmark still runs."""
    monkeypatch.setitem(SIZES, "tiny", SMALL)
    monkeypatch.setattr(sys, "argv", ["iteration", "--task=rtp", "--level=0.5", "--turns=2", "--threads=1", "--json"])
    iteration.main()
    result = json.loads(capsys.readouterr().out)
    ours = result["libraries"]["ours"]
    assert set(ours["phases"]) >= {"sample", "score", "update"}
    assert sum(ours["phases"].values()) == pytest.approx(ours["seconds"], rel=0.5)
    assert ours["update_flops"] > 0
    assert 0 < ours["iteration_mb"] < ours["peak_mb"]
    assert "of the matrix product" in iteration.table(result)
