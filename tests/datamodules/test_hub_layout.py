"""A local folder as the hub or `datasets` writes it is read like the hub's dataset, by every data module."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodules import (
    IMDBDataModule,
    JigsawDataModule,
    LabelledTextDataModule,
    PreferenceDataModule,
    RealToxicityPromptsDataModule,
    TextFileDataModule,
)
from datamodules.sources import read_hub_folder
from lightning_rarlhf.errors import DataError
from tests.datamodules.data_files import (
    Row,
    imdb_rows,
    jigsaw_rows,
    text,
    toxicity_rows,
    write_csv,
    write_jsonl,
    write_parquet,
)

Tables = dict[str, list[Row]]


def pairs(count: int, other: int = 0, *, start: int = 0) -> list[Row]:
    return [{"chosen": text(start + n), "rejected": f"not {text(start + n)}"} for n in range(count + other)]


MODULES: dict[str, tuple[type[Any], Callable[..., list[Row]]]] = {
    "imdb": (IMDBDataModule, imdb_rows),
    "jigsaw": (JigsawDataModule, jigsaw_rows),
    "real_toxicity_prompts": (RealToxicityPromptsDataModule, toxicity_rows),
    "text": (TextFileDataModule, imdb_rows),
    "labelled": (LabelledTextDataModule, imdb_rows),
    "preferences": (PreferenceDataModule, pairs),
}


def tables(kind: str) -> Tables:
    make = MODULES[kind][1]
    return {"train": make(30, 20), "test": make(6, 6, start=1000)}


def module(kind: str, path: Path, tokenizer: str, **options: Any) -> Any:
    return MODULES[kind][0](path=str(path), tokenizer=tokenizer, batch_size=4, **options)


def parts(rows: list[Row], count: int) -> list[list[Row]]:
    size = -(-len(rows) // count)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def shards(folder: Path, data: Tables, count: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in data.items():
        for number, part in enumerate(parts(rows, count)):
            write_parquet(folder / f"{split}-{number:05d}-of-{count:05d}.parquet", part)


def as_hub(folder: Path, data: Tables) -> None:
    shards(folder / "data", data)
    (folder / "README.md").write_text("# A data set\n")


def as_shards_alone(folder: Path, data: Tables) -> None:
    shards(folder, data)


def as_converted(folder: Path, data: Tables) -> None:
    """The hub's own conversion to parquet."""
    for split, rows in data.items():
        (folder / "default" / split).mkdir(parents=True)
        write_parquet(folder / "default" / split / "0000.parquet", rows)


def as_card(folder: Path, data: Tables) -> None:
    """Files of any names, which the card lists."""
    names = {"train": "learn_v2", "test": "hold_out"}
    for split, rows in data.items():
        write_parquet(folder / f"{names[split]}.parquet", rows)
    files = "".join(f"  - split: {split}\n    path: {names[split]}.parquet\n" for split in data)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n# Mine\n")


def as_snapshot(folder: Path, data: Tables) -> None:
    """The hub client's cache: links to files that are called by their hash."""
    blobs = folder.parent / "blobs"
    shards(blobs, data)
    (folder / "data").mkdir()
    for number, shard in enumerate(sorted(blobs.iterdir())):
        blob = shard.rename(blobs / f"{number:040x}")
        (folder / "data" / shard.name).symlink_to(os.path.relpath(blob, folder / "data"))


def as_saved(folder: Path, data: Tables) -> None:
    from datasets import Dataset, DatasetDict

    DatasetDict({split: Dataset.from_list(rows) for split, rows in data.items()}).save_to_disk(str(folder))


LAYOUTS = (as_hub, as_shards_alone, as_converted, as_card, as_snapshot, as_saved)


