from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from datamodules import tokenization
from datamodules.tokenization import texts_with_unknown, tokenize_prompts, tokenize_texts, tokenizer_hash
from lightning_rarlhf.loading.tokenizer import load_tokenizer, opening_ids
from tests.datamodules.data_files import text, write_csv
from tests.tiny_models import save_policy


def rows(*texts: str) -> Dataset:
    count = len(texts)
    return Dataset.from_dict(
        {
            "text": list(texts),
            "label": [1] * count,
            "score": [0.5] * count,
            "row": [100 + number for number in range(count)],
        }
    )


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: str) -> Any:
    return load_tokenizer(tokenizer_folder)


def test_prompt_is_the_first_tokens_and_the_same_decoded(tokenizer: Any) -> None:
    texts = (text(1, 60), text(2))
    prompts = tokenize_prompts(rows(*texts), tokenizer, tokens=6, first_index=1000, split="train")
    for whole, ids, prompt, length in zip(
        texts, prompts["input_ids"], prompts["prompt"], prompts["length"], strict=True
    ):
        expected = tokenizer(whole)["input_ids"][:6]
        assert ids == expected
        assert length == len(expected)
        assert prompt == tokenizer.decode(expected)
        assert whole.startswith(prompt)
    assert prompts["index"][:] == [1000, 1001]
    assert prompts["label"][:] == [1, 1]
    assert prompts["score"][:] == [0.5, 0.5]


def test_short_texts_stay_whole(tokenizer: Any) -> None:
    prompts = tokenize_prompts(rows("the end"), tokenizer, tokens=30, first_index=0, split="train")
    assert prompts["prompt"][0] == "the end"
    assert prompts["length"][0] < 30


def test_prompts_can_keep_the_numbers_of_their_source(tokenizer: Any) -> None:
    prompts = tokenize_prompts(rows("a", "b"), tokenizer, tokens=4, first_index=None, split="predict")
    assert prompts["index"][:] == [100, 101]


def test_texts_end_with_eos_only_if_they_end_before_the_cut(tokenizer: Any) -> None:
    short, long = "the end came too soon", text(1, 100)
    size = len(tokenizer(short)["input_ids"])
    for tokens in (size - 1, size, size + 1):
        ids = tokenize_texts(rows(short, long), tokenizer, tokens=tokens, split="train")["input_ids"]
        ends = [tokenizer.eos_token_id] if size < tokens else []
        assert ids[0] == tokenizer(short)["input_ids"][:tokens] + ends
        assert ids[1] == tokenizer(long)["input_ids"][:tokens]


def test_a_code_stands_before_each_text_of_its_class(bos_tokenizer_folder: str) -> None:
    opener = load_tokenizer(bos_tokenizer_folder)
    both = rows("the end", "too soon", "who knows")
    both = both.remove_columns("label").add_column("label", [1, 0, -1], new_fingerprint="labelled")
    texts = tokenize_texts(both, opener, tokens=30, split="train", codes=("good: ", "bad: "))
    plain = [opener(text, add_special_tokens=False)["input_ids"] for text in ("good: ", "the end", "bad: ", "too soon")]
    start, end = opener.bos_token_id, opener.eos_token_id
    assert texts["input_ids"][:] == [[start, *plain[0], *plain[1], end], [start, *plain[2], *plain[3], end]]


def test_a_special_tokens_name_in_a_text_is_plain_text(tokenizer: Any) -> None:
    prompts = tokenize_prompts(rows("a<|endoftext|>b"), tokenizer, tokens=40, first_index=0, split="train")
    assert tokenizer.eos_token_id not in prompts["input_ids"][0]
    assert prompts["prompt"][0] == "a<|endoftext|>b"


def test_nothing_opens_a_text_of_gpt2(tokenizer: Any) -> None:
    assert opening_ids(tokenizer) == []


def test_a_tokenizer_that_opens_with_bos_keeps_doing_so(bos_tokenizer_folder: str) -> None:
    opener = load_tokenizer(bos_tokenizer_folder)
    assert opening_ids(opener) == [opener.bos_token_id]
    whole = text(3, 60)
    prompts = tokenize_prompts(rows(whole), opener, tokens=5, first_index=0, split="train")
    assert prompts["input_ids"][0] == opener(whole)["input_ids"][:6]  # five of the text, after BOS
    assert prompts["length"][0] == 6
    assert whole.startswith(prompts["prompt"][0])  # BOS is not part of the text that is scored
    texts = tokenize_texts(rows("the end"), opener, tokens=30, split="train")
    assert tokenize_texts(rows("the end"), opener, tokens=30, split="train", ends=False)["input_ids"] == [
        ids[:-1] for ids in texts["input_ids"]
    ]
    assert texts["input_ids"][0] == [*opener("the end")["input_ids"], opener.eos_token_id]


