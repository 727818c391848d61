"""Real Hugging Face folders of tiny random models, made once a session: the code under test loads them as any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

WORDS = ("good", "bad", "film", "food", "was", "the", "a", "very", "kind", "rude", "and", "not", "warm", "cold")
FAMILIES = ("gpt2", "gptj", "llama", "qwen2")


def save_tokenizer(folder: Path, *, pad: str | None = None, eos: str | None = "<eos>", context: int = 64) -> None:
    """Word-level tokenizer; unknown words become <unk>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(("<unk>", "<eos>", "<pad>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.model = models.WordLevel(
        {(f"▁{word}" if word in WORDS else word): number for word, number in vocabulary.items()}, unk_token="<unk>"
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token=eos,
        bos_token=eos,
        pad_token=pad,
        model_max_length=context,
    ).save_pretrained(folder)


def save_qwen_tokenizer(folder: Path, *, context: int = 64) -> None:
    """Qwen's own kind, byte pairs, with the other families' ids: transformers reads no other kind beside its models."""
    from transformers import Qwen2Tokenizer

    whole = [f"Ġ{word}" for word in WORDS]
    parts = sorted({word[:end] for word in whole for end in range(1, len(word))} | set("".join(whole)))
    names = ("<unk>", "<eos>", "<pad>", *whole, *(part for part in parts if part not in whole))
    merges = {(word[:end], word[end]): None for word in whole for end in range(1, len(word))}  # each once, in order
    Qwen2Tokenizer(
        vocab={name: number for number, name in enumerate(names)},
        merges=list(merges),
        unk_token="<unk>",
        eos_token="<eos>",
        pad_token="<eos>",
        add_prefix_space=True,
        model_max_length=context,
    ).save_pretrained(folder)


QWEN_VOCABULARY = 96
"""of the tiny Qwen, whose tokenizer knows parts of words too"""


def causal_lm(family: str, *, vocabulary: int | None = None, context: int = 64) -> torch.nn.Module:
    """Random model of one architecture: 2 layers of width 16, two heads."""
    from transformers import AutoConfig, AutoModelForCausalLM

    vocabulary = vocabulary or (QWEN_VOCABULARY if family == "qwen2" else len(WORDS) + 3)
    common = {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": None}
    wide = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": context}
    deep = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": context,
    }
    settings = {
        "gpt2": wide,
        "gptj": {**wide, "rotary_dim": 4},
        "llama": deep,
        "qwen2": deep,
    }[family]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **common, **settings))
    with torch.no_grad():  # spread the logits, so that a wrong position or mask changes them visibly
        for parameter in model.parameters():
            parameter.mul_(3.0) if parameter.dim() > 1 else None
    return model


def save_policy(folder: Path, family: str = "gpt2", **tokenizer: object) -> Path:
    causal_lm(family).save_pretrained(folder)
    save = save_qwen_tokenizer if family == "qwen2" else save_tokenizer
    save(folder, **tokenizer)  # type: ignore[operator]
    return folder


def save_classifier(folder: Path, labels: tuple[str, ...] = ("toxic", "insult"), seed: int = 1) -> Path:
    """BERT-like sequence classifier with named labels and a vocabulary of its own."""
    from transformers import AutoModelForSequenceClassification, BertConfig

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(WORDS) + 3,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        pad_token_id=2,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    save_tokenizer(folder, pad="<pad>", context=32)
    return folder


@pytest.fixture(scope="session")
def policy_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each architecture."""
    root = tmp_path_factory.mktemp("policies")
    return {family: save_policy(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="session")
def policy_folder(policy_folders: dict[str, Path]) -> Path:
    return policy_folders["gpt2"]


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("classifiers") / "toxicity")
