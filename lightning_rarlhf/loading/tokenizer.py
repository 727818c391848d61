"""The policy's tokenizer, with the two special tokens that sampling needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.loading.hub import require_model
from lightning_rarlhf.loading.own_code import load_pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of hub id or folder `name`, padding on the left.

    A tokenizer without a pad token pads with its end-of-text token, as GPT-2 does; masks are made from lengths, never
    from token ids, so the two cannot be confused.

    Raises:
        ModelError: nothing there, or no end-of-text token.
    """
    from transformers import AutoTokenizer

    require_model(name, revision)
    tokenizer: PreTrainedTokenizerBase = load_pretrained(
        AutoTokenizer, name, "a folder with a tokenizer", revision=revision, padding_side="left"
    )
    if len(tokenizer) < 2:  # transformers makes an empty one where a folder holds none
        raise ModelError(f"{name}: no tokenizer could be loaded (its vocabulary is empty); save one beside the model")
    if tokenizer.eos_token_id is None:
        missing = "an EOS token" if tokenizer.pad_token_id is not None else "a pad token and an EOS token"
        raise ModelError(
            f"{name}: its tokenizer lacks {missing}, so responses could not end; set tokenizer.eos_token, save it again"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def require_same_tokens(
    ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, who: str, *, may_lack: bool = False
) -> None:
    """Refuse a network that means other texts by the same token ids.

    Args:
        ours: the policy's tokenizer.
        theirs: the other network's.
        who: names the other network.
        may_lack: let either have tokens, as an added pad token, whose ids the other has none for.

    Raises:
        ModelError: with the first token that differs.
    """
    mine, its = ({at: word for word, at in each.get_vocab().items()} for each in (ours, theirs))
    compared = mine.keys() & its.keys() if may_lack else mine.keys() | its.keys()
    differing = [at for at in compared if mine.get(at) != its.get(at)]
    if differing:
        at = min(differing)
        raise ModelError(
            f"{who}: its tokenizer has {len(its)} tokens, that of the policy {ours.name_or_path} {len(mine)}, and they "
            f"differ, first at {its.get(at, mine.get(at))!r} (id {at}); give a model of the policy's family"
        )


def opening_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that the tokenizer puts before every text of its own accord: none for GPT-2, BOS for Llama."""
    probe = "a"
    bare = list(tokenizer(probe, add_special_tokens=False)["input_ids"])
    dressed = list(tokenizer(probe)["input_ids"])
    starts = [at for at in range(len(dressed)) if dressed[at : at + len(bare)] == bare]
    return dressed[: starts[0]] if starts and bare else []
