from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datamodules import RealToxicityPromptsDataModule
from lightning_rarlhf.data_types import TextBatch
from lightning_rarlhf.errors import DataError
from tests.datamodules.data_files import toxicity_rows, write_jsonl


def module(path: Path, tokenizer: str, **options: Any) -> RealToxicityPromptsDataModule:
    settings = {"path": str(path), "tokenizer": tokenizer, "batch_size": 4, "val_size": 0}
    return RealToxicityPromptsDataModule(**settings | options)


def identity_of(data: RealToxicityPromptsDataModule, stage: str = "fit") -> dict[str, Any]:
    data.setup(stage)
    return data.identity()


def test_method_settings() -> None:
    data = RealToxicityPromptsDataModule()
    assert data.prompt_tokens == 32
    assert data.train_quota.wanted_fraction == 0.7
    assert data.test_quota.wanted_fraction == 0.5
    assert data.test_fraction == 0.2
    assert data.min_characters == 0


@pytest.mark.parametrize("as_folder", [True, False])
def test_single_file_is_split_by_class(tmp_path: Path, tokenizer_folder: str, as_folder: bool) -> None:
    path = write_jsonl(tmp_path / "prompts.jsonl", toxicity_rows(100, 21))
    identity = identity_of(module(tmp_path if as_folder else path, tokenizer_folder))
    assert identity["classes"]["train"] == {"wanted": 37, "unwanted": 16}  # ⌊.8·21⌋ = 16, ⌊16·7/3⌋ = 37
    assert identity["classes"]["test"] == {"wanted": 5, "unwanted": 5}


def test_local_split_is_kept(tmp_path: Path, tokenizer_folder: str) -> None:
    write_jsonl(tmp_path / "train.jsonl", toxicity_rows(40, 9))
    write_jsonl(tmp_path / "test.jsonl", toxicity_rows(40, 7, start=1000))
    data = module(tmp_path, tokenizer_folder)
    assert identity_of(data, "test")["classes"]["test"] == {"wanted": 7, "unwanted": 7}
    assert all(prompt.startswith("row 10") for batch in data.test_dataloader() for prompt in batch.prompts)


def test_rows_without_a_score_are_left_out_and_the_threshold_is_not_toxic(
    tmp_path: Path, tokenizer_folder: str
) -> None:
    rows = toxicity_rows(10, 10)
    rows[0]["prompt"]["toxicity"] = None
    rows[1]["prompt"]["toxicity"] = 0.5
    path = write_jsonl(tmp_path / "prompts.jsonl", rows)
    data = module(path, tokenizer_folder, train_wanted_fraction=None, test_wanted_fraction=None)
    classes = identity_of(data)["classes"]
    assert classes["train"] == {"wanted": 7, "unwanted": 8}
    assert classes["test"] == {"wanted": 2, "unwanted": 2}


def test_prompts_are_ragged_and_carry_their_score(tmp_path: Path, tokenizer_folder: str) -> None:
    path = write_jsonl(tmp_path / "prompts.jsonl", toxicity_rows(60, 20))
    data = module(path, tokenizer_folder)
    data.setup("fit")
    lengths = set()
    for batch in data.train_dataloader():
        lengths |= set(batch.attention_mask.sum(dim=1).tolist())
        assert batch.input_ids.shape[1] == batch.attention_mask.sum(dim=1).max()
        assert batch.attention_mask[:, -1].all()  # padded on the left
        assert batch.source_scores.tolist() == [0.125 if label else 0.75 for label in batch.labels.tolist()]
        assert all("never used" not in prompt for prompt in batch.prompts)
    assert len(lengths) > 1


def test_fine_tuning_sees_the_prompt_text_only(tmp_path: Path, tokenizer_folder: str) -> None:
    path = write_jsonl(tmp_path / "prompts.jsonl", toxicity_rows(60, 20))
    data = module(path, tokenizer_folder, purpose="sft")
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, TextBatch)
    from lightning_rarlhf.loading.tokenizer import load_tokenizer

    texts = load_tokenizer(tokenizer_folder).batch_decode(batch.input_ids, skip_special_tokens=True)
    assert all(text.startswith("row ") and "never used" not in text for text in texts)
    assert identity_of(data)["classes"] == {"train": {"wanted": 37}, "val": {}, "test": {"wanted": 4, "unwanted": 4}}


def test_unclear_folder(tmp_path: Path, tokenizer_folder: str) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write_jsonl(tmp_path / name, toxicity_rows(4, 4))
    with pytest.raises(DataError, match="expected 'train' or 'test', found a.jsonl, b.jsonl"):
        module(tmp_path, tokenizer_folder).setup("fit")


def test_hub(tmp_path: Path, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from datamodules.sources import read_file

    path = write_jsonl(tmp_path / "prompts.jsonl", toxicity_rows(100, 21))
    monkeypatch.setattr("datamodules.split_sources.read_hub", lambda *_: {"train": read_file(path)})
    data = RealToxicityPromptsDataModule(tokenizer=tokenizer_folder, batch_size=4, val_size=0)
    identity = identity_of(data)
    assert identity["classes"]["train"] == {"wanted": 37, "unwanted": 16}
    assert identity["source"] == "allenai/real-toxicity-prompts"
