"""Folders of random weights that this library and its peers all load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.workload import Workload

if TYPE_CHECKING:
    from transformers import GPT2Config


def save_models(folder: Path, work: Workload) -> None:
    """`folder`/policy, a causal language model, and `folder`/reward, a classifier of one label; one tokenizer."""
    from transformers import GPT2ForSequenceClassification

    save_policy(folder / "policy", work)
    reward = gpt2_config(work, work.reward_layers, work.reward_hidden, work.reward_hidden // 64, num_labels=1)
    GPT2ForSequenceClassification(reward).save_pretrained(folder / "reward")
    save_tokenizer(folder / "reward", work.vocabulary)


def save_policy(folder: Path, work: Workload) -> None:
    """A GPT-2 of the workload's shape with its tokenizer; torch's random numbers begin anew with it."""
    import torch
    from transformers import GPT2LMHeadModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    GPT2LMHeadModel(gpt2_config(work, work.layers, work.hidden, work.heads)).save_pretrained(folder)
    save_tokenizer(folder, work.vocabulary)


def gpt2_config(work: Workload, layers: int, hidden: int, heads: int, **others: int) -> GPT2Config:
    """Of a network over the workload's vocabulary."""
    from transformers import GPT2Config

    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    shape = {"n_layer": layers, "n_embd": hidden, "n_head": heads, "n_positions": 1024}
    return GPT2Config(vocab_size=work.vocabulary, **shape, **ends, **others)


def save_tokenizer(folder: Path, vocabulary: int, context: int = 1024) -> None:
    """One word a token, so that a text has as many tokens in the reward as in the policy."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<eos>": 0, **{f"w{number}": number for number in range(1, vocabulary)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<eos>", pad_token="<eos>", model_max_length=context
    ).save_pretrained(folder)
