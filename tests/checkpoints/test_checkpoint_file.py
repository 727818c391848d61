from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_rarlhf.checkpoints.checkpoint_file import (
    CheckpointError,
    read_checkpoint,
    read_without_optimizers,
    write_checkpoint,
)
from tests.file_limit import file_limit

CHECKPOINT = {"pytorch-lightning_version": "2.6.6", "loops": {}, "state_dict": {"weight": torch.arange(50_000.0)}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_checkpoint(CHECKPOINT, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def names(path: Path) -> list[str]:
    return [entry.name for entry in path.parent.iterdir()]


@pytest.mark.parametrize("header", [False, True])
def test_what_is_written_is_read(path, header):
    read = read_checkpoint(path, header=header)
    assert torch.equal(read["state_dict"]["weight"], CHECKPOINT["state_dict"]["weight"])
    assert names(path) == ["last.ckpt"]


def test_no_room_leaves_the_one_before_it_and_nothing_else(path):
    before = path.read_bytes()
    with file_limit(100_000), pytest.raises(OSError, match="too large"):
        write_checkpoint(CHECKPOINT, path)
    assert path.read_bytes() == before
    assert names(path) == ["last.ckpt"]


def test_a_file_takes_the_place_of_a_folder_of_shards_when_it_is_whole(tmp_path):
    path = tmp_path / "last.ckpt"
    path.mkdir()
    (path / "meta.pt").write_bytes(b"former")
    with file_limit(100_000), pytest.raises(OSError, match="too large"):
        write_checkpoint(CHECKPOINT, path)
    assert (path / "meta.pt").read_bytes() == b"former"
    assert names(path) == ["last.ckpt"]
    write_checkpoint(CHECKPOINT, path)
    assert read_checkpoint(path).keys() == CHECKPOINT.keys()
    assert names(path) == ["last.ckpt"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "last.ckpt").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_checkpoint(CHECKPOINT, tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").is_dir()


def test_a_folder_that_cannot_be_made_is_the_systems_own_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(OSError, match="checkpoints"):
        write_checkpoint(CHECKPOINT, tmp_path / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("header", [False, True])
def test_a_truncated_file_is_refused_by_name(path, share, header):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"checkpoint .*last\.ckpt cannot be read: truncated, damaged") as caught:
        read_checkpoint(path, header=header)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_damage_inside_is_seen(path, place):
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(path)


# Without the optimizers' states

READERS = [read_checkpoint, read_without_optimizers]


def trained() -> dict:
    """A checkpoint whose two weights share memory, with an empty tensor and an optimizer's states."""
    weight = torch.arange(1000.0)
    states = {"weight": weight, "tied": weight, "none": torch.zeros(0), "row": weight[:10]}
    optimizer = {"state": {0: {"exp_avg": torch.arange(1000.0, 2000.0)}}}
    return {**CHECKPOINT, "state_dict": states, "optimizer_states": [optimizer], "callbacks": {"a": [torch.tensor(3)]}}


def flip_a_byte_of(path: Path, tensor: torch.Tensor) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(tensor.numpy().tobytes()) + tensor.nbytes // 2] ^= 0xFF
    path.write_bytes(content)


def test_an_export_reads_all_but_the_optimizers(path):
    write_checkpoint(trained(), path)
    read, whole = read_without_optimizers(path), trained()
    assert read.keys() == whole.keys() - {"optimizer_states"}
    assert all(torch.equal(read["state_dict"][name], weight) for name, weight in whole["state_dict"].items())
    assert read["callbacks"]["a"][0].item() == 3


@pytest.mark.parametrize("read", READERS)
def test_a_damaged_weight_is_seen_and_that_of_an_optimizer_where_it_is_read(path, read):
    write_checkpoint(trained(), path)
    flip_a_byte_of(path, trained()["optimizer_states"][0]["state"][0]["exp_avg"])
    if read is read_checkpoint:
        with pytest.raises(CheckpointError, match="wrong checksum"):
            read(path)
    else:
        assert torch.equal(read(path)["state_dict"]["weight"], torch.arange(1000.0))
    flip_a_byte_of(path, trained()["state_dict"]["weight"])
    with pytest.raises(
        CheckpointError, match=r"last\.ckpt cannot be read: .*checksum of (.*data/\d|state_dict\.weight)"
    ):
        read(path)


def test_damage_of_what_is_no_tensor_is_seen(path):
    write_checkpoint(trained(), path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"pytorch-lightning_version", b"pytorch-lightning_versioN", 1))
    with pytest.raises(CheckpointError, match="wrong checksum of .*data.pkl"):
        read_without_optimizers(path)


@pytest.mark.skipif(not Path("/proc/self/io").is_file(), reason="the system does not count")
def test_nothing_is_read_twice(path):
    """Counted by the system: bytes that this process asked for; what it maps is not among them, and it is read once."""

    def asked_for() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    weight = torch.arange(2.0**20)
    write_checkpoint({**CHECKPOINT, "state_dict": {"weight": weight}}, path)
    before = asked_for()
    assert torch.equal(read_without_optimizers(path)["state_dict"]["weight"], weight)
    assert asked_for() - before < path.stat().st_size / 4


@pytest.mark.parametrize("content", [b"text\n", b"PK\x03\x04" + bytes(100), b"\x80\x04\x95" + bytes(50)])
@pytest.mark.parametrize("read", READERS)
def test_another_kind_of_file_is_refused(path, content, read):
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.ckpt cannot be read"):
        read(path)


@pytest.mark.parametrize("foreign", [{"state_dict": {}}, [1, 2], torch.zeros(3)])
@pytest.mark.parametrize("read", READERS)
def test_a_file_of_another_program_is_refused(path, foreign, read):
    torch.save(foreign, path)
    with pytest.raises(CheckpointError, match=r"last\.ckpt was not written by a run of this project"):
        read(path)


class Harmful:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("read", READERS)
def test_nothing_is_executed(path, capsys, read):
    torch.save({**CHECKPOINT, "harm": Harmful()}, path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(path)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("read", READERS)
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(CheckpointError, match=r"none\.ckpt: no such file"):
        read(tmp_path / "none.ckpt")


def test_what_the_system_does_not_let_us_read_is_one_line(path):
    """Permission is refused to all but root; this is refused to root as well."""
    with pytest.raises(
        CheckpointError, match=r"last\.ckpt/inner\.ckpt cannot be read: Not a directory; mend that"
    ) as caught:
        read_checkpoint(path / "inner.ckpt")
    assert "\n" not in str(caught.value)
