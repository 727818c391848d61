"""Test labels in a file of their own, as Kaggle gives them, for a reward model's data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from datamodules import JigsawDataModule, LabelledTextDataModule, TextFileDataModule
from lightning_rarlhf.errors import DataError
from tests.datamodules.data_files import Row, jigsaw_rows, text, write_csv, write_jsonl, write_parquet

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


def module(folder: Path, tokenizer: str, **changed: Any) -> LabelledTextDataModule:
    options = yaml.safe_load((ROOT / "configs" / "reward" / "jigsaw.yaml").read_text())["data"]["init_args"]
    return LabelledTextDataModule(**options | {"path": str(folder), "tokenizer": tokenizer, "batch_size": 4} | changed)


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
    with pytest.raises(DataError, match=r"test_labels\.csv: cannot be joined with test\.csv, no column 'severe_toxic'"):
        module(tmp_path, tokenizer_folder).setup("test")


def test_without_the_labels_the_missing_column_is_named(tmp_path: Path, tokenizer_folder: str) -> None:
    kaggle(tmp_path)
    (tmp_path / "test_labels.csv").unlink()
    with pytest.raises(DataError, match=r"\(test\): no column 'toxic'; columns found: id, comment_text"):
        module(tmp_path, tokenizer_folder).setup("test")


def seen_labels(data: LabelledTextDataModule) -> dict[int, list[float]]:
    """Labels by the number that a text names, of all three splits."""
    data.setup()
    seen: dict[int, list[float]] = {}
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            texts = data._load_tokenizer().batch_decode(batch.input_ids, skip_special_tokens=True)
            numbers = [int(words.split(":")[0].removeprefix("row ")) for words in texts]
            seen |= dict(zip(numbers, batch.labels.tolist(), strict=True))
    return seen


def labelled(tokenizer: str, path: Path, **options: Any) -> LabelledTextDataModule:
    return LabelledTextDataModule(
        path=str(path), tokenizer=tokenizer, batch_size=1, label_columns=["toxic"], val_fraction=0.2, **options
    )


def test_text_and_label_columns_the_wrong_way_round(tmp_path: Path, tokenizer_folder: str) -> None:
    path = write_csv(
        tmp_path / "mine.csv", [{"text": f"{text(n)} {'and so on ' * 50}", "toxic": n % 2} for n in range(40)]
    )
    data = LabelledTextDataModule(
        path=str(path), tokenizer=tokenizer_folder, text_column="toxic", label_columns=["text"]
    )
    with pytest.raises(
        DataError, match=r"no text with a known label in text; .* name other data\.label_columns"
    ) as error:
        data.setup("fit")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("name", ["train", "comments"])
@pytest.mark.parametrize("whole_folder", [True, False])
def test_labels_beside_a_single_file_are_joined(
    tmp_path: Path, tokenizer_folder: str, name: str, whole_folder: bool
) -> None:
    texts = write_csv(tmp_path / f"{name}.csv", [{"id": f"{n:04x}", "text": text(n)} for n in range(40)])
    write_csv(tmp_path / f"{name}_labels.csv", [{"id": f"{n:04x}", "toxic": n % 2} for n in range(40)][::-1])
    seen = seen_labels(labelled(tokenizer_folder, tmp_path if whole_folder else texts))
    assert seen == {n: [n % 2] for n in range(40)}


def test_ids_of_unlike_kinds_of_file_are_joined(tmp_path: Path, tokenizer_folder: str) -> None:
    """A CSV file's ids are text, a JSON file's may be numbers, and pandas makes them floats where one is missing."""
    write_csv(tmp_path / "train.csv", [{"id": n, "text": text(n)} for n in range(40)])
    write_jsonl(tmp_path / "train_labels.jsonl", [{"id": n, "toxic": n % 2} for n in range(40)])
    write_jsonl(tmp_path / "test.jsonl", [{"id": n, "text": text(n)} for n in range(100, 110)])
    write_parquet(
        tmp_path / "test_labels.parquet",
        [{"id": float(n), "toxic": n % 2} for n in range(100, 110)] + [{"id": None, "toxic": 1}],
    )
    seen = seen_labels(labelled(tokenizer_folder, tmp_path))
    assert seen == {n: [n % 2] for n in (*range(40), *range(100, 110))}


def test_hexadecimal_ids_are_no_numbers(tmp_path: Path, tokenizer_folder: str) -> None:
    """1e2 and 100, or 00e1 and 0000, are two comments of Kaggle's."""
    ids = ["1e2", "100", "00e1", "0000", *(f"{n:04x}" for n in range(10, 30))]
    write_csv(tmp_path / "train.csv", [{"id": name, "text": text(n)} for n, name in enumerate(ids)])
    write_csv(tmp_path / "train_labels.csv", [{"id": name, "toxic": n % 2} for n, name in enumerate(ids)])
    assert seen_labels(labelled(tokenizer_folder, tmp_path)) == {n: [n % 2] for n in range(len(ids))}


