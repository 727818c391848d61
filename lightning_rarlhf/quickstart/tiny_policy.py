"""A language model small enough for two cores: one token per word of the grammar, a GPT-2 with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lightning_rarlhf.quickstart.grammar import vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
"""begins and ends a text, as in GPT-2"""
PAD = "<pad>"
"""fills the short rows of a batch"""
UNKNOWN = "<unk>"
"""any word that the grammar lacks"""
CONTEXT_TOKENS = 64


def write_tiny_policy(folder: Path, *, layers: int = 2, width: int = 64, heads: int = 4, seed: int = 0) -> Path:
    """Write an untrained policy and its tokenizer to `folder`, for `from_pretrained`; equal seeds give equal weights.

    `layers` blocks of `width` channels and `heads` attention heads. The caller's random state is left as it was.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = word_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT_TOKENS,
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer with one token for each word of the grammar and for the full stop."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate((END, PAD, UNKNOWN, *vocabulary()))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # A decoder made for word pieces is the one that joins tokens by blanks and puts the full stop next to its word.
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side="left",
        model_max_length=CONTEXT_TOKENS,
    )
