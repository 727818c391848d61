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
