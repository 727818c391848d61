from __future__ import annotations

import itertools
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from jsonargparse import ArgumentParser

import datamodules
from datamodules import PromptDataModule
from datamodules.rows import RowSchema, ValueRule
from lightning_rarlhf.data_types import PromptBatch, TextBatch
from lightning_rarlhf.errors import DataError
from lightning_rarlhf.loading.tokenizer import load_tokenizer
from lightning_rarlhf.splits import FIRST_INDEX
from tests.datamodules.data_files import text


class MemoryDataModule(PromptDataModule):
    """60 training rows, 40 test rows; every third unwanted. What a subclass must write is this much."""

    name = "memory"

    def read(self) -> dict[str, datasets.Dataset]:
        return {
            split: datasets.Dataset.from_list([{"body": text(n, 5 + n % 40), "bad": n % 3 == 0} for n in numbers])
            for split, numbers in {"train": range(60), "test": range(100, 140)}.items()
        }

    def schema(self, columns: Any) -> RowSchema:
        return RowSchema(text="body", rule=ValueRule(column="bad", wanted="false"))


def module(tokenizer: str, **options: Any) -> MemoryDataModule:
    settings = {"tokenizer": tokenizer, "batch_size": 8, "eval_batch_size": 8, "val_size": 9, "prompt_tokens": 12}
    return MemoryDataModule(**settings | options)


def everything(loader: Any) -> list[PromptBatch]:
    return list(loader)


def index(loader: Any) -> list[int]:
    return [number for batch in loader for number in batch.index.tolist()]


def test_batches_agree_with_their_prompts(tokenizer_folder: str) -> None:
    data = module(tokenizer_folder)
    data.setup()
    tokenizer = load_tokenizer(tokenizer_folder)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for batch in everything(loader):
            for row, prompt in enumerate(batch.prompts):
                ids = batch.input_ids[row][batch.attention_mask[row]].tolist()
                assert tokenizer.decode(ids) == prompt
                assert len(ids) <= 12
                number = int(prompt.split(":")[0].removeprefix("row "))
                assert batch.labels[row] == int(number % 3 > 0)


def test_every_prompt_of_a_run_has_its_own_number(tokenizer_folder: str) -> None:
    data = module(tokenizer_folder)
    data.setup()
    numbers = {
        "train": index(data.train_dataloader()),
        "val": index(data.val_dataloader()),
        "test": index(data.test_dataloader()),
    }
    assert sorted(numbers["val"]) == list(range(FIRST_INDEX["val"], FIRST_INDEX["val"] + 9))
    assert numbers["test"] == list(range(FIRST_INDEX["test"], FIRST_INDEX["test"] + 40))
    assert {number // 1_000_000_000 for number in numbers["train"]} == {1}
    joined = list(itertools.chain(*numbers.values()))
    assert len(set(joined)) == len(joined)


def test_splits_share_no_text(tokenizer_folder: str) -> None:
    data = module(tokenizer_folder, prompt_tokens=60, test_size=20)
    data.setup()
    texts = [
        {prompt for batch in loader for prompt in batch.prompts}
        for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    ]
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]
    assert all(int(prompt.split(":")[0].removeprefix("row ")) >= 100 for prompt in texts[1])  # test leftovers suffice


def test_predictions_are_the_test_prompts(tokenizer_folder: str) -> None:
    data = module(tokenizer_folder)
    data.setup()
    assert index(data.predict_dataloader()) == index(data.test_dataloader())


def test_validation_is_the_same_in_every_epoch_and_run(tokenizer_folder: str) -> None:
    one, two = module(tokenizer_folder), module(tokenizer_folder, batch_size=4)
    one.setup("fit")
    two.setup("validate")
    loader = one.val_dataloader()
    first = [batch.prompts for batch in loader]
    assert [batch.prompts for batch in loader] == first
    assert [batch.prompts for batch in two.val_dataloader()] == first
    labels = [label for batch in loader for label in batch.labels.tolist()]
    assert labels.count(1) == 6  # the training set's ratio


def test_no_validation(tokenizer_folder: str) -> None:
    data = module(tokenizer_folder, val_size=0)
    data.setup("fit")
    assert data.val_dataloader() == []
    assert data.identity()["rows"]["val"] == 0


def test_seed_chooses_rows(tokenizer_folder: str) -> None:
    hashes = []
    for seed in (0, 0, 1):
        data = module(tokenizer_folder, seed=seed)
        data.setup("test")
        hashes.append(data.identity()["sha256"]["test"])
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(("sft_class", "thirds"), [("wanted", 2), ("unwanted", 1), ("all", 3)])
def test_fine_tuning(tokenizer_folder: str, sft_class: Any, thirds: int) -> None:
    data = module(tokenizer_folder, purpose="sft", sft_class=sft_class, text_tokens=20, val_size=0)
    data.setup()
    identity = data.identity()
    assert identity["rows"]["train"] == 20 * thirds
    tokenizer = load_tokenizer(tokenizer_folder)
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, TextBatch)
    assert batch.attention_mask[:, 0].all()  # padded on the right
    for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
        kept = ids[mask].tolist()
        assert len(kept) <= 20
        assert (kept[-1] == tokenizer.eos_token_id) == (len(kept) < 20) or kept[-1] == tokenizer.eos_token_id
        number = int(tokenizer.decode(kept).split(":")[0].removeprefix("row "))
        assert sft_class == "all" or (number % 3 > 0) == (sft_class == "wanted")