def test_labels_of_other_texts_are_refused(tmp_path: Path, tokenizer_folder: str) -> None:
    write_csv(tmp_path / "train.csv", [{"id": f"{n:04x}", "text": text(n)} for n in range(40)])
    write_csv(tmp_path / "train_labels.csv", [{"id": f"x{n}", "toxic": n % 2} for n in range(40)])
    with pytest.raises(DataError, match=r"train_labels\.csv: .*none of its ids \('x0', .*is one of the texts' \('0000"):
        labelled(tokenizer_folder, tmp_path).setup()


def test_an_id_with_two_unlike_labels_is_refused(tmp_path: Path, tokenizer_folder: str) -> None:
    write_csv(tmp_path / "train.csv", [{"id": n, "text": text(n)} for n in range(40)])
    rows = [{"id": n, "toxic": n % 2} for n in range(40)]
    write_csv(tmp_path / "train_labels.csv", [*rows, {"id": 7, "toxic": 1}])
    assert len(seen_labels(labelled(tokenizer_folder, tmp_path))) == 40  # said twice, and the same
    write_csv(tmp_path / "train_labels.csv", [*rows, {"id": 7, "toxic": 0}])
    with pytest.raises(DataError, match="it has id '7' twice, with unlike labels"):
        labelled(tokenizer_folder, tmp_path).setup()


@pytest.mark.parametrize("rule", [{"positive_label": 1}, {"threshold": 0.5}])
def test_kaggles_mark_of_no_label_is_not_taken_for_no(
    tmp_path: Path, tokenizer_folder: str, rule: dict[str, float]
) -> None:
    kaggle(tmp_path)
    with pytest.raises(DataError, match=r"\(test\): toxic has -1 beside other values.*set data\.unknown_labels to \["):
        module(tmp_path, tokenizer_folder, **rule).setup()
    told = module(tmp_path, tokenizer_folder, **rule, unknown_labels=[-1])
    told.setup()
    assert told.identity()["rows"] == {"train": 36, "val": 4, "test": 12}
    as_label = module(tmp_path, tokenizer_folder, **rule, unknown_labels=[])
    as_label.setup()
    assert as_label.identity()["rows"]["test"] == 20


@pytest.mark.parametrize(
    ("values", "rule"),
    [((-1, 1), {"positive_label": 1}), ((-2, -1, 0, 3), {"threshold": 0.0}), ((-1, 0, 1), {})],
    ids=["the only no", "one of many negative scores", "0 and 1 alone are labels"],
)
def test_minus_one_that_can_mean_one_thing_only_is_taken_for_it(
    tmp_path: Path, tokenizer_folder: str, values: tuple[int, ...], rule: dict[str, float]
) -> None:
    rows = [{"text": text(n), "toxic": values[n % len(values)]} for n in range(60)]
    seen = seen_labels(labelled(tokenizer_folder, write_jsonl(tmp_path / "train.jsonl", rows), **rule))
    known = {n: row["toxic"] for n, row in enumerate(rows) if rule or row["toxic"] >= 0}
    assert seen == {n: [float(value > 0)] for n, value in known.items()}