def texts_of(data: Any) -> dict[str, list[str]]:
    """What is read of each split, before it is tokenized."""
    data.setup()
    if isinstance(data, LabelledTextDataModule | PreferenceDataModule):
        return {split: sorted(map(str, rows.to_list())) for split, rows in data._rows.items()}
    pool = data._selected()
    return {split: pool.rows.select(getattr(pool.selection, split))["text"][:] for split in ("train", "val", "test")}


def plain(folder: Path, data: Tables) -> Path:
    folder.mkdir()
    for split, rows in data.items():
        write_parquet(folder / f"{split}.parquet", rows)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["jigsaw", "labelled"])
def test_each_layout_gives_the_rows_of_plain_files(
    tmp_path: Path, tokenizer_folder: str, kind: str, layout: Callable[[Path, Tables], None]
) -> None:
    data = tables(kind)
    expected = texts_of(module(kind, plain(tmp_path / "plain", data), tokenizer_folder, **small(kind)))
    folder = tmp_path / "copied"
    folder.mkdir()
    layout(folder, data)
    assert texts_of(module(kind, folder, tokenizer_folder, **small(kind))) == expected


@pytest.mark.parametrize("kind", MODULES)
def test_every_module_reads_shards(tmp_path: Path, tokenizer_folder: str, kind: str) -> None:
    data = tables(kind)
    expected = texts_of(module(kind, plain(tmp_path / "plain", data), tokenizer_folder, **small(kind)))
    as_hub(tmp_path / "copied", data)
    assert texts_of(module(kind, tmp_path / "copied", tokenizer_folder, **small(kind))) == expected


def small(kind: str) -> dict[str, Any]:
    return {} if kind in ("labelled", "preferences") else {"val_size": 4}


@pytest.mark.parametrize(
    ("kind", "ending"),
    [("imdb", "csv"), ("imdb", "jsonl"), ("jigsaw", "jsonl"), ("real_toxicity_prompts", "parquet")],
)
def test_plain_files_of_any_kind(tmp_path: Path, tokenizer_folder: str, kind: str, ending: str) -> None:
    write: dict[str, Callable[[Path, list[Row]], Path]] = {
        "csv": write_csv,
        "jsonl": write_jsonl,
        "parquet": write_parquet,
    }
    for split, rows in tables(kind).items():
        write[ending](tmp_path / f"{split}.{ending}", rows)
    options = {} if kind == "imdb" else {"train_wanted_fraction": None}
    read = texts_of(module(kind, tmp_path, tokenizer_folder, val_size=0, **options))
    assert {split: len(texts) for split, texts in read.items()} == {"train": 50, "val": 0, "test": 12}


def test_a_copy_of_the_hubs_jigsaw_trains_on_what_it_keeps_as_validation(tmp_path: Path, tokenizer_folder: str) -> None:
    """The hub's dataset is read so; a local copy must give the same rows."""
    for split, start in (("train", 0), ("validation", 500), ("test", 1000)):
        rows = jigsaw_rows(12, 6, start=start)
        write_csv(tmp_path / f"{split}.csv", [{**row, "label": row.pop("toxic")} for row in rows])
    read = texts_of(module("jigsaw", tmp_path, tokenizer_folder, val_size=0, train_wanted_fraction=None))
    assert len(read["train"]) == 36
    assert len(read["test"]) == 12


def test_a_published_single_file_beside_its_old_index(tmp_path: Path, tokenizer_folder: str) -> None:
    write_jsonl(tmp_path / "prompts.jsonl", toxicity_rows(40, 20))
    (tmp_path / "dataset_infos.json").write_text("{}")
    read = texts_of(module("real_toxicity_prompts", tmp_path, tokenizer_folder, val_size=0))
    assert len(read["test"]) == 8


def test_shards_beside_a_whole_file_are_not_passed_over(tmp_path: Path, tokenizer_folder: str) -> None:
    data = tables("text")
    shards(tmp_path, {"train": data["train"]})
    write_parquet(tmp_path / "test.parquet", data["test"])
    read = texts_of(module("text", tmp_path, tokenizer_folder, val_size=0))
    assert (len(read["train"]), len(read["test"])) == (50, 12)


