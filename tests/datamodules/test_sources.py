from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodules import sources
from datamodules.sources import find_file, read_file, read_hub, read_hub_file
from lightning_rarlhf.errors import DataError
from tests.datamodules.data_files import write_csv, write_jsonl, write_parquet

ROWS = [{"text": "one", "label": 1}, {"text": "two, too\nmore", "label": 0}]


def write_json(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.csv", write_csv), ("a.jsonl", write_jsonl), ("a.json", write_json), ("a.parquet", write_parquet)],
)
def test_formats_by_ending(tmp_path: Path, name: str, write: Callable[..., Path]) -> None:
    rows = read_file(write(tmp_path / name, ROWS))
    assert rows["text"][:] == ["one", "two, too\nmore"]
    assert [int(label) for label in rows["label"]] == [1, 0]


def test_tabs(tmp_path: Path) -> None:
    path = tmp_path / "a.TSV"
    path.write_text("text\tlabel\nhi, you\t1\n")
    assert read_file(path)[0] == {"text": "hi, you", "label": "1"}


def test_csv_columns_are_taken_as_written(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\nNone,1\nNA,\n007,2\n1e5,3\n")
    rows = read_file(path)
    assert rows["text"][:] == ["None", "NA", "007", "1e5"]
    assert rows["label"][:] == ["1", None, "2", "3"]


def test_csv_column_that_changes_its_looks_late(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "1,1\n" * 10_500 + "words,pos\n")
    assert read_file(path)[-1] == {"text": "words", "label": "pos"}


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_unusual_texts_arrive_whole(tmp_path: Path, name: str) -> None:
    texts = ["a\x00b", "😀 👩‍👩‍👧", "مرحبا بالعالم", "x " * 500_000, 'quote " and , comma', "line\u2028break"]
    write = {"a.csv": write_csv, "a.jsonl": write_jsonl, "a.parquet": write_parquet}[name]
    assert read_file(write(tmp_path / name, [{"text": text} for text in texts]))["text"][:] == texts


def test_missing_and_empty_values_in_json(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": None}, {"text": ""}, {"other": 1}])
    assert read_file(path)["text"][:] == [None, "", None]


def test_columns_that_look_like_a_chat_log_are_only_columns(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"type": "user", "message": {"a": "x"}}])
    assert set(read_file(path).column_names) == {"type", "message"}


@pytest.mark.parametrize("name", ["b[1] *.csv", "ü.csv", ".hidden.csv"])
def test_unusual_names(tmp_path: Path, name: str) -> None:
    assert len(read_file(write_csv(tmp_path / name, ROWS))) == 2


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    import os

    path = write_csv(tmp_path / "a.csv", ROWS)
    read_file(path)
    write_csv(path, [{"text": "new", "label": 1}])
    os.utime(path, (1, 1))
    assert read_file(path)["text"][:] == ["new"]


# bad input: one line each


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b"text,label\n", "no rows; expected at least one"),
        ("a.jsonl", b"\n\n", "no rows; expected at least one"),
        ("a.csv", "text\ncafé\n".encode("latin-1"), "cannot be read .*UnicodeDecodeError.*UTF-8"),
        ("a.csv", b"text,label\na,1\nb,2,3,4\n", "cannot be read .*Expected 2 fields in line 3"),
        ("a.csv", b"text,label\na,1,2\nb,1,2\n", "cannot be read .*does not match length of data"),
        ("a.csv", b'text\n"never closed\n', "cannot be read .*EOF inside string"),
        ("a.parquet", b"PAR1 but not really", "cannot be read .*[Pp]arquet"),
        (
            "a.jsonl",
            b'{"text": "a"}\n\n{"text": }\n',
            "line 3: is not JSON .Expecting value at its character 10.; expected one object in braces on each line",
        ),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', "line 2: is not a JSON object; expected one object in braces"),
        ("a.json", b"no json at all", "cannot be read .*JSON"),
        ("a.docx", b"hello", "unknown kind of data; expected a file that ends in .csv"),
        ("a.txt", "hello".encode("utf-16-le"), "zero bytes, as UTF-16 has, expected text in UTF-8"),
        ("a.txt", "caf\xe9".encode("latin-1"), "cannot be read .*UnicodeDecodeError.*UTF-8"),
    ],
)
def test_unreadable_files(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        read_file(path)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(str(path))
    assert capfd.readouterr().err == ""  # nothing of the loader's own log beside our line


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder; check --data.path"):
        read_file(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_each_line_of_a_text_file_is_a_text(tmp_path: Path, line_end: str) -> None:
    texts = ["one", "", 'two, "too"', "line\u2028break, \x0cpage", "مرحبا 👩‍👩‍👧", "x " * 50_000]
    path = tmp_path / "a.txt"
    path.write_bytes(line_end.join(texts).encode("utf-8-sig"))
    assert read_file(path)["text"][:] == texts


def test_a_table_comes_before_notes_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a log")
    found = find_file(tmp_path, "train")
    assert found == tmp_path / "train.txt"
    write_csv(tmp_path / "train.csv", ROWS)
    assert find_file(tmp_path, "train") == tmp_path / "train.csv"


def test_two_files_for_one_split(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ROWS)
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(DataError, match=r"several files could be 'train' \(train.csv, train.jsonl\)"):
        find_file(tmp_path, "train")


# the hub


def test_hub_out_of_reach() -> None:
    for read in (lambda: read_hub("nobody/nothing", None), lambda: read_hub_file("nobody/nothing", "a.csv", None)):
        with pytest.raises(DataError, match="nobody/nothing.*--data.path"):
            read()


def test_hub_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset, DatasetDict

    asked: list[Any] = []
    monkeypatch.setattr("lightning_rarlhf.loading.hub.require_reachable_dataset", lambda *args: asked.append(args))
    loaded = DatasetDict({"train": Dataset.from_dict({"text": ["a"]}), "test": Dataset.from_dict({"text": ["b"]})})
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: asked.append((args, options)) or loaded)
    assert {split: rows["text"][:] for split, rows in read_hub("own/er", "v1", "sub").items()} == {
        "train": ["a"],
        "test": ["b"],
    }
    assert asked == [("own/er", "v1"), (("own/er", "sub"), {"revision": "v1"})]


def test_hub_dataset_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("Dataset scripts are no longer supported,\nbut found x.py")

    monkeypatch.setattr("lightning_rarlhf.loading.hub.require_reachable_dataset", lambda *args: None)
    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(DataError, match="own/er: cannot be read .*no longer supported, but found x.py.*--data.path"):
        read_hub("own/er", None)


def test_hub_file_in_the_local_cache_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout of the hub client's cache, as it is after one download."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo, commit = tmp_path / "datasets--own--er", "0" * 40
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    write_csv(snapshot / "train.csv", ROWS)
    assert len(read_hub_file("own/er", "train.csv", None)) == 2
    with pytest.raises(DataError, match="own/er"):
        read_hub_file("own/er", "test.csv", None)


def test_log_level_of_datasets_is_left_as_it_was(tmp_path: Path) -> None:
    import datasets

    before = datasets.logging.get_verbosity()
    read_file(write_csv(tmp_path / "a.csv", ROWS))
    assert datasets.logging.get_verbosity() == before
    assert sources.is_table(tmp_path / "a.csv")
