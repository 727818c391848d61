"""``python -m lightning_rarlhf.memory`` as its users run it, on a tiny GPT-J and the shipped configurations."""

from __future__ import annotations

import re

from lightning_rarlhf.memory.__main__ import main
from tests.test_configs import world
from tests.test_gptj_configs import arguments

__all__ = ["world"]


def test_the_exit_status_says_whether_the_run_fits(world, policy_folders, tmp_path, capsys):
    run = arguments(world, policy_folders["gptj"], "fsdp2", tmp_path)
    assert main([*run, "--processes", "4", "--device_memory", "1GiB"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("one of 4 device(s), 2 prompts each, 2 in a backward pass")
    peaks = {phase: float(size) for phase, size in re.findall(r"^([a-z ,-]+): ([0-9.]+) MiB$", said, flags=re.M)}
    assert peaks.keys() == {"sampling", "log-probabilities and values", "update", "scoring"}
    worst, size = re.search(r"^worst: ([a-z ,-]+), ([0-9.]+) MiB$", said, flags=re.M).groups()
    assert peaks[worst] == float(size) == max(peaks.values())  # two may be equal, as they are printed
    assert "fits into 1GiB" in said
    assert main([*run, "--device_memory=20KiB"]) == 1
    assert "does not fit into 20KiB" in capsys.readouterr().out
    assert main([*run, "--device_memory", "much"]) == 2
    assert capsys.readouterr().err == "error: --device_memory much: expected a size such as 80GiB\n"
    assert not list(tmp_path.iterdir())


def test_what_fit_refuses_for_its_settings_is_refused_here_too(world, policy_folders, tmp_path, capsys):
    run = arguments(world, policy_folders["gptj"], "fsdp2", tmp_path)
    for mistake, said in (
        (["--model.kl.init_kl_coef", "0"], "error: kl.init_kl_coef=0 would stay 0"),
        (["--model.optimizer.lr", "-1"], "error: model.optimizer: Invalid learning rate: -1"),
    ):
        assert main([*run, *mistake]) == 2
        assert capsys.readouterr().err.startswith(said)


def test_caches_that_are_not_counted_are_named(world, policy_folders, tmp_path, capsys):
    run = [*arguments(world, policy_folders["llama"], "fsdp2", tmp_path), "--trainer.strategy", "auto"]
    assert main([*run, "--model.policy.compile_sampling", "true"]) == 0
    assert "compiled sampling keeps up to two caches more" in capsys.readouterr().out
    assert main(run) == 0
    assert "compiled sampling" not in capsys.readouterr().out