def test_a_saved_table_without_splits_is_divided(tmp_path: Path, tokenizer_folder: str) -> None:
    from datasets import Dataset

    Dataset.from_list(imdb_rows(30, 20)).save_to_disk(str(tmp_path / "saved"))
    read = texts_of(module("text", tmp_path / "saved", tokenizer_folder, val_size=0))
    assert (len(read["train"]), len(read["test"])) == (40, 10)


def test_what_was_computed_beside_a_saved_table_is_not_read_and_nothing_is_added(
    tmp_path: Path, tokenizer_folder: str
) -> None:
    from datasets import load_from_disk

    as_saved(tmp_path / "saved", tables("text"))
    load_from_disk(str(tmp_path / "saved"))["train"].map(lambda row: {"text": row["text"] + "!"})
    before = sorted(tmp_path.rglob("*"))
    assert any(path.name.startswith("cache-") for path in before)
    read = texts_of(module("text", tmp_path / "saved", tokenizer_folder, val_size=0))
    assert len(read["train"]) == 50
    assert sorted(tmp_path.rglob("*")) == before


def test_configurations_are_named(tmp_path: Path, tokenizer_folder: str) -> None:
    for name, start in (("en", 0), ("fr", 500)):
        (tmp_path / name).mkdir()
        write_parquet(tmp_path / name / "train.parquet", imdb_rows(20, 20, start=start))
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/train.parquet\n" for name in ("en", "fr"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    read = texts_of(module("text", tmp_path, tokenizer_folder, val_size=0, hub_config="fr"))
    assert len(read["train"]) == 32
    assert all(row.startswith(("row 5", "row 53")) for row in read["train"])
    with pytest.raises(DataError, match=r"cannot be read .*'en', 'fr'.*name one .hub_config."):
        module("text", tmp_path, tokenizer_folder).setup("fit")


def test_another_folder_of_the_same_name_and_card_is_no_cache_hit(tmp_path: Path, tokenizer_folder: str) -> None:
    """`datasets` names its cache of a folder with a card after the card and the folder's last name."""
    read = []
    for start in (0, 500):
        folder = tmp_path / str(start) / "data"
        folder.mkdir(parents=True)
        as_card(folder, {"train": imdb_rows(20, 20, start=start), "test": imdb_rows(5, 5, start=start + 900)})
        read.append(texts_of(module("text", folder, tokenizer_folder, val_size=0)))
    assert not set(read[0]["train"]) & set(read[1]["train"])
    write_parquet(tmp_path / "500" / "data" / "learn_v2.parquet", imdb_rows(10, 10, start=700))
    changed = texts_of(module("text", tmp_path / "500" / "data", tokenizer_folder, val_size=0))
    assert len(changed["train"]) == 20


def test_the_cards_types_are_taken(tmp_path: Path) -> None:
    """As on the hub; guessed, the texts would be numbers."""
    write_csv(tmp_path / "mine.csv", [{"text": f"00{n}", "label": n % 2} for n in range(20)])
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: mine.csv\ndataset_info:\n  features:\n"
        "  - name: text\n    dtype: string\n  - name: label\n    dtype: string\n---\n"
    )
    assert read_hub_folder(tmp_path)["train"][1] == {"text": "001", "label": "1"}


# bad input


