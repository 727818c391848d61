"""Texts to token ids, once, cached on disk under a name that any process works out alike."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.rows import Columns, fingerprint
from lightning_rarlhf.loading.tokenizer import opening_ids

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_TOKEN_BATCH = 256  # texts in memory at a time
_COUNTED_BATCH = 10_000


def tokenize_prompts(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, *, tokens: int, first_index: int | None, split: str
) -> Dataset:
    """Cut each text to a prompt: its first `tokens` tokens, and the same decoded.

    Args:
        rows: columns as of `datamodules.rows.to_rows`.
        tokenizer: the policy's.
        tokens: tokens of a prompt at most, not counting those that the tokenizer opens every text with.
        first_index: number of the first prompt; None = number each by its row in the source.
        split: for the progress bar.

    Returns:
        columns `input_ids`, `length`, `prompt`, `label`, `score`, `index`; texts without a single token are left out.
    """
    from datasets import Features, List, Value

    features = Features(
        {
            "input_ids": List(Value("int32")),
            "length": Value("int32"),
            "prompt": Value("string"),
            "label": Value("int8"),
            "score": Value("float32"),
            "index": Value("int64"),
        }
    )
    options = {"tokens": tokens, "first_index": first_index}
    return _map(_prompt_columns, rows, tokenizer, options, features, f"Tokenizing {split} prompts")


def tokenize_texts(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokens: int,
    split: str,
    ends: bool = True,
    codes: tuple[str, str] | None = None,
) -> Dataset:
    """Cut each text to `tokens` tokens.

    Args:
        rows: texts.
        tokenizer: the policy's.
        tokens: of each text at most.
        split: its name, for the progress bar.
        ends: a text that ends before the cut gets the end-of-text token; False for texts that break off in the middle
            of what they say.
        codes: what stands before each text of the wanted and of the unwanted class, not counted in `tokens`; None =
            nothing. Texts of unknown class are then left out.

    Returns:
        columns `input_ids`, `length`; texts that leave nothing to predict are left out.
    """
    from datasets import Features, List, Value

    features = Features({"input_ids": List(Value("int32")), "length": Value("int32")})
    options = {"tokens": tokens, "ends": ends, "codes": codes}
    return _map(_text_columns, rows, tokenizer, options, features, f"Tokenizing {split} texts")


def texts_with_unknown(tokens: Dataset, tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of rows of `input_ids` that hold the token for what the tokenizer has no token for.

    0 where there is none such: tokenizers of byte pairs know every text, and name another token by that name.
    """
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown == tokenizer.eos_token_id or unknown in opening_ids(tokenizer):
        return 0
    found = 0
    for table in tokens.with_format("arrow").iter(batch_size=_COUNTED_BATCH):
        texts = table["input_ids"].combine_chunks()
        rows = texts.value_parent_indices().to_numpy()
        found += len(np.unique(rows[texts.flatten().to_numpy() == unknown]))
    return found


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Names a tokenizer by what it does to a text, so that a copy in another folder shares the cache."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()  # left over from an earlier call; set anew at each
        backend.no_padding()
    rules = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    parts = [type(tokenizer).__name__, rules, repr(opening_ids(tokenizer)), repr(tokenizer.all_special_ids)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _map(
    function: Any, rows: Dataset, tokenizer: PreTrainedTokenizerBase, options: Columns | Any, features: Any, what: str
) -> Dataset:
    tokenizer.truncation_side = "right"
    return rows.map(
        function,
        batched=True,
        batch_size=_TOKEN_BATCH,
        with_indices=True,
        fn_kwargs={"tokenizer": tokenizer, "opening": opening_ids(tokenizer), **options},
        remove_columns=rows.column_names,
        features=features,
        new_fingerprint=fingerprint(rows, function.__name__, tokenizer_hash(tokenizer), options),
        desc=what,
    )


def _prompt_columns(
    batch: Columns,
    numbers: list[int],
    *,
    tokenizer: PreTrainedTokenizerBase,
    opening: list[int],
    tokens: int,
    first_index: int | None,
) -> Columns:
    kept = [(at, ids) for at, ids in enumerate(_encode(tokenizer, batch["text"], tokens)) if ids]
    return {
        "input_ids": [opening + ids for _, ids in kept],
        "length": [len(opening) + len(ids) for _, ids in kept],
        "prompt": _decode(tokenizer, [ids for _, ids in kept]),
        "label": [batch["label"][at] for at, _ in kept],
        "score": [batch["score"][at] for at, _ in kept],
        "index": [batch["row"][at] if first_index is None else first_index + numbers[at] for at, _ in kept],
    }


def _text_columns(
    batch: Columns,
    _numbers: list[int],
    *,
    tokenizer: PreTrainedTokenizerBase,
    opening: list[int],
    tokens: int,
    ends: bool,
    codes: tuple[str, str] | None,
) -> Columns:
    end = [tokenizer.eos_token_id] if ends else []
    before = _openings(tokenizer, opening, codes)
    labelled = zip(_encode(tokenizer, batch["text"], tokens), batch["label"], strict=True)
    texts = [
        before[label] + ids + (end if len(ids) < tokens else []) for ids, label in labelled if ids and label in before
    ]
    texts = [ids for ids in texts if len(ids) > 1]
    return {"input_ids": texts, "length": [len(ids) for ids in texts]}


def _openings(
    tokenizer: PreTrainedTokenizerBase, opening: list[int], codes: tuple[str, str] | None
) -> dict[int, list[int]]:
    """Tokens before each text, by its class: 1 = wanted, 0 = unwanted, -1 = unknown, which has no code."""
    if codes is None:
        return dict.fromkeys((1, 0, -1), opening)
    wanted, unwanted = tokenizer(list(codes), add_special_tokens=False)["input_ids"]
    return {1: opening + list(wanted), 0: opening + list(unwanted)}


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], tokens: int) -> list[list[int]]:
    """First `tokens` tokens of each text; a special token's name inside a text is plain text."""
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        truncation=True,
        max_length=tokens,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return [list(ids) for ids in encoded["input_ids"]]


def _decode(tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]) -> list[str]:
    return [str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)) for ids in prompts]
