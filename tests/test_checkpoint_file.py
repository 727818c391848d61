from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_rarlhf.checkpoint_file import CheckpointError, read_checkpoint, write_checkpoint
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


@pytest.mark.parametrize("content", [b"text\n", b"PK\x03\x04" + bytes(100), b"\x80\x04\x95" + bytes(50)])
def test_another_kind_of_file_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.ckpt cannot be read"):
        read_checkpoint(path)


@pytest.mark.parametrize("foreign", [{"state_dict": {}}, [1, 2], torch.zeros(3)])
def test_a_file_of_another_program_is_refused(path, foreign):
    torch.save(foreign, path)
    with pytest.raises(CheckpointError, match=r"last\.ckpt was not written by a run of this project"):
        read_checkpoint(path)


class Harmful:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_is_executed(path, capsys):
    torch.save({**CHECKPOINT, "harm": Harmful()}, path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(path)
    assert "executed" not in capsys.readouterr().out


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.ckpt: no such file"):
        read_checkpoint(tmp_path / "none.ckpt")


def test_what_the_system_does_not_let_us_read_is_one_line(path):
    """Permission is refused to all but root; this is refused to root as well."""
    with pytest.raises(
        CheckpointError, match=r"last\.ckpt/inner\.ckpt cannot be read: Not a directory; mend that"
    ) as caught:
        read_checkpoint(path / "inner.ckpt")
    assert "\n" not in str(caught.value)