@pytest.mark.parametrize("beside", ["csv", "jsonl"])
def test_labels_of_a_part_of_the_texts_are_counted(
    tmp_path: Path, tokenizer_folder: str, caplog: pytest.LogCaptureFixture, beside: str
) -> None:
    """A half-written file of labels must not pass for the publisher's test set."""
    comments = jigsaw_rows(40, 20)
    write_csv(tmp_path / "train.csv", comments)
    write_csv(tmp_path / "test.csv", [{"id": row["id"], "comment_text": row["comment_text"]} for row in comments])
    labels = [{"id": row["id"], "toxic": row["toxic"]} for row in comments[30:50]]
    {"csv": write_csv, "jsonl": write_jsonl}[beside](tmp_path / f"test_labels.{beside}", labels)
    options: dict[str, Any] = {"path": str(tmp_path), "tokenizer": tokenizer_folder, "batch_size": 4}
    prompts = {"text_column": "comment_text", "label_column": "toxic", "wanted_label": 0, "val_size": 0}
    said = rf"test_labels\.{beside}: has the labels of 20 of the 60 texts; the others have none"
    for data, kept, left_out in (
        (JigsawDataModule(**options, val_size=0), 20, r"\(test\): left out of 60 rows: 40 without a known class"),
        (
            LabelledTextDataModule(**options, text_column="comment_text", label_columns=["toxic"]),
            20,
            r"\(test\): left out of 60 rows: 40 without a known label",
        ),
        (TextFileDataModule(**options, **prompts), 60, None),
    ):
        caplog.clear()
        with caplog.at_level("INFO"):
            data.prepare_data()
            data.setup("test")
        assert data.identity()["rows"]["test"] == kept
        assert len(re.findall(said, caplog.text)) == 1
        assert re.search(left_out, caplog.text) if left_out else "left out" not in caplog.text


def test_whole_labels_need_no_word(tmp_path: Path, tokenizer_folder: str, caplog: pytest.LogCaptureFixture) -> None:
    write_csv(tmp_path / "train.csv", [{"id": f"{n:04x}", "text": text(n)} for n in range(40)])
    write_csv(tmp_path / "train_labels.csv", [{"id": f"{n:04x}", "toxic": n % 2} for n in range(44)])
    with caplog.at_level("INFO"):
        labelled(tokenizer_folder, tmp_path).setup()
    assert "train" not in caplog.text


def test_a_text_without_an_id_has_no_labels(tmp_path: Path, tokenizer_folder: str) -> None:
    rows: list[Row] = [{"id": n, "text": text(n)} for n in range(40)]
    write_jsonl(tmp_path / "train.jsonl", [{"id": None, "text": text(99)}, *rows])
    named: list[Row] = [{"id": "None", "toxic": 1}, *({"id": n, "toxic": n % 2} for n in range(40))]
    write_csv(tmp_path / "train_labels.csv", named)
    assert seen_labels(labelled(tokenizer_folder, tmp_path)).keys() == set(range(40))


def test_prompts_take_their_class_from_the_labels_beside(tmp_path: Path, tokenizer_folder: str) -> None:
    kaggle(tmp_path)
    options: dict[str, Any] = {
        "path": str(tmp_path),
        "tokenizer": tokenizer_folder,
        "text_column": "comment_text",
        "label_column": "toxic",
        "wanted_label": 0,
        "val_size": 0,
        "batch_size": 4,
    }
    for stage in ("test", "predict"):
        with pytest.raises(DataError, match=r"\(test\): toxic has -1 beside other values"):
            TextFileDataModule(**options).setup(stage)
    told = TextFileDataModule(**options, unknown_labels=[-1])
    told.setup("test")
    assert told.identity()["classes"]["test"] == {"wanted": 6, "unwanted": 6, "unknown": 18}


def test_files_that_are_still_packed_are_named(tmp_path: Path, tokenizer_folder: str) -> None:
    """As they come from Kaggle."""
    for name in ("train", "test", "test_labels"):
        (tmp_path / f"{name}.csv.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"expected 'train' or 'test' .*found test\.csv\.zip, .*, train\.csv\.zip"):
        module(tmp_path, tokenizer_folder).setup()
