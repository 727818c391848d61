"""The texts whose perplexity a test measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules import IMDBDataModule, JigsawDataModule, RealToxicityPromptsDataModule, TextFileDataModule
from tests.datamodules.data_files import (
    imdb_rows,
    jigsaw_rows,
    toxicity_rows,
    write_csv,
    write_jsonl,
    write_parquet,
)


def test_limits_are_the_papers() -> None:
    limits = [m.human_text_characters for m in (IMDBDataModule, RealToxicityPromptsDataModule, JigsawDataModule)]
    assert limits == [1000, 1000, 500]


def test_wanted_test_texts_cut_at_the_limit(tokenizer_folder: str, tmp_path: Path) -> None:
    for split, count, start in (("train", 60, 0), ("test", 10, 1000)):
        write_csv(tmp_path / f"{split}.csv", jigsaw_rows(count, count, characters=700, start=start))
    wanted = {row["comment_text"][:500] for row in jigsaw_rows(10, 10, characters=700, start=1000) if row["toxic"] == 0}
    data = JigsawDataModule(path=str(tmp_path), tokenizer=tokenizer_folder, batch_size=8, val_size=6)
    data.setup("test")
    texts = data.human_texts()
    assert set(texts) == wanted
    assert len(texts) == 10
    assert {len(text) for text in texts} == {500}


def test_reviews_are_whole_up_to_a_thousand_characters(tokenizer_folder: str, tmp_path: Path) -> None:
    for split, start in (("train", 0), ("test", 1000)):
        rows = imdb_rows(20, 20, characters=300, start=start) + imdb_rows(1, 0, characters=2000, start=start + 500)
        write_parquet(tmp_path / f"{split}.parquet", rows)
    data = IMDBDataModule(path=str(tmp_path), tokenizer=tokenizer_folder, batch_size=8, val_size=6, prompt_tokens=4)
    data.setup("test")
    lengths = sorted(map(len, data.human_texts()))
    assert len(lengths) == 21
    assert lengths[-1] == 1000
    assert 300 <= lengths[0] <= lengths[-2] < 400


def test_toxicity_prompts_are_the_prompts(tokenizer_folder: str, tmp_path: Path) -> None:
    for split, start in (("train", 0), ("test", 1000)):
        write_jsonl(tmp_path / f"{split}.jsonl", toxicity_rows(30, 30, start=start))
    data = RealToxicityPromptsDataModule(path=str(tmp_path), tokenizer=tokenizer_folder, batch_size=8, val_size=6)
    data.setup("test")
    expected = {row["prompt"]["text"] for row in toxicity_rows(30, 0, start=1000)}
    assert set(data.human_texts()) == expected


@pytest.mark.parametrize(("label", "count"), [({}, 8), ({"label_column": "fine", "wanted_label": 1}, 5)])
def test_all_texts_where_classes_are_unknown(
    tokenizer_folder: str, tmp_path: Path, label: dict[str, str], count: int
) -> None:
    rows = [{"text": f"text number {n}", "fine": int(n < 5)} for n in range(8)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    data = TextFileDataModule(
        path=str(path), tokenizer=tokenizer_folder, test_fraction=1, val_size=0, eval_batch_size=4, **label
    )
    data.setup("test")
    assert len(data.human_texts()) == count
