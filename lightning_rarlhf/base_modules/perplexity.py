"""Perplexity as Hugging Face's `evaluate` computes it, by any network: of human texts, or of generated responses.

Each text is opened with the beginning-of-text token, so that its first own token is predicted too; no other special
token is added (`evaluate`: ``add_start_token=True``). A text longer than the model's context is cut.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_rarlhf.config import PolicyConfig, SamplingConfig
from lightning_rarlhf.functional.logprobs import token_logprobs
from lightning_rarlhf.functional.perplexity import text_perplexity
from lightning_rarlhf.language_model import LanguageModel
from lightning_rarlhf.loading.hub import split_revision
from lightning_rarlhf.loading.policy_loading import end_of_text_ids, load_causal_lm
from lightning_rarlhf.loading.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PLAIN = SamplingConfig()  # temperature 1, no filter: the model's own distribution
_BATCH = 16


def text_perplexities(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, batch_size: int = _BATCH
) -> Tensor:
    """exp(mean token negative log-likelihood) of each text, f64 [n] on the CPU; NaN for a text without a token."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # so that a batch carries little padding
    result = torch.full((len(texts),), torch.nan, dtype=torch.float64)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        tokens = _tokenize(tokenizer, [texts[row] for row in rows], model.context_length)
        sequences = [[_start_token(tokenizer), *ids] for ids in tokens]
        result[rows] = _perplexities(model, sequences, [len(ids) for ids in tokens])
    return result


def response_perplexities(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str]
) -> Tensor:
    """Perplexity of each response after its prompt, f64 [B] on the CPU; NaN for a response without a token.

    Only the response's tokens are counted. Where the two exceed the model's context, the prompt loses its beginning.
    """
    before = _tokenize(tokenizer, prompts, None)
    after = _tokenize(tokenizer, responses, model.context_length)
    sequences = [[_start_token(tokenizer), *a, *b] for a, b in zip(before, after, strict=True)]
    if model.context_length is not None:
        sequences = [ids[-model.context_length :] for ids in sequences]
    return _perplexities(model, sequences, [len(ids) for ids in after])


class ResponsePerplexity:
    """A frozen causal language model, by hub id or folder, that says how likely it finds generated responses."""

    def __init__(self, name: str, device: torch.device) -> None:
        """Load the judge.

        Raises:
            ModelError: nothing there, or not a causal language model.
        """
        pretrained, revision = split_revision(name)
        self._tokenizer = load_tokenizer(pretrained, revision)
        lm = load_causal_lm(PolicyConfig(pretrained=pretrained, revision=revision))
        self._model = LanguageModel(lm, end_of_text_ids(lm, self._tokenizer)).requires_grad_(False).to(device)

    def __call__(self, rows: Iterable[Mapping[str, Any]], *, batch_size: int = _BATCH) -> NDArray[np.float64]:
        """f64 [n], the perplexity of each row's ``response`` after its ``prompt``; rows are read as a stream."""
        found, left = array("d"), iter(rows)
        while batch := list(itertools.islice(left, batch_size)):
            prompts, responses = ([row[name] for row in batch] for name in ("prompt", "response"))
            found.extend(response_perplexities(self._model, self._tokenizer, prompts, responses).tolist())
        return np.frombuffer(found, dtype=np.float64)


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], context: int | None) -> list[list[int]]:
    """Token ids without special tokens, cut so that a start token still fits before them."""
    if context is None:
        ids = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    else:
        ids = tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=context - 1)["input_ids"]
    return [list(row) for row in ids]


def _start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """BOS, or, where a tokenizer has none (Qwen), the token that parts texts from each other: EOS."""
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    assert isinstance(token, int)  # load_tokenizer refuses a tokenizer without EOS
    return token


@torch.no_grad()
def _perplexities(model: LanguageModel, sequences: Sequence[Sequence[int]], counted: Sequence[int]) -> Tensor:
    """exp(mean NLL) of the last `counted[b]` tokens of each sequence, f64 [B] on the CPU."""
    width = max(2, *(len(sequence) for sequence in sequences))
    ids = torch.zeros(len(sequences), width, dtype=torch.int64)
    read, scored = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    for row, (sequence, count) in enumerate(zip(sequences, counted, strict=True)):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        read[row, : len(sequence)] = True
        scored[row, len(sequence) - count : len(sequence)] = True
    ids = ids.to(model.device)
    hidden = model.trunk(ids, read.to(model.device))[:, :-1]
    logprobs = token_logprobs(hidden, ids[:, 1:], model.head, _PLAIN, model.eos_token_ids)
    return text_perplexity(logprobs.cpu(), scored[:, 1:])