@pytest.mark.parametrize("strange", ["😀😀👩‍👩‍👧", "مرحبا بالعالم", "a\x00b", "x" * 1_000_000, " lead", "\n\nnew"])
def test_unusual_texts(tokenizer: Any, strange: str) -> None:
    prompts = tokenize_prompts(rows(strange), tokenizer, tokens=8, first_index=0, split="train")
    assert 1 <= prompts["length"][0] <= 8
    assert prompts["prompt"][0].rstrip("\ufffd") == strange[: len(prompts["prompt"][0].rstrip("\ufffd"))]


def test_texts_that_become_nothing_are_left_out(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful:
        """Knows only the words of real use; a word-level tokenizer without an unknown token behaves so."""

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, texts: Any, **options: Any) -> Any:
            encoded = tokenizer(texts, **options)
            if isinstance(texts, list):
                encoded["input_ids"] = [
                    [] if text == "?" else ids for text, ids in zip(texts, encoded["input_ids"], strict=True)
                ]
            return encoded

    for made in (
        tokenize_prompts(rows("a", "?", "b"), Forgetful(), tokens=4, first_index=7, split="train"),  # type: ignore[arg-type]
        tokenize_texts(rows("a", "?", "b"), Forgetful(), tokens=4, split="train"),  # type: ignore[arg-type]
    ):
        assert len(made) == 2
    assert tokenize_prompts(rows("a", "?", "b"), Forgetful(), tokens=4, first_index=7, split="x")["index"][:] == [7, 9]  # type: ignore[arg-type]


# the cache


def test_hash_tells_tokenizers_apart_but_not_copies_or_uses(
    tokenizer: Any, tokenizer_folder: str, bos_tokenizer_folder: str
) -> None:
    before = tokenizer_hash(tokenizer)
    tokenizer(["a", "bb"], truncation=True, max_length=3, padding=True)
    assert tokenizer_hash(tokenizer) == before
    assert tokenizer_hash(load_tokenizer(tokenizer_folder)) == before
    assert tokenizer_hash(load_tokenizer(bos_tokenizer_folder)) != before


_SECOND_PROCESS = """
import sys
import datamodules.rows, datamodules.tokenization
from datamodules import TextFileDataModule

seen = []
original = datamodules.tokenization._encode
def encode(tokenizer, texts, tokens):
    seen.extend(texts)
    return original(tokenizer, texts, tokens)
datamodules.tokenization._encode = encode
convert = datamodules.rows._text
def text(*args):
    seen.append(args[0])
    return convert(*args)
datamodules.rows._text = text

data = TextFileDataModule(path=sys.argv[1], tokenizer=sys.argv[2], batch_size=4, val_size=8)
data.setup()
print(len({value for value in seen if len(value) > 1}), data.identity()["sha256"]["test"])
"""


def test_a_second_process_finds_everything_in_the_cache(tmp_path: Path, tokenizer_folder: str) -> None:
    path = write_csv(tmp_path / "data.csv", [{"text": text(number, 30)} for number in range(60)])
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "PYTHONHASHSEED": "random"}
    command = [sys.executable, "-c", _SECOND_PROCESS, str(path), tokenizer_folder]
    runs = [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=Path.cwd())
        for _ in range(2)
    ]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr + runs[1].stderr
    first, second = (run.stdout.split() for run in runs)
    assert first[0] == "60"
    assert second[0] == "0"
    assert first[1] == second[1]


def test_texts_that_hold_unknown_words_are_counted_once_each(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_policy(tmp_path, "gpt2")
    words = load_tokenizer(str(tmp_path))
    texts = rows("the film was good", "the zebra was zesty", "warm food", "zebra")
    prompts = tokenize_prompts(texts, words, tokens=8, first_index=0, split="train")
    for size in (1, 3, 10_000):
        monkeypatch.setattr(tokenization, "_COUNTED_BATCH", size)
        assert texts_with_unknown(prompts, words) == 2
        assert texts_with_unknown(prompts.select([0, 2, 3]), words) == 1
    assert texts_with_unknown(tokenize_texts(texts, words, tokens=8, split="train"), words) == 2
    known = tokenize_prompts(texts, tokenizer, tokens=8, first_index=0, split="train")
    assert texts_with_unknown(known, tokenizer) == 0


def test_a_token_that_opens_or_ends_every_text_is_not_counted_as_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some tokenizers call one token by all these names."""
    save_policy(tmp_path, "gpt2")
    words = load_tokenizer(str(tmp_path))
    texts = tokenize_texts(rows("the film was good"), words, tokens=8, split="train")
    first, *_, last = texts[0]["input_ids"]
    assert last == words.eos_token_id
    words.unk_token_id = last
    assert texts_with_unknown(texts, words) == 0
    words.unk_token_id = first
    assert texts_with_unknown(texts, words) == 1
    monkeypatch.setattr(tokenization, "opening_ids", lambda _tokenizer: [first])
    assert texts_with_unknown(texts, words) == 0
