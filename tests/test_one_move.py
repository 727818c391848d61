from __future__ import annotations

import errno
import os

import pytest

from lightning_rarlhf import one_move
from lightning_rarlhf.errors import ModelError, WriteError
from lightning_rarlhf.one_move import folder_in_one_move, in_one_move, or_say_why, recover_folder


def test_the_new_file_takes_the_place_of_the_old(tmp_path):
    path = tmp_path / "new" / "file.txt"
    for text in ("one", "two"):
        with in_one_move(path) as partial:
            partial.write_text(text)
        assert path.read_text() == text
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), in_one_move(path) as partial:  # noqa: PT012 - the body is the case
        partial.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_a_folder_in_the_way_leaves_no_partial_file(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="out"), in_one_move(tmp_path / "out") as partial:
        partial.write_text("text")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("faster", [False, True])
def test_a_folder_is_put_back_by_one_of_several_processes(tmp_path, monkeypatch, faster):
    (tmp_path / "last.ckpt.replaced").mkdir()
    (tmp_path / "last.ckpt.replaced" / "meta.pt").write_text("state")
    rename = os.rename

    def other_process_first(source, target):
        if faster:
            rename(source, target)
        rename(source, target)

    monkeypatch.setattr(one_move.os, "rename", other_process_first)
    recover_folder(tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt" / "meta.pt").read_text() == "state"
    recover_folder(tmp_path / "last.ckpt")
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_folder_that_is_gone_altogether_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "last.ckpt.replaced").mkdir()
    monkeypatch.setattr(one_move.os, "rename", lambda source, target: os.rmdir(source) or os.stat(source))
    with pytest.raises(FileNotFoundError):
        recover_folder(tmp_path / "last.ckpt")


@pytest.mark.parametrize("killed_at", [1, 2])
def test_an_interrupt_while_a_folder_moves_in_leaves_the_old_one(tmp_path, monkeypatch, killed_at):
    """Ctrl-C at either rename; the second time, an undisturbed one, the new folder is there alone."""
    path = tmp_path / "out"
    path.mkdir()
    (path / "old.txt").touch()
    rename, calls = os.rename, []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), folder_in_one_move(path) as partial:
        (partial / "new.txt").touch()
    assert [entry.relative_to(tmp_path).as_posix() for entry in tmp_path.rglob("*")] == ["out", "out/old.txt"]
    with folder_in_one_move(path) as partial:
        (partial / "new.txt").touch()
    assert [entry.relative_to(tmp_path).as_posix() for entry in tmp_path.rglob("*")] == ["out", "out/new.txt"]


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), WriteError, r"it could not be written \(No space left on"),
        # how tokenizers says it
        (
            Exception("File too large (os error 27)"),
            WriteError,
            r"written \(File too large \(os error 27\)\); nothing was",
        ),
        (ModelError("the copy scores differently"), ModelError, "^the copy scores differently$"),
        (ZeroDivisionError("a fault of the code"), ZeroDivisionError, "a fault of the code"),
    ],
)
def test_what_the_system_refused_is_said_in_a_line_and_other_errors_go_on(tmp_path, error, raised, said):
    with (
        pytest.raises(raised, match=said) as caught,
        or_say_why(tmp_path / "out"),
        folder_in_one_move(tmp_path / "out"),
    ):
        raise error
    assert (caught.value.__cause__ is error) == (raised is WriteError)
    assert list(tmp_path.iterdir()) == []
