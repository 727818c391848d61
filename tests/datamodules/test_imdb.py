from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datamodules import IMDBDataModule
from lightning_rarlhf.errors import DataError
from tests.datamodules.data_files import imdb_rows, write_parquet


def folder(path: Path, *, train: list[dict[str, Any]], test: list[dict[str, Any]]) -> str:
    write_parquet(path / "train.parquet", train)
    write_parquet(path / "test.parquet", test)
    return str(path)


def module(path: str, tokenizer: str, **options: Any) -> IMDBDataModule:
    return IMDBDataModule(**{"path": path, "tokenizer": tokenizer, "batch_size": 4, "val_size": 6} | options)


def test_method_settings() -> None:
    data = IMDBDataModule()
    assert data.prompt_tokens == 64
    assert data.test_quota.size == 5000
    assert data.train_quota.wanted_fraction is None
    assert data.test_quota.wanted_fraction is None
    assert data.hub_id == "stanfordnlp/imdb"


def test_reviews_of_more_than_200_characters(tmp_path: Path, tokenizer_folder: str) -> None:
    edge = [{"text": "a" * 200, "label": 1}, {"text": "b" * 201, "label": 1}]
    data = module(
        folder(tmp_path, train=imdb_rows(10, 12) + edge, test=imdb_rows(9, 9, start=100)), tokenizer_folder, test_size=8
    )
    data.setup("fit")
    identity = data.identity()
    assert identity["rows"] == {"train": 23, "val": 6, "test": 8}
    assert identity["classes"]["train"] == {"wanted": 11, "unwanted": 12}
    assert identity["classes"]["val"] == {"wanted": 3, "unwanted": 3}


def test_labels_and_prompts(tmp_path: Path, tokenizer_folder: str) -> None:
    path = folder(tmp_path, train=imdb_rows(8, 8, characters=600), test=imdb_rows(9, 9, start=100))
    data = module(path, tokenizer_folder)
    data.setup("fit")
    for batch in data.train_dataloader():
        assert batch.input_ids.shape == (4, 64)
        assert batch.attention_mask.all()
        assert batch.source_scores.isnan().all()
        for prompt, label in zip(batch.prompts, batch.labels.tolist(), strict=True):
            number = int(prompt.split(":")[0].removeprefix("row "))
            assert label == int(number >= 8)  # the file lists its negative reviews first


def test_rows_without_label_are_left_out(tmp_path: Path, tokenizer_folder: str) -> None:
    unlabelled = [{"text": "u" * 300, "label": -1}]  # as in the hub's `unsupervised` split
    data = module(
        folder(tmp_path, train=imdb_rows(8, 8) + unlabelled, test=imdb_rows(9, 9)), tokenizer_folder, val_size=0
    )
    data.setup("fit")
    assert data.identity()["rows"]["train"] == 16


def test_reviews_that_are_all_too_short(tmp_path: Path, tokenizer_folder: str) -> None:
    data = module(folder(tmp_path, train=imdb_rows(5, 5, characters=20), test=imdb_rows(5, 5)), tokenizer_folder)
    with pytest.raises(
        DataError, match=r"\(train\): no row left of 10 after the filter 'text of more than 200 characters'"
    ):
        data.setup("fit")


def test_hub(tmp_path: Path, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from datamodules.sources import read_file

    local = Path(folder(tmp_path, train=imdb_rows(8, 8), test=imdb_rows(9, 9)))
    asked: list[tuple[str, str | None]] = []

    def read(repo_id: str, revision: str | None, name: str | None) -> Any:
        asked.append((repo_id, revision))
        splits = {split: read_file(local / f"{split}.parquet") for split in ("train", "test")}
        return {**splits, "unsupervised": splits["train"]}

    monkeypatch.setattr("datamodules.split_sources.read_hub", read)
    data = IMDBDataModule(tokenizer=tokenizer_folder, batch_size=4, val_size=2, revision="abc")
    data.setup("test")
    assert asked == [("stanfordnlp/imdb", "abc")]
    assert data.identity()["rows"]["test"] == 18
    assert data.identity()["source"] == "stanfordnlp/imdb"


def test_hub_out_of_reach() -> None:
    with pytest.raises(DataError, match="stanfordnlp/imdb.*--data.path"):
        IMDBDataModule().setup("fit")
