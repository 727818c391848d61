from __future__ import annotations

from pathlib import Path

import pytest

from datamodules import LabelledTextDataModule, PreferenceDataModule, TextFileDataModule
from tests.datamodules.data_files import text, write_csv

SAID = "texts are training texts, too"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr("datamodules.overlap.rank_zero_info", lines.append)
    return lines


def folder(root: Path, train: list[dict[str, object]], test: list[dict[str, object]]) -> str:
    write_csv(root / "train.csv", train)
    write_csv(root / "test.csv", test)
    return str(root)


def numbered(*numbers: int) -> list[dict[str, object]]:
    return [{"text": text(number, 30)} for number in numbers]


def test_prompts_that_are_also_trained_on_are_counted(tmp_path: Path, tokenizer_folder: str, told: list[str]) -> None:
    path = folder(tmp_path, numbered(*range(20)), numbered(3, 7, *range(100, 108)))
    data = TextFileDataModule(path=path, tokenizer=tokenizer_folder, val_size=0, batch_size=4)
    data.setup("fit")
    assert told == []
    data.setup("test")
    data.setup("test")
    assert told == [f"{data.source}: 2 of 10 test {SAID}; what is measured on these says nothing of new texts"]
    assert data.identity()["rows"]["test"] == 10  # as it was published


def test_a_validation_text_that_stands_twice_in_the_file_is_counted(
    tmp_path: Path, tokenizer_folder: str, told: list[str]
) -> None:
    path = folder(tmp_path, numbered(*range(10), *range(10)), numbered(50))
    data = TextFileDataModule(path=path, tokenizer=tokenizer_folder, val_size=6, batch_size=4)
    data.setup("fit")
    chosen = {split: [row["text"] for row in data._rows_of(split)[0]] for split in ("train", "val")}
    seen = sum(each in chosen["train"] for each in chosen["val"])
    assert seen > 0
    assert [line.partition(": ")[2].partition(" val")[0] for line in told] == [f"{seen} of 6"]


def test_distinct_texts_are_not_worth_a_line(tmp_path: Path, tokenizer_folder: str, told: list[str]) -> None:
    path = folder(tmp_path, numbered(*range(20)), numbered(*range(100, 108)))
    data = TextFileDataModule(path=path, tokenizer=tokenizer_folder, val_size=4, batch_size=4)
    data.setup()
    assert told == []


def test_labelled_texts_are_compared_by_their_text(tmp_path: Path, tokenizer_folder: str, told: list[str]) -> None:
    """Not by their label: a text that was labelled otherwise is no new text."""
    train = [{"comment": text(n, 20), "toxic": n % 2} for n in range(20)]
    test = [{"comment": text(n, 20), "toxic": 1 - n % 2} for n in (4, 5, 6, 30, 31)]
    data = LabelledTextDataModule(
        path=folder(tmp_path, train, test), text_column="comment", label_columns=["toxic"], tokenizer=tokenizer_folder
    )
    data.setup("test")
    assert [line.partition(": ")[2].partition(" test")[0] for line in told] == ["3 of 5"]


def test_pairs_are_compared_as_pairs(tmp_path: Path, tokenizer_folder: str, told: list[str]) -> None:
    train = [{"chosen": text(n, 20), "rejected": text(n + 1, 20)} for n in range(20)]
    test = [{"chosen": text(n, 20), "rejected": text(n + step, 20)} for n, step in ((2, 1), (2, 3), (3, -1))]
    data = PreferenceDataModule(path=folder(tmp_path, train, test), tokenizer=tokenizer_folder)
    data.setup("test")
    assert [line.partition(": ")[2].partition(" test")[0] for line in told] == ["1 of 3"]