def test_a_split_that_lacks_a_part_is_refused(tmp_path: Path, tokenizer_folder: str) -> None:
    as_hub(tmp_path / "half", tables("text"))
    (tmp_path / "half" / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(
        DataError, match=r"half \(train\): train-00001-of-00002\.parquet is missing, expected 2 such files; copy"
    ):
        module("text", tmp_path / "half", tokenizer_folder).setup("fit")


def test_a_configuration_of_plain_files_is_refused(tmp_path: Path, tokenizer_folder: str) -> None:
    write_csv(tmp_path / "mine.csv", imdb_rows(10, 10))
    for path in (tmp_path, tmp_path / "mine.csv"):
        with pytest.raises(DataError, match="plain files have no configuration, got data.hub_config 'en'; leave it"):
            module("text", path, tokenizer_folder, hub_config="en").setup("fit")


def test_files_in_folders_below_are_not_collected(tmp_path: Path, tokenizer_folder: str) -> None:
    """`datasets` alone would take every file below for training rows."""
    (tmp_path / "notes" / "old").mkdir(parents=True)
    for name in ("notes/a.csv", "notes/old/b.csv"):
        write_csv(tmp_path / name, imdb_rows(10, 10))
    with pytest.raises(DataError, match=r"expected 'train' or 'test' \(train_split, test_split\), found notes"):
        module("text", tmp_path, tokenizer_folder).setup("fit")


def test_a_single_file_stays_alone_whatever_lies_in_folders_below(tmp_path: Path, tokenizer_folder: str) -> None:
    (tmp_path / "runs" / "train").mkdir(parents=True)
    write_jsonl(tmp_path / "runs" / "train" / "metrics.json", [{"text": "no prompt"}])
    write_csv(tmp_path / "prompts.csv", imdb_rows(10, 10))
    read = texts_of(module("text", tmp_path, tokenizer_folder, val_size=0))
    assert (len(read["train"]), len(read["test"])) == (16, 4)


def test_a_path_that_would_be_a_pattern_is_refused(tmp_path: Path, tokenizer_folder: str) -> None:
    as_hub(tmp_path / "data [1]", tables("text"))
    with pytest.raises(DataError, match=r"data \[1\]: `datasets` takes .* for patterns; rename it"):
        module("text", tmp_path / "data [1]", tokenizer_folder).setup("fit")


@pytest.mark.parametrize("kind", ["imdb", "jigsaw"])
def test_a_published_split_must_be_whole(tmp_path: Path, tokenizer_folder: str, kind: str) -> None:
    as_hub(tmp_path / "half", {"train": tables(kind)["train"]})
    with pytest.raises(DataError, match="half: got 'train', expected 'train' and 'test': .*a folder that has both"):
        module(kind, tmp_path / "half", tokenizer_folder).setup("fit")
    single = write_parquet(tmp_path / "one.parquet", tables(kind)["train"])
    with pytest.raises(DataError, match=r"one\.parquet: got one file, expected 'train' and 'test'"):
        module(kind, single, tokenizer_folder).setup("fit")


@pytest.mark.parametrize("kind", ["imdb", "text", "labelled"])
def test_an_empty_path(tokenizer_folder: str, kind: str) -> None:
    with pytest.raises(DataError, match=r"data\.path is empty; expected a file or a folder"):
        MODULES[kind][0](path=" ", tokenizer=tokenizer_folder).setup("fit")


@pytest.mark.parametrize("damage", ["shard", "state", "missing shard", "card"])
def test_damaged_copies_are_told_in_one_line(tmp_path: Path, tokenizer_folder: str, damage: str) -> None:
    folder = tmp_path / "mine"
    if damage in ("shard", "card"):
        as_hub(folder, tables("text"))
        if damage == "shard":
            (folder / "data" / "train-00001-of-00002.parquet").write_bytes(b"PAR1 but not really")
        else:
            (folder / "README.md").write_text("---\nconfigs:\n- data_files: lost/train-*\n  config_name: a\n---\n")
    else:
        folder.mkdir()
        as_saved(folder, tables("text"))
        if damage == "state":
            (folder / "train" / "state.json").write_text("{}")
        else:
            next((folder / "train").glob("*.arrow")).unlink()
    with pytest.raises(DataError, match=r"mine: cannot be read .*; copy the dataset's folder whole") as raised:
        module("text", folder, tokenizer_folder).setup("fit")
    assert "\n" not in str(raised.value)
