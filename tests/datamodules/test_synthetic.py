from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.synthetic import SyntheticDataModule
from lightning_rarlhf.data_types import PromptBatch, TextBatch
from lightning_rarlhf.errors import DataError
from lightning_rarlhf.loading.tokenizer import load_tokenizer
from lightning_rarlhf.quickstart.grammar import MOST_COMMENTS, make_comments
from lightning_rarlhf.quickstart.tiny_policy import write_tiny_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_policy(tmp_path_factory.mktemp("runs") / "policy", layers=1, width=8, heads=1))


def module(policy: str, **options: object) -> SyntheticDataModule:
    settings = {"comments": 500, "test_size": 50, "val_size": 20, "batch_size": 16, "progress": False} | options
    data = SyntheticDataModule(tokenizer=policy, **settings)
    data.setup()
    return data


def prompts(loader: object) -> list[str]:
    return [prompt for batch in loader for prompt in batch.prompts]  # type: ignore[attr-defined]


def test_prompts_are_the_grammars_whole(policy: str) -> None:
    batch = next(iter(module(policy).train_dataloader()))
    assert isinstance(batch, PromptBatch)
    assert batch.input_ids.shape == (16, 11)
    assert batch.attention_mask.all()
    made = {comment.prompt: comment.label for comment in make_comments(500, seed=2024)}
    assert [made[prompt] for prompt in batch.prompts] == batch.labels.tolist()


def test_splits_share_no_prompt(policy: str) -> None:
    data = module(policy)
    train, val, test = (
        prompts(loader) for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    )
    assert (len(val), len(test)) == (20, 50)
    together = [*train, *val, *test]
    assert len(set(together)) == len(together)


def test_the_seed_chooses_among_the_same_comments(policy: str) -> None:
    first, again, other = (prompts(module(policy, seed=seed).test_dataloader()) for seed in (0, 0, 1))
    assert first == again
    assert set(first) != set(other)
    assert set(other) <= {comment.prompt for comment in make_comments(500, seed=2024)}


@pytest.mark.parametrize(("sft_class", "labels"), [("wanted", {1}), ("unwanted", {0}), ("all", {0, 1})])
def test_texts_for_sft_are_whole_comments_of_the_class(policy: str, sft_class: str, labels: set[int]) -> None:
    data = module(policy, purpose="sft", sft_class=sft_class)
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, TextBatch)
    tokenizer = load_tokenizer(policy)
    made = {comment.text: comment.label for comment in make_comments(500, seed=2024)}
    texts = [ids[mask] for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
    assert {int(text[-1]) for text in texts} == {tokenizer.eos_token_id}
    assert {made[tokenizer.decode(text[:-1])] for text in texts} == labels


def test_result_files_name_the_data(policy: str) -> None:
    identity = module(policy).identity()
    assert (identity["name"], identity["rows"]["test"]) == ("synthetic", 50)
    assert identity["classes"]["test"]["wanted"] > identity["classes"]["test"]["unwanted"] > 0


def test_a_path_is_refused(policy: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="made, not read; use TextFileDataModule"):
        module(policy, path=str(tmp_path))


def test_more_comments_than_the_grammar_has_are_refused(policy: str) -> None:
    with pytest.raises(DataError, match=f"expected at most {MOST_COMMENTS}"):
        module(policy, comments=MOST_COMMENTS + 1)
