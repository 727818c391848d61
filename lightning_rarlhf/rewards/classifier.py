"""A sequence classifier to be trained as a reward model, its tokenizer, and the folder that both end in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_rarlhf.config import BackboneConfig
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.layers.rotary_angles import same_angles_up_to
from lightning_rarlhf.loading.hub import require_model
from lightning_rarlhf.loading.model_folder import require_replaceable
from lightning_rarlhf.loading.own_code import load_pretrained
from lightning_rarlhf.one_move import folder_in_one_move, or_say_why

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

PREFERENCE = "preference"
"""the one label of a network that was fitted to preference pairs; its logit is higher for the preferred text"""
_PROBES = ("", "a", "The film was long and warm, but its end came too soon.")


def load_classifier_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of hub id or folder `name`, padding on the right as classifiers read.

    Raises:
        ModelError: nothing there, or neither a pad nor an end-of-text token.
    """
    from transformers import AutoTokenizer

    require_model(name, revision)
    tokenizer: PreTrainedTokenizerBase = load_pretrained(
        AutoTokenizer, name, "a folder with a tokenizer", revision=revision, padding_side="right"
    )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(f"{name}: its tokenizer has neither a pad nor an EOS token; set one and save it again")
        tokenizer.pad_token = tokenizer.eos_token
    found: PreTrainedTokenizerBase = tokenizer
    return found


def load_classifier(
    config: BackboneConfig, labels: Sequence[str], pad_token_id: int, *, trained: bool = False
) -> tuple[PreTrainedModel, str | None]:
    """The network of `config` with one output a label, and what became of its head (None = as it was).

    A head of these very labels keeps its own order (`head_labels`), whatever the order of `labels`.

    Args:
        config: the backbone.
        labels: of the data.
        pad_token_id: of the tokenizer that feeds the network.
        trained: the head is to be measured, so it must be there and have these labels; else a head of another size,
            or none, is replaced by a new one, and one of other labels is renamed.

    Raises:
        ModelError: nothing there, no network that transformers can put a classification head on, one of whose weights
            below the head some are missing, or no such head.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    name, revision = config.pretrained, config.revision
    require_model(name, revision)
    what = "a network for a sequence classifier"
    own = _names(load_pretrained(AutoConfig, name, what, revision=revision).id2label)
    # one output has no order: a score of preferences may be called anything
    same = sorted(own) == sorted(labels) or (trained and len(own) == 1 and list(labels) == [PREFERENCE])
    names = dict(enumerate(own if same else labels))
    model, loading = load_pretrained(
        AutoModelForSequenceClassification,
        name,
        what,
        revision=revision,
        dtype=torch.float32,
        id2label=names,
        label2id={label: number for number, label in names.items()},
        problem_type="multi_label_classification",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    _require_trunk(name, model, loading)
    new = bool(loading["missing_keys"] or loading["mismatched_keys"])
    if trained and (new or not same):
        found = f"a head for {', '.join(own)}" if not loading["missing_keys"] else "no trained classification head"
        raise ModelError(
            f"{name}: has {found}, and the data {', '.join(labels)}; give the folder that a fit on these labels "
            "exported, or its checkpoint with --ckpt_path"
        )
    model.config.pad_token_id = pad_token_id  # GPT-2's kind reads the last token that is no pad token
    return model, _fate(name, own, list(names.values()), list(labels), new=new)


def _require_trunk(name: str, model: PreTrainedModel, loading: Mapping[str, Any]) -> None:
    """Refuse a network of whose weights below the head some are missing, or of another size: they would be random."""
    random = [*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]
    # BERT's pooler, which a masked language model has none of, is new with the head
    trunk = sorted(
        key for key in random if key.startswith(f"{model.base_model_prefix}.") and "pooler" not in key.split(".")
    )
    if trunk:
        raise ModelError(
            f"{name}: lacks {len(trunk)} of its network's weights, which would be random, {trunk[0]} first; give a "
            "complete copy"
        )


def head_labels(model: PreTrainedModel) -> list[str]:
    """What the outputs of `model` are called, in their order."""
    return _names(model.config.id2label or {})


def _names(id2label: Mapping[Any, str]) -> list[str]:
    return [str(id2label[number]) for number in sorted(id2label)]


def _fate(name: str, own: list[str], names: list[str], labels: list[str], *, new: bool) -> str | None:
    if new:
        return f"{name}: new head for {', '.join(names)}"
    if own != names:
        renamed = ", ".join(f"{old} is now {label}" for old, label in zip(own, names, strict=True) if old != label)
        return f"{name}: head kept under other names: {renamed}"
    return f"{name}: head kept, labels in its order: {', '.join(own)}" if own != labels else None


def text_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Tokens that the network can read, and scores alike whatever else is in the batch; None = without limit."""
    positions = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if positions is not None and name.endswith("position_embeddings") and isinstance(padding, int):
            positions -= padding + 1  # RoBERTa's kind counts its positions from there
    limits = [positions, same_angles_up_to(model.config), tokenizer.model_max_length]
    return min((int(n) for n in limits if n is not None and n < 10**9), default=None)


def read_ends(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], limit: int | None) -> tuple[BatchEncoding, int]:
    """Right-padded tokens of `texts`, and how many of the texts were longer than `limit` tokens.

    Such a text keeps its end, which is where a response is; special tokens are kept too, and count.
    """
    tokenizer.truncation_side = "left"
    read: BatchEncoding = tokenizer(
        list(texts), padding=True, truncation=limit is not None, max_length=limit, return_tensors="pt"
    )
    if limit is None or read["input_ids"].shape[1] < limit:
        return read, 0
    whole = tokenizer(list(texts), verbose=False)["input_ids"]  # seldom: some text is at the limit, or beyond
    return read, sum(len(ids) > limit for ids in whole)


def export_classifier(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save network and tokenizer into `folder`, replacing what is there only once the copy is proven.

    Raises:
        ModelError: the reloaded copy scores a text differently; `folder` is left as it was.
        UserError: `folder` holds something that is no saved model.
        WriteError: the disk is full, ...; `folder` is left as it was.
    """
    require_replaceable(folder)
    with or_say_why(folder), folder_in_one_move(folder) as copy:
        model.save_pretrained(copy)
        tokenizer.save_pretrained(copy)
        _require_same_scores(model, tokenizer, copy)


@torch.no_grad()
def _require_same_scores(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, copy: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    what = "the copy that was written"
    reloaded = load_pretrained(AutoModelForSequenceClassification, str(copy), what, dtype=torch.float32).eval()
    again = load_pretrained(AutoTokenizer, str(copy), what, padding_side="right")
    model.eval()
    ours = model(**tokenizer(list(_PROBES), padding=True, return_tensors="pt").to(model.device)).logits.cpu()
    theirs = reloaded(**again(list(_PROBES), padding=True, return_tensors="pt")).logits
    if not torch.allclose(ours.float(), theirs, atol=1e-3):
        raise ModelError(f"export to {copy.name}: the reloaded copy scores differently; nothing was replaced")
