from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datamodules import TextFileDataModule
from lightning_rarlhf.errors import DataError
from tests.datamodules.data_files import Row, text, write_csv, write_jsonl, write_parquet
from tests.tiny_models import save_policy


def module(tokenizer: str, **options: Any) -> TextFileDataModule:
    return TextFileDataModule(**{"tokenizer": tokenizer, "batch_size": 4, "val_size": 4} | options)


def rows(count: int, start: int = 0) -> list[Row]:
    return [{"body": text(start + n, 30), "kind": "pos" if n % 3 else "neg", "points": n / 4} for n in range(count)]


def prompts(loader: Any) -> list[str]:
    return [prompt for batch in loader for prompt in batch.prompts]


def test_single_file_with_everything_named(tmp_path: Path, tokenizer_folder: str) -> None:
    data = module(
        tokenizer_folder,
        path=str(write_csv(tmp_path / "mine.csv", rows(60))),
        text_column="body",
        label_column="kind",
        wanted_label="pos",
        score_column="points",
        test_fraction=0.25,
        prompt_tokens=20,
    )
    data.setup("fit")
    data.setup("test")
    identity = data.identity()
    assert identity["rows"] == {"train": 41, "val": 4, "test": 15}
    assert identity["name"] == "mine"
    assert identity["source"] == "mine.csv"
    for batch in data.test_dataloader():
        for prompt, label, score in zip(
            batch.prompts, batch.labels.tolist(), batch.source_scores.tolist(), strict=True
        ):
            number = int(prompt.split(":")[0].removeprefix("row "))
            assert label == int(number % 3 > 0)
            assert score == number / 4


def test_a_link_into_the_hub_clients_cache_is_called_by_its_own_name(tmp_path: Path, tokenizer_folder: str) -> None:
    write_csv(tmp_path / ("0" * 40), rows(20))
    (tmp_path / "mine.csv").symlink_to(tmp_path / ("0" * 40))
    data = module(tokenizer_folder, path=str(tmp_path / "mine.csv"), text_column="body")
    data.setup("fit")
    assert (data.identity()["source"], data.identity()["name"]) == ("mine.csv", "mine")


def test_text_alone(tmp_path: Path, tokenizer_folder: str) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", [{"text": row["body"]} for row in rows(30)])
    data = module(tokenizer_folder, path=str(path))
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.labels.tolist() == [-1] * 4
    assert batch.source_scores.isnan().all()
    assert data.identity()["classes"]["train"] == {"unknown": 20}


def test_whole_text_is_the_prompt_up_to_a_limit(tmp_path: Path, tokenizer_folder: str) -> None:
    path = str(write_parquet(tmp_path / "mine.parquet", [{"text": text(n, 400 if n % 2 else 5)} for n in range(12)]))
    data = module(tokenizer_folder, path=path, max_prompt_tokens=50)
    data.setup("predict")
    lengths = [length for batch in data.predict_dataloader() for length in batch.attention_mask.sum(dim=1).tolist()]
    assert set(lengths[1::2]) == {50}
    assert prompts(data.predict_dataloader())[0] == text(0, 5)
    assert module(tokenizer_folder, path=path, prompt_tokens=70, max_prompt_tokens=50).prompt_tokens == 50
    assert module(tokenizer_folder, path=path, prompt_tokens=7).prompt_tokens == 7


@pytest.mark.parametrize("name", ["train.csv", "only.csv"])
def test_folder_with_one_file(tmp_path: Path, tokenizer_folder: str, name: str) -> None:
    write_csv(tmp_path / name, rows(40))
    data = module(tokenizer_folder, path=str(tmp_path), text_column="body")
    (tmp_path / "notes.txt").write_text("no prompts")
    data.setup("fit")
    assert data.identity()["rows"] == {"train": 28, "val": 4, "test": 8}