def test_stages_make_only_what_they_need(tokenizer_folder: str) -> None:
    data = module(tokenizer_folder)
    data.setup("test")
    assert data.identity()["sha256"].keys() == {"test"}
    data.setup("fit")
    assert data.identity()["sha256"].keys() == {"test", "val"}


def test_setup_works_once(tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = module(tokenizer_folder)
    data.prepare_data()
    monkeypatch.setattr(MemoryDataModule, "read", lambda self: pytest.fail("read again"))
    data.setup("fit")
    data.setup("test")


def test_processes_deal_the_batch_among_them(tokenizer_folder: str) -> None:
    whole = module(tokenizer_folder)
    whole.setup("fit")
    parts = []
    for rank in (0, 1):
        data = module(tokenizer_folder)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, is_global_zero=rank == 0, state=None)
        data.setup("fit")
        parts.append(everything(data.train_dataloader()))
    for number, batch in enumerate(whole.train_dataloader()):
        for rank in (0, 1):
            part = parts[rank][number]
            assert part.index.tolist() == batch.index.tolist()[rank::2]
            assert part.input_ids.shape[1] == batch.input_ids.shape[1]


def test_identity_names_the_data(tokenizer_folder: str) -> None:
    data = module(tokenizer_folder, test_size=30, seed=5)
    data.setup("test")
    identity = data.identity()
    assert identity["class"] == "MemoryDataModule"
    assert identity["name"] == "memory"
    assert identity["seed"] == 5
    assert identity["rows"] == {"train": 60, "val": 9, "test": 30}
    assert sum(identity["classes"]["test"].values()) == 30
    assert len(identity["sha256"]["test"]) == 64


def test_path_is_named_without_the_machines_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert MemoryDataModule(path=str(tmp_path / "jigsaw") + "/").source == "jigsaw"
    assert MemoryDataModule(path=".").source == tmp_path.name


def test_progress_bars(tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    original = MemoryDataModule.read
    monkeypatch.setattr(
        MemoryDataModule, "read", lambda self: (seen.append(datasets.are_progress_bars_disabled()), original(self))[1]
    )
    bars = sys.modules["datasets.utils.tqdm"]
    monkeypatch.setattr(bars, "HF_DATASETS_DISABLE_PROGRESS_BARS", None)
    monkeypatch.setattr(bars, "_hf_datasets_progress_bars_disabled", False)
    for progress in (True, False):
        module(tokenizer_folder, progress=progress).setup("test")
        assert not datasets.are_progress_bars_disabled()
    other = module(tokenizer_folder)
    other.trainer = SimpleNamespace(global_rank=1, world_size=2, is_global_zero=False, state=None)
    other.setup("test")
    assert seen == [False, True, True]


# bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1}, "batch_size=1: .*expected 2 or more"),
        ({"batch_size": 61, "test_size": 20}, "batch_size=61 is larger than the training set of 60 rows"),
        ({"val_size": 200}, "val_size=200 would take all 60 training rows"),
    ],
)
def test_sizes_that_cannot_be(tokenizer_folder: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        module(tokenizer_folder, **options).setup("fit")


def test_one_text_at_a_time_is_fine_for_fine_tuning_and_tests(tokenizer_folder: str) -> None:
    module(tokenizer_folder, batch_size=1, purpose="sft").setup("fit")
    module(tokenizer_folder, batch_size=1).setup("test")


def test_class_that_fine_tuning_lacks(tokenizer_folder: str) -> None:
    data = module(tokenizer_folder, purpose="sft", sft_class="unwanted", train_wanted_fraction=1.0)
    with pytest.raises(DataError, match="no train rows of class unwanted"):
        data.setup("fit")


# the command line


def _concrete() -> list[str]:
    """What feeds prompts; the reward models' data have tests of their own."""
    classes = {name: getattr(datamodules, name) for name in datamodules.__all__}
    return [name for name, each in classes.items() if issubclass(each, PromptDataModule) and each != PromptDataModule]


@pytest.mark.parametrize("name", _concrete())
def test_bare_class_names_and_documented_options(name: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PromptDataModule, "data")
    built = parser.instantiate(parser.parse_args([f"--data={name}", "--data.seed=3", "--data.val_size=0"])).data
    assert type(built).__name__ == name
    assert (built.seed, built.val_size) == (3, 0)

    options = ArgumentParser(exit_on_error=False)
    options.add_class_arguments(getattr(datamodules, name), "data")
    undocumented = [action.dest for action in options._actions if action.dest.startswith("data.") and not action.help]
    assert not undocumented
    assert {"data.tokenizer", "data.batch_size", "data.path"} <= {action.dest for action in options._actions}
