"""Test labels in a file of their own, as Kaggle gives them, for a reward model's data."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from datamodules import LabelledTextDataModule
from lightning_rarlhf.errors import DataError
from tests.datamodules.data_files import Row, text, write_csv

ROOT = Path(__file__).parents[2]
KINDS = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]


def kaggle(folder: Path) -> None:
    """Kaggle's three files: test comments without labels; test_labels.csv in another order, -1 = never labelled."""

    def comments(start: int, count: int) -> list[Row]:
        return [{"id": f"{start + n:08x}", "comment_text": text(start + n)} for n in range(count)]

    def labels(n: int) -> Row:
        return {name: (n + place) % 2 for place, name in enumerate(KINDS)}

    write_csv(folder / "train.csv", [row | labels(n) for n, row in enumerate(comments(0, 40))])
    test = comments(100, 30)
    write_csv(folder / "test.csv", test)
    known = [{"id": row["id"]} | labels(n) for n, row in enumerate(test[:12])]
    never = [{"id": row["id"]} | dict.fromkeys(KINDS, -1) for row in test[12:20]]  # the last ten have no row at all
    write_csv(folder / "test_labels.csv", [*known, *never][::-1])


def module(folder: Path, tokenizer: str) -> LabelledTextDataModule:
    options = yaml.safe_load((ROOT / "configs" / "reward" / "jigsaw.yaml").read_text())["data"]["init_args"]
    return LabelledTextDataModule(**options | {"path": str(folder), "tokenizer": tokenizer, "batch_size": 4})


def test_the_shipped_configuration_takes_kaggles_files(tmp_path: Path, tokenizer_folder: str) -> None:
    kaggle(tmp_path)
    data = module(tmp_path, tokenizer_folder)
    data.setup()
    assert data.identity()["rows"] == {"train": 36, "val": 4, "test": 12}
    seen = {}
    for batch in data.test_dataloader():
        decoded = data._load_tokenizer().batch_decode(batch.input_ids, skip_special_tokens=True)
        seen |= {
            int(words.split(":")[0].removeprefix("row ")): row
            for words, row in zip(decoded, batch.labels.tolist(), strict=True)
        }
    assert seen == {100 + n: [(n + place) % 2 for place in range(6)] for n in range(12)}


def test_labels_of_the_wrong_columns_are_refused(tmp_path: Path, tokenizer_folder: str) -> None:
    kaggle(tmp_path)
    write_csv(tmp_path / "test_labels.csv", [{"id": "00000064", "toxic": 1}])
    with pytest.raises(DataError, match=r"test_labels\.csv: cannot be joined with .* 'test', no column 'severe_toxic'"):
        module(tmp_path, tokenizer_folder).setup("test")


def test_without_the_labels_the_missing_column_is_named(tmp_path: Path, tokenizer_folder: str) -> None:
    kaggle(tmp_path)
    (tmp_path / "test_labels.csv").unlink()
    with pytest.raises(DataError, match=r"\(test\): no column 'toxic'; columns found: id, comment_text"):
        module(tmp_path, tokenizer_folder).setup("test")