def test_plain_text(tmp_path: Path, tokenizer_folder: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("\n\n".join(row["body"] for row in rows(40)))
    data = module(tokenizer_folder, path=str(path))
    data.setup("fit")
    assert data.identity()["rows"] == {"train": 28, "val": 4, "test": 8}


def test_folder_with_a_file_per_split(tmp_path: Path, tokenizer_folder: str) -> None:
    write_csv(tmp_path / "learn.csv", rows(20))
    write_jsonl(tmp_path / "validation.jsonl", rows(10, start=100))
    write_parquet(tmp_path / "test.parquet", rows(10, start=200))
    data = module(tokenizer_folder, path=str(tmp_path), text_column="body", train_split="learn")
    data.setup()
    assert data.identity()["rows"] == {"train": 20, "val": 4, "test": 10}
    assert all(prompt.startswith("row 10") for prompt in prompts(data.val_dataloader()))
    assert all(prompt.startswith("row 20") for prompt in prompts(data.test_dataloader()))


def test_predictions_are_all_rows_in_the_files_order(tmp_path: Path, tokenizer_folder: str) -> None:
    lines = rows(20)
    lines[3]["body"] = ""
    lines[5]["body"] = "short"
    path = write_csv(tmp_path / "mine.csv", lines)
    data = module(tokenizer_folder, path=str(path), text_column="body", min_characters=10, test_size=2)
    data.setup("predict")
    batches = list(data.predict_dataloader())
    numbers = [number for batch in batches for number in batch.index.tolist()]
    assert numbers == [number for number in range(20) if number != 3]  # the file's numbers; only the blank row is out
    assert [prompt == lines[number]["body"] for number, prompt in zip(numbers, prompts(batches), strict=True)]
    assert prompts(batches)[4] == "short"
    assert data.identity()["sha256"].keys() == {"predict"}


def test_predictions_come_from_the_test_split_where_there_is_one(tmp_path: Path, tokenizer_folder: str) -> None:
    write_csv(tmp_path / "train.csv", rows(20))
    write_csv(tmp_path / "test.csv", rows(6, start=50))
    data = module(tokenizer_folder, path=str(tmp_path), text_column="body")
    data.setup("predict")
    assert [prompt.split(":")[0] for prompt in prompts(data.predict_dataloader())] == [
        f"row {n}" for n in range(50, 56)
    ]


def test_a_file_that_is_all_test(tmp_path: Path, tokenizer_folder: str) -> None:
    path = str(write_csv(tmp_path / "mine.csv", rows(9)))
    data = module(tokenizer_folder, path=path, text_column="body", test_fraction=1.0)
    data.setup("test")
    assert len(prompts(data.test_dataloader())) == 9
    with pytest.raises(DataError, match="mine.csv: no train rows; give data that has some"):
        data.setup("fit")


def test_nested_columns(tmp_path: Path, tokenizer_folder: str) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", [{"prompt": {"text": text(n), "ok": n % 2 == 0}} for n in range(20)])
    data = module(
        tokenizer_folder, path=str(path), text_column="prompt.text", label_column="prompt.ok", wanted_label=True
    )
    data.setup("fit")
    assert data.identity()["classes"]["train"] == {"wanted": 6, "unwanted": 6}


def test_mixed_values_in_json(tmp_path: Path, tokenizer_folder: str) -> None:
    lines = [{"text": text(n), "label": value} for n, value in enumerate([1, "1", 1.0, "no", None, 0] * 5)]
    data = module(
        tokenizer_folder,
        path=str(write_jsonl(tmp_path / "mine.jsonl", lines)),
        label_column="label",
        wanted_label=1,
        val_size=0,
        test_fraction=0,
    )
    data.setup("fit")
    assert data.identity()["classes"]["train"] == {"wanted": 15, "unwanted": 10, "unknown": 5}


def test_fine_tuning_on_unlabelled_texts(tmp_path: Path, tokenizer_folder: str) -> None:
    path = str(write_csv(tmp_path / "mine.csv", rows(20)))
    data = module(tokenizer_folder, path=path, text_column="body", purpose="sft", sft_class="all")
    data.setup("fit")
    assert next(iter(data.train_dataloader())).input_ids.shape[0] == 4


def test_hub_dataset(tmp_path: Path, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from datamodules.sources import read_file

    path = write_csv(tmp_path / "mine.csv", rows(20))
    asked = []

    def read(repo_id: str, revision: str | None, name: str | None) -> Any:
        asked.append((repo_id, revision, name))
        return {"train": read_file(path), "extra": read_file(path)}

    monkeypatch.setattr("datamodules.split_sources.read_hub", read)
    data = module(tokenizer_folder, hub_id="own/er", hub_config="en", revision="v2", text_column="body")
    data.setup("fit")
    assert asked == [("own/er", "v2", "en")]
    assert data.identity()["source"] == "own/er"
    assert data.identity()["rows"]["test"] == 4
    with pytest.raises(DataError, match=r"own/er: .*expected 'learn' or 'test' .*found train, extra"):
        module(tokenizer_folder, hub_id="own/er", train_split="learn").setup("fit")


def test_the_label_column_is_read_once_before_rows_are_made(
    tmp_path: Path, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the never-labelled mark and for the wanted label alike."""
    from datasets import Dataset

    path = write_csv(tmp_path / "mine.csv", rows(20))
    readings, iterate = [], Dataset.iter

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        readings.append(self.column_names)
        return iterate(self, *args, **options)

    monkeypatch.setattr(Dataset, "iter", counted)
    data = module(tokenizer_folder, path=str(path), text_column="body", label_column="kind", wanted_label="pos")
    data.setup()  # everything, prediction included
    assert readings.count(["kind"]) == 1


# bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one"),
        ({"path": "a", "hub_id": "b/c"}, "give one"),
        ({"path": "a.csv", "label_column": "kind"}, "label_column and wanted_label go together"),
        ({"path": "a.csv", "wanted_label": "pos"}, "label_column and wanted_label go together"),
        ({"path": "a.csv", "train_wanted_fraction": 0.5}, "no label_column is named"),
        ({"path": "a.csv", "purpose": "sft"}, "no label_column is named.*--data.sft_class all"),
        ({"path": "nowhere/a.csv"}, "nowhere/a.csv: no such file"),
        ({"hub_id": "own/er"}, "own/er"),
    ],
)
def test_arguments_that_make_no_sense(tokenizer_folder: str, options: dict[str, Any], message: str) -> None:
    for stage in ("fit", "predict"):
        with pytest.raises(DataError, match=message):
            module(tokenizer_folder, **options).setup(stage)


def test_wanted_label_that_never_occurs(tmp_path: Path, tokenizer_folder: str) -> None:
    data = module(
        tokenizer_folder,
        path=str(write_csv(tmp_path / "mine.csv", rows(20))),
        text_column="body",
        label_column="kind",
        wanted_label="positive",
    )
    with pytest.raises(DataError, match=r"no row has kind = 'positive' \(wanted_label\); values found: neg, pos"):
        data.setup("fit")


def test_a_text_column_named_as_the_label_column_makes_a_short_error(tmp_path: Path, tokenizer_folder: str) -> None:
    long = [row | {"body": f"{row['body']} {'and so on ' * 50}"} for row in rows(20)]
    path = str(write_csv(tmp_path / "mine.csv", long))
    data = module(tokenizer_folder, path=path, text_column="body", label_column="body", wanted_label="pos")
    with pytest.raises(DataError, match=r"no row has body = 'pos'") as error:
        data.setup("fit")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("column", ["text_column", "label_column", "score_column"])
def test_column_that_is_not_there(tmp_path: Path, tokenizer_folder: str, column: str) -> None:
    columns = {"text_column": "body", "label_column": "kind", "wanted_label": "pos", "score_column": "points"}
    data = module(tokenizer_folder, path=str(write_csv(tmp_path / "a.csv", rows(9))), **columns | {column: "gone"})
    with pytest.raises(
        DataError, match=f"no column 'gone'; columns found: body, kind, points; name yours: --data.{column} "
    ):
        data.setup("fit")


@pytest.mark.parametrize(("names", "found"), [([], "no data file"), (["a.csv", "b.csv"], "a.csv, b.csv")])
def test_folder_without_splits(tmp_path: Path, tokenizer_folder: str, names: list[str], found: str) -> None:
    for name in names:
        write_csv(tmp_path / name, rows(3))
    with pytest.raises(DataError, match=rf"expected 'train' or 'test' \(train_split, test_split\), found {found}"):
        module(tokenizer_folder, path=str(tmp_path)).setup("fit")


@pytest.mark.parametrize(("count", "told"), [(3, True), (4, False), (9, False)])
def test_validation_data_of_fewer_rows_than_asked_for_are_told(
    tmp_path: Path, tokenizer_folder: str, caplog: pytest.LogCaptureFixture, count: int, told: bool
) -> None:
    for split, number in (("train", 20), ("test", 5), ("validation", count)):
        write_csv(tmp_path / f"{split}.csv", rows(number))
    data = module(tokenizer_folder, path=str(tmp_path), text_column="body", val_split="validation")
    with caplog.at_level("INFO"):
        data.setup("fit")
    assert len(prompts(data.val_dataloader())) == min(count, 4)
    assert ("3 validation rows, fewer than val_size=4" in caplog.text) == told


def test_words_that_the_tokenizer_does_not_know_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_policy(tmp_path / "words", "gpt2")
    texts = ["the film was good", "the zebra was zesty", "warm food", "zebra", "a cold film", "rude zebra"]
    (tmp_path / "prompts.txt").write_text("\n".join(texts))
    data = TextFileDataModule(tokenizer=str(tmp_path / "words"), path=str(tmp_path / "prompts.txt"), prompt_tokens=8)
    with caplog.at_level("INFO"):
        data.setup("predict")
    assert "prompts.txt (predict): 3 of 6 texts hold words that the tokenizer" in caplog.text
    assert "does not know; the policy reads each as <unk>" in caplog.text
