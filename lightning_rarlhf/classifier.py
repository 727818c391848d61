"""A sequence classifier to be trained as a reward model, its tokenizer, and the folder that both end in."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lightning_rarlhf.config import BackboneConfig
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.hub import require_model
from lightning_rarlhf.own_code import load_pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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


def load_classifier(config: BackboneConfig, labels: Sequence[str], pad_token_id: int) -> PreTrainedModel:
    """The network of `config` with one output a label; a head of another size, or none, is replaced by a new one.

    Raises:
        ModelError: nothing there, or no network that transformers can put a classification head on.
    """
    from transformers import AutoModelForSequenceClassification

    require_model(config.pretrained, config.revision)
    names = dict(enumerate(labels))
    model: PreTrainedModel = load_pretrained(
        AutoModelForSequenceClassification,
        config.pretrained,
        "a network for a sequence classifier",
        revision=config.revision,
        dtype=torch.float32,
        id2label=names,
        label2id={label: number for number, label in names.items()},
        problem_type="multi_label_classification",
        ignore_mismatched_sizes=True,
    )
    model.config.pad_token_id = pad_token_id  # GPT-2's kind reads the last token that is no pad token
    return model


def text_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Tokens that the network can read, if its architecture sets a limit."""
    limits = [getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length]
    return min((int(n) for n in limits if n is not None and n < 10**9), default=None)


def export_classifier(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save network and tokenizer into `folder`, replacing what is there only once the copy is proven.

    Raises:
        ModelError: the reloaded copy scores a text differently; `folder` is left as it was.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        copy = Path(scratch) / folder.name
        model.save_pretrained(copy)
        tokenizer.save_pretrained(copy)
        _require_same_scores(model, tokenizer, copy)
        if folder.exists():
            shutil.move(folder, Path(scratch) / "replaced")
        shutil.move(copy, folder)


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
