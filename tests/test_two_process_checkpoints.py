"""One of two processes cannot write its shard: both say so or go on alike, and the former checkpoint is intact."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from lightning_rarlhf.checkpoints import sharded_checkpoint
from lightning_rarlhf.checkpoints.sharded_checkpoint import whole_checkpoint
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.quickstart.tiny_policy import write_tiny_policy
from tests.test_two_process_guards import configuration
from tests.two_processes import started

FULL = {
    # iterations 2 and 3 fail on process 1 alone, in the shards; then the disk has room again
    "continue": {"rank": 1, "first": 2, "last": 3, "limit": 2_000},
    # iteration 2 fails on process 0 alone, in what is beside the shards
    "stop": {"rank": 0, "first": 2, "last": 9, "limit": 300_000, "ballast": 100_000},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that goes on and one that stops: one pair of processes, for starting it is what takes long."""
    root = tmp_path_factory.mktemp("disk")
    policy = write_tiny_policy(root / "policy", layers=1, width=16, heads=2)
    commands = []
    for mode, where in FULL.items():
        config = configuration(policy, root / mode, "fsdp2", "stop")
        config["model"]["init_args"]["policy"]["lora"] = {"r": 2}
        config["trainer"]["callbacks"] = [{"class_path": "tests.full_disk.FullDisk", "init_args": where}]
        config["trainer"]["max_steps"] = 4
        config["checkpoint"] = {"every_n_iterations": 1, "on_write_error": mode}
        (root / f"{mode}.yaml").write_text(yaml.safe_dump(config))
        commands.append(["fit", "--config", str(root / f"{mode}.yaml")])
    with started(root, commands) as processes:
        statuses = [process.wait(timeout=300) for process in processes]
    assert statuses == [2, 2], printed(root)
    return root


def printed(root: Path) -> str:
    return "\n".join((root / f"rank{rank}.txt").read_text()[-4000:] for rank in range(2))


def content(run: Path) -> dict:
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    return whole_checkpoint(run / "checkpoints" / "last.ckpt")


def test_a_run_that_is_to_go_on_writes_again_when_there_is_room(runs):
    assert content(runs / "continue")["global_step"] == 4
    said = [line for line in (runs / "rank0.txt").read_text().splitlines() if "could not be written" in line]
    for iteration in (2, 3):
        (line,) = (text for text in said if f"iteration {iteration}: checkpoint {runs / 'continue'}" in text)
        assert "File too large (on process 1 of 2); the one before it is intact" in line


def test_a_run_that_is_to_stop_ends_in_one_line_and_keeps_the_former_checkpoint(runs):
    assert content(runs / "stop")["global_step"] == 1
    assert "Traceback" not in printed(runs)
    line = (runs / "rank0.txt").read_text().strip().splitlines()[-1]
    assert line.startswith(f"error: iteration 2: checkpoint {runs / 'stop'}")
    assert "File too large (on process 0 of 2); the one before it is intact" in line
    assert line.endswith("go on with --ckpt_path last")


def test_shards_hold_what_is_trained_only(runs):
    weights = content(runs / "continue")["state_dict"]
    assert any("lora_" in name for name in weights)
    assert all("lora_" in name or "value_head" in name for name in weights)
    assert all(isinstance(weight, torch.Tensor) and weight.abs().max() > 0 for weight in weights.values())


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda folder: (folder / "__1_0.distcp").unlink(), "1 of its 2 parts are missing (__1_0.distcp); copy"),
        (lambda folder: (folder / ".metadata").unlink(), ".metadata is missing"),
        (lambda folder: (folder / "meta.pt").unlink(), "meta.pt is missing"),
        (lambda folder: os.truncate(folder / "__0_0.distcp", 1_000), "__0_0.distcp has 1000 of its "),
        (lambda folder: flip(folder / "__1_0.distcp"), "__1_0.distcp is damaged"),
        (lambda folder: flip(folder / ".metadata"), ".metadata is damaged (wrong checksum)"),
        (lambda folder: os.truncate(folder / ".metadata", 0), ".metadata is damaged (wrong checksum)"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_by_name(runs, tmp_path, damage, line):
    folder = shutil.copytree(runs / "continue" / "checkpoints" / "last.ckpt", tmp_path / "last.ckpt")
    damage(folder)
    with pytest.raises(ValueError, match="checkpoint .*last.ckpt") as caught:
        whole_checkpoint(folder)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_index_with_one_wrong_bit_is_refused_wherever_it_is(runs, tmp_path):
    """Most such bits lie in names and numbers that an unpickler takes as they come."""
    folder = shutil.copytree(runs / "continue" / "checkpoints" / "last.ckpt", tmp_path / "last.ckpt")
    whole, read = (folder / ".metadata").read_bytes(), 0
    checksum = torch.load(folder / "meta.pt", weights_only=True)["index_sha256"]
    for place in range(0, len(whole), 37):
        (folder / ".metadata").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"last\.ckpt: \.metadata is damaged \(wrong checksum\); give another"):
            sharded_checkpoint._index(folder, checksum)
        with contextlib.suppress(UserError):  # as in a folder of before there was a checksum: never another error
            sharded_checkpoint._index(folder, None)
            read += 1
    assert read > 0


def flip(file: Path) -> None:
    """One bit in each 50 bytes."""
    file.write_bytes(bytes(byte ^ (place % 50 == 0) for place, byte in enumerate(file.read_bytes())))
