from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_rarlhf.loading.tokenizer import load_tokenizer
from lightning_rarlhf.quickstart.grammar import make_comments, vocabulary
from lightning_rarlhf.quickstart.tiny_policy import CONTEXT_TOKENS, UNKNOWN, word_tokenizer, write_tiny_policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_policy(tmp_path_factory.mktemp("runs") / "policy")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def test_a_comment_comes_back_as_it_was(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    for comment in make_comments(200, seed=1):
        ids = tokenizer(comment.text)["input_ids"]
        assert tokenizer.decode(ids) == comment.text
        assert len(ids) == len(comment.text.replace(".", " .").split())
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids[:11]) == comment.prompt


def test_special_tokens_are_distinct_and_unknown_words_known_as_such(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    assert len({tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}) == 3
    assert tokenizer.bos_token_id == tokenizer.eos_token_id
    assert tokenizer.convert_ids_to_tokens(tokenizer("the zebra")["input_ids"]) == ["the", UNKNOWN]


def test_the_model_fits_its_tokenizer(folder: Path) -> None:
    from transformers import AutoConfig

    config, tokenizer = AutoConfig.from_pretrained(folder), word_tokenizer()
    assert config.vocab_size == len(tokenizer) == len(vocabulary()) + 3
    assert config.n_positions == tokenizer.model_max_length == CONTEXT_TOKENS
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_weights_depend_on_the_seed_alone(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(77)
    before = torch.get_rng_state()
    same = weights(write_tiny_policy(tmp_path / "same"))
    other = weights(write_tiny_policy(tmp_path / "other", seed=1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, same[name]) for name, value in weights(folder).items())
    assert not torch.equal(same["transformer.wte.weight"], other["transformer.wte.weight"])


def test_size_is_as_asked(tmp_path: Path) -> None:
    small = weights(write_tiny_policy(tmp_path / "small", layers=1, width=32, heads=2))
    assert small["transformer.wte.weight"].shape == (len(vocabulary()) + 3, 32)
    assert not any(name.startswith("transformer.h.1.") for name in small)
