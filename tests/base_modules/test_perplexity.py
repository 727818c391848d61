"""Against Hugging Face's published procedure, written down again here from its description."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_rarlhf.base_modules.perplexity import ResponsePerplexity, response_perplexities, text_perplexities
from lightning_rarlhf.config import PolicyConfig
from lightning_rarlhf.language_model import LanguageModel
from lightning_rarlhf.loading.policy_loading import end_of_text_ids, load_causal_lm
from lightning_rarlhf.loading.tokenizer import load_tokenizer
from tests.tiny_models import FAMILIES, WORDS, causal_lm, save_tokenizer

TEXTS = [
    "the film was good",
    "bad",
    "a very kind and not cold food was the good warm rude film and not very bad",
    "unheard of words are read too",
    "good good good good good good",
]


def published(folder, texts, *, tokenizer_folder=None, max_length=None, batch_size=16):
    """`evaluate`'s perplexity metric, add_start_token=True: its list of perplexities."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder or folder, padding_side="right")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    encodings = tokenizer(
        texts,
        add_special_tokens=False,
        padding=True,
        truncation=max_length is not None,
        max_length=None if max_length is None else max_length - 1,
        return_tensors="pt",
        return_attention_mask=True,
    )
    found = []
    cross_entropy = torch.nn.CrossEntropyLoss(reduction="none")
    for start in range(0, len(texts), batch_size):
        ids = encodings["input_ids"][start : start + batch_size]
        mask = encodings["attention_mask"][start : start + batch_size]
        bos = torch.tensor([[tokenizer.bos_token_id]] * len(ids))
        ids, mask = torch.cat([bos, ids], dim=1), torch.cat([torch.ones_like(bos), mask], dim=1)
        with torch.no_grad():
            logits = model(ids, attention_mask=mask).logits
        losses = cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:])
        counts = mask[:, 1:]
        found += torch.exp((losses * counts).sum(1) / counts.sum(1)).tolist()
    return found


def language_model(folder, tokenizer_folder=None):
    tokenizer = load_tokenizer(str(tokenizer_folder or folder))
    lm = load_causal_lm(PolicyConfig(pretrained=str(folder)))
    return LanguageModel(lm, end_of_text_ids(lm, tokenizer)), tokenizer


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_every_text_as_published(policy_folders, policy_folder, family, batch_size):
    model, tokenizer = language_model(policy_folders[family], policy_folder)
    found = text_perplexities(model, tokenizer, TEXTS, batch_size=batch_size)
    expected = published(policy_folders[family], TEXTS, tokenizer_folder=policy_folder, batch_size=2)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    assert max(expected) > 1.1 * min(expected)  # texts that the test can tell apart
    assert found.mean().item() == pytest.approx(np.mean(expected), rel=1e-4)


def test_a_text_longer_than_the_context_is_cut(policy_folder):
    model, tokenizer = language_model(policy_folder)
    long = " ".join(WORDS[number * 5 % len(WORDS)] for number in range(200))
    found = text_perplexities(model, tokenizer, [long, "bad"])
    assert found.tolist() == pytest.approx(published(policy_folder, [long, "bad"], max_length=64), rel=1e-4)


def test_a_text_without_a_token_is_unknown_and_no_text_is_no_number(policy_folder):
    model, tokenizer = language_model(policy_folder)
    found = text_perplexities(model, tokenizer, ["", "bad"])
    assert found[0].isnan()
    assert found[1].item() == pytest.approx(published(policy_folder, ["bad"])[0], rel=1e-4)
    assert text_perplexities(model, tokenizer, []).shape == (0,)


def test_a_tokenizer_without_bos_starts_with_eos(tmp_path, policy_folder):
    causal_lm("gpt2").save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    model, tokenizer = language_model(tmp_path)
    expected = text_perplexities(model, tokenizer, TEXTS)
    tokenizer.bos_token = None
    assert tokenizer.bos_token_id is None
    assert torch.equal(text_perplexities(model, tokenizer, TEXTS), expected)


def test_memory_of_logits_is_bounded_by_the_chunk(policy_folder, monkeypatch):
    model, tokenizer = language_model(policy_folder)
    rows = []
    head = model.head
    monkeypatch.setattr(model, "head", lambda hidden: (rows.append(hidden.shape[0]), head(hidden))[1])
    text_perplexities(model, tokenizer, [" ".join(["bad"] * 60)] * 64, batch_size=64)
    assert sum(rows) == 60 * 64
    assert max(rows) <= 1024


# responses


def one_by_one(folder, prompt, response):
    """Mean loss of the response's tokens, from one plain forward pass."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before = [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    after = tokenizer(response, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logprobs = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
    losses = [-logprobs[len(before) + place - 1, token].item() for place, token in enumerate(after)]
    return math.exp(sum(losses) / len(losses))


PROMPTS = ["the film was", "a", "the very kind food"]
RESPONSES = ["good", "very bad and rude", "was cold was cold"]


def test_only_the_response_counts_and_the_prompt_comes_before_it(policy_folder):
    model, tokenizer = language_model(policy_folder)
    found = response_perplexities(model, tokenizer, PROMPTS, RESPONSES).tolist()
    expected = [one_by_one(policy_folder, *pair) for pair in zip(PROMPTS, RESPONSES, strict=True)]
    assert found == pytest.approx(expected, rel=1e-4)


def test_an_empty_response_is_unknown(policy_folder):
    model, tokenizer = language_model(policy_folder)
    found = response_perplexities(model, tokenizer, PROMPTS[:2], ["", "bad"])
    assert found.isnan().tolist() == [True, False]


def test_prompt_and_response_beyond_the_context_lose_the_prompts_beginning(policy_folder):
    model, tokenizer = language_model(policy_folder)
    prompt, response = " ".join(["good"] * 30 + ["rude"] * 30), " ".join(["bad", "food"] * 5)
    (found,) = response_perplexities(model, tokenizer, [prompt], [response]).tolist()
    lm = AutoModelForCausalLM.from_pretrained(policy_folder).eval()
    ids = tokenizer(f"{prompt} {response}", add_special_tokens=False)["input_ids"][-64:]
    with torch.no_grad():
        logprobs = lm(torch.tensor([ids])).logits[0].log_softmax(-1)
    losses = [-logprobs[place - 1, ids[place]].item() for place in range(54, 64)]
    assert found == pytest.approx(math.exp(sum(losses) / 10), rel=1e-4)


def test_a_judge_reads_rows_as_a_stream(policy_folders):
    judge = ResponsePerplexity(str(policy_folders["llama"]), torch.device("cpu"))
    rows = [{"prompt": prompt, "response": response} for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    ahead = []

    def stream():
        for number, row in enumerate(rows * 4):
            ahead.append(number)
            yield row

    found = judge(stream(), batch_size=2)
    expected = [one_by_one(policy_folders["llama"], *pair) for pair in zip(PROMPTS, RESPONSES, strict=True)]
    assert found.tolist() == pytest.approx(expected * 4, rel=1e-4)
    assert ahead == list(range(12))
