"""A byte-level BPE tokenizer, as GPT-2's, trained on the spot."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.datamodules.data_files import WORDS


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_byte_tokenizer(tmp_path_factory.mktemp("byte_tokenizer")))


def save_byte_tokenizer(folder: Path, *, opens_with_bos: bool = False) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import GPT2Config, PreTrainedTokenizerFast

    end, begin = "<|endoftext|>", "<s>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[end, begin],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    if opens_with_bos:
        tokenizer.post_processor = processors.TemplateProcessing(f"{begin} $A", special_tokens=[(begin, 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, bos_token=begin, model_max_length=256
    ).save_pretrained(folder)
    GPT2Config(n_layer=1, n_embd=8, n_head=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bos_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_byte_tokenizer(tmp_path_factory.mktemp("bos_tokenizer"), opens_with_bos=True))
