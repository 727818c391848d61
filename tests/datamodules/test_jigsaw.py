from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datamodules import JigsawDataModule
from lightning_rarlhf.errors import DataError
from tests.datamodules.data_files import Row, jigsaw_rows, write_csv


def folder(path: Path, *, train: list[Row], test: list[Row]) -> str:
    write_csv(path / "train.csv", train)
    write_csv(path / "test.csv", test)
    return str(path)


def module(path: str, tokenizer: str, **options: Any) -> JigsawDataModule:
    return JigsawDataModule(**{"path": path, "tokenizer": tokenizer, "batch_size": 4, "val_size": 0} | options)


def identity_of(data: JigsawDataModule, stage: str = "fit") -> dict[str, Any]:
    data.setup(stage)
    return data.identity()


def test_method_settings() -> None:
    data = JigsawDataModule()
    assert data.prompt_tokens == 8
    assert data.train_quota.wanted_fraction == 0.7
    assert data.test_quota.wanted_fraction == 0.5


def test_ratios(tmp_path: Path, tokenizer_folder: str) -> None:
    path = folder(tmp_path, train=jigsaw_rows(60, 12), test=jigsaw_rows(30, 5, start=100))
    classes = identity_of(module(path, tokenizer_folder))["classes"]
    assert classes["train"] == {"wanted": 28, "unwanted": 12}
    assert classes["test"] == {"wanted": 5, "unwanted": 5}


def test_non_toxic_can_be_the_scarce_class(tmp_path: Path, tokenizer_folder: str) -> None:
    path = folder(tmp_path, train=jigsaw_rows(14, 40), test=jigsaw_rows(4, 9, start=100))
    classes = identity_of(module(path, tokenizer_folder))["classes"]
    assert classes["train"] == {"wanted": 14, "unwanted": 6}
    assert classes["test"] == {"wanted": 4, "unwanted": 4}


def test_comments_of_more_than_64_characters(tmp_path: Path, tokenizer_folder: str) -> None:
    edge = [{"id": "x", "comment_text": "c" * size, "toxic": 1} for size in (64, 65)]
    path = folder(tmp_path, train=jigsaw_rows(30, 3) + edge, test=jigsaw_rows(5, 5))
    assert identity_of(module(path, tokenizer_folder))["classes"]["train"] == {"wanted": 9, "unwanted": 4}


def test_stored_logits_travel_as_source_scores(tmp_path: Path, tokenizer_folder: str) -> None:
    rows = [row | {"toxic_bert_logit": -1.5 if row["toxic"] == 0 else 2.25} for row in jigsaw_rows(20, 6)]
    data = module(folder(tmp_path, train=rows, test=rows), tokenizer_folder)
    data.setup("fit")
    for batch in data.train_dataloader():
        assert batch.input_ids.shape == (4, 8)
        assert batch.source_scores.tolist() == [2.25 if label == 0 else -1.5 for label in batch.labels.tolist()]


def kaggle(path: Path) -> str:
    """Kaggle's own layout: test.csv without labels, test_labels.csv in another order, unlabelled rows marked -1."""
    test = jigsaw_rows(8, 6, start=200) + jigsaw_rows(0, 5, start=300)
    labels = [
        {"id": row["id"], "toxic": -1 if number >= 14 else row["toxic"], "threat": 0} for number, row in enumerate(test)
    ]
    folder(
        path, train=jigsaw_rows(30, 9), test=[{"id": row["id"], "comment_text": row["comment_text"]} for row in test]
    )
    write_csv(path / "test_labels.csv", labels[::-1])
    return str(path)


def test_kaggle_layout(tmp_path: Path, tokenizer_folder: str) -> None:
    data = module(kaggle(tmp_path), tokenizer_folder, prompt_tokens=30)
    assert identity_of(data, "test")["classes"]["test"] == {"wanted": 6, "unwanted": 6}
    for batch in data.test_dataloader():
        for prompt, label in zip(batch.prompts, batch.labels.tolist(), strict=True):
            number = int(prompt.split(":")[0].removeprefix("row "))
            assert number < 300
            assert label == int(number < 208)


def test_ids_that_look_like_numbers_join(tmp_path: Path, tokenizer_folder: str) -> None:
    test = [row | {"id": f"000{number}e5"} for number, row in enumerate(jigsaw_rows(3, 3))]
    folder(tmp_path, train=jigsaw_rows(30, 9), test=[{"id": r["id"], "comment_text": r["comment_text"]} for r in test])
    write_csv(tmp_path / "test_labels.csv", [{"id": row["id"], "toxic": row["toxic"]} for row in test])
    assert identity_of(module(str(tmp_path), tokenizer_folder), "test")["rows"]["test"] == 6


def test_kaggle_layout_without_the_labels(tmp_path: Path, tokenizer_folder: str) -> None:
    (Path(kaggle(tmp_path)) / "test_labels.csv").unlink()
    with pytest.raises(DataError, match=r"\(test\): no column 'toxic'; columns found: id, comment_text"):
        module(str(tmp_path), tokenizer_folder).setup("test")


def test_labels_that_cannot_be_joined(tmp_path: Path, tokenizer_folder: str) -> None:
    kaggle(tmp_path)
    write_csv(tmp_path / "test_labels.csv", [{"number": 1, "toxic": 0}])
    with pytest.raises(DataError, match="test_labels.csv: cannot be joined with test.csv, no column 'id'"):
        module(str(tmp_path), tokenizer_folder).setup("test")


def test_columns_of_the_hub_copy(tmp_path: Path, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from datamodules.sources import read_file

    rows = [{"id": r["id"], "comment_text": r["comment_text"], "label": r["toxic"]} for r in jigsaw_rows(30, 9)]
    folder(tmp_path, train=rows[:20], test=rows)
    write_csv(tmp_path / "validation.csv", rows[20:])
    asked = []

    def read(repo_id: str, filename: str, revision: str | None) -> Any:
        asked.append((repo_id, filename, revision))
        return read_file(tmp_path / filename)

    monkeypatch.setattr("datamodules.jigsaw.read_hub_file", read)
    data = JigsawDataModule(tokenizer=tokenizer_folder, batch_size=4, val_size=0)
    assert identity_of(data)["classes"]["train"] == {"wanted": 21, "unwanted": 9}
    assert asked == [("OxAISH-AL-LLM/wiki_toxic", name, None) for name in ("train.csv", "validation.csv", "test.csv")]


def test_class_missing_for_the_ratio(tmp_path: Path, tokenizer_folder: str) -> None:
    path = folder(tmp_path, train=jigsaw_rows(30, 0), test=jigsaw_rows(5, 5))
    with pytest.raises(DataError, match="train: .*none of its 30 rows is of the unwanted class.*train_wanted_fraction"):
        module(path, tokenizer_folder).setup("fit")


def test_missing_text_column(tmp_path: Path, tokenizer_folder: str) -> None:
    path = folder(tmp_path, train=[{"body": "x", "toxic": 1}], test=jigsaw_rows(5, 5))
    with pytest.raises(DataError, match="no column 'comment_text'; columns found: body, toxic"):
        module(path, tokenizer_folder).setup("fit")


def test_missing_file(tmp_path: Path, tokenizer_folder: str) -> None:
    write_csv(tmp_path / "train.csv", jigsaw_rows(5, 5))
    with pytest.raises(DataError, match="got 'train', expected 'train' and 'test'"):
        module(str(tmp_path), tokenizer_folder).setup("fit")
