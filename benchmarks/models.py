"""Folders of random weights that this library and its peers all load."""

from __future__ import annotations

from pathlib import Path

from benchmarks.workload import Workload


def save_models(folder: Path, work: Workload) -> None:
    """`folder`/policy, a causal language model, and `folder`/reward, a classifier of one label; one tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    common = {"vocab_size": work.vocabulary, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    policy = GPT2Config(n_layer=work.layers, n_embd=work.hidden, n_head=work.heads, n_positions=1024, **common)
    reward = GPT2Config(
        n_layer=work.reward_layers,
        n_embd=work.reward_hidden,
        n_head=work.reward_hidden // 64,
        n_positions=1024,
        num_labels=1,
        **common,
    )
    GPT2LMHeadModel(policy).save_pretrained(folder / "policy")
    GPT2ForSequenceClassification(reward).save_pretrained(folder / "reward")
    for name in ("policy", "reward"):
        save_tokenizer(folder / name, work.vocabulary)


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
