from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks import gpu
from benchmarks.workload import SIZES
from lightning_rarlhf.cached_decoding import compiled_step

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def test_a_short_training_is_measured_with_either_way_of_sampling(monkeypatch, capsys):
    monkeypatch.setattr(compiled_step, "BACKEND", "eager")
    monkeypatch.setattr(gpu, "copy_bandwidth", lambda _device: 1e9)
    small = replace(SIZES["tiny"], layers=2, hidden=64, heads=2, vocabulary=100, batch=4)
    monkeypatch.setattr(gpu, "workload", lambda _size, _task, **changes: replace(small, **changes))
    gpu.main(["--size", "tiny", "--iterations", "2", "--rounds", "1", "--accelerator", "cpu", "--json"])
    compiled, plain = map(json.loads, capsys.readouterr().out.strip().splitlines())
    assert (compiled["sampling"], plain["sampling"]) == ("compiled", "plain")
    for result in (compiled, plain):
        assert result["iterations"] == 2
        assert result["total_seconds"] > result["first_iteration_seconds"] > 0
        assert {"rollout", "score", "update", "iteration"} <= result["median_seconds"].keys()
        step = result["decoding"]
        # two blocks of 12·64² weights and their biases, and the output layer, in bfloat16
        assert step["weight_bytes"] == 2 * (2 * (12 * 64 * 64 + 9 * 64) + 100 * 64)
        assert step["cache_bytes"] == 2 * 2 * 2 * 64 * 4 * (64 + 24)
        assert step["bound_seconds"] == (step["weight_bytes"] + step["cache_bytes"]) / 1e9
        assert step["in_bounds"] == step["step_seconds"] / step["bound_seconds"] > 0
        assert f"{1e3 * step['step_seconds']:.3f} ms" in gpu.table(result)
        assert "H200" not in gpu.table(result)


def test_the_size_of_the_issue():
    assert (SIZES["gpt2"].layers, SIZES["gpt2"].hidden, gpu.REWARDS["gpt2"]) == (12, 768, {})
