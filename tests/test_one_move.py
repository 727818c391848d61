from __future__ import annotations

import pytest

from lightning_rarlhf.one_move import in_one_move


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
