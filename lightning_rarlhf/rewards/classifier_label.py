"""One label of a trained sequence classifier, ready to be read from texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lightning_rarlhf.config import DType
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.layers.cpu_linear import multiply_by_onednn
from lightning_rarlhf.layers.fused_gelu import fuse_gelu
from lightning_rarlhf.loading.hub import require_model
from lightning_rarlhf.loading.own_code import load_pretrained
from lightning_rarlhf.rewards.classifier import read_ends, text_limit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ClassifierLabel(NamedTuple):
    """A frozen classifier, and which of its outputs is asked for."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    column: int
    """of the label among the outputs"""
    limit: int | None
    """tokens that the classifier reads; None = any number"""

    @property
    def name(self) -> str:
        """What the classifier calls the label."""
        return _labels(self.model)[self.column]

    @torch.inference_mode()
    def logits(self, texts: Sequence[str]) -> tuple[Tensor, int]:
        """f32 [n] on the CPU, raw; and how many texts were longer than `limit` and lost their beginning."""
        inputs, cut = read_ends(self.tokenizer, texts, self.limit)
        # autocast of the policy's training step must not reach a score: it keeps the classifier's own dtype
        with torch.autocast(self.model.device.type, enabled=False):
            logits = self.model(**inputs.to(self.model.device)).logits
        return logits[:, self.column].float().cpu(), cut


def load_classifier_label(
    name: str,
    label: str | None,
    *,
    revision: str | None = None,
    dtype: DType = "float32",
    in_8bit_on: torch.device | None = None,
) -> ClassifierLabel:
    """The classifier of hub id or folder `name`, and the column of its output `label`.

    Args:
        name: an `AutoModelForSequenceClassification` with its tokenizer.
        label: may be left out when there is only one.
        revision: commit, tag or branch on the hub.
        dtype: of the weights.
        in_8bit_on: keep the linear layers' weights in 8 bits by bitsandbytes, made on this device; the classification
            head is not rounded, and dtype is that of the rest. None = all weights in dtype, on the CPU.

    Raises:
        ModelError: nothing there, no classifier, or no such label (they are listed).
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    require_model(name, revision)
    tokenizer = load_pretrained(
        AutoTokenizer, name, "a folder with a tokenizer", revision=revision, padding_side="right"
    )
    options: dict[str, Any] = {"revision": revision, "dtype": getattr(torch, dtype)}
    if in_8bit_on is not None:
        options |= _in_8bit(in_8bit_on)
    model, loading = load_pretrained(
        AutoModelForSequenceClassification, name, "a sequence classifier", output_loading_info=True, **options
    )
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise ModelError(f"{name}: has no trained classification head (missing: {missing}); give a sequence classifier")
    column = _column(name, _labels(model), label)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id  # GPT-2's kind reads the last token that is no pad token
    limit = text_limit(model, tokenizer)
    fuse_gelu(model)
    multiply_by_onednn(model)
    return ClassifierLabel(model.eval().requires_grad_(False), tokenizer, column, limit)


def _in_8bit(device: torch.device) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    # the heads' names in transformers; a score is read from them, so they are not rounded
    skipped = ["classifier", "score"]
    settings = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return {"quantization_config": settings, "device_map": {"": device}}


def _labels(model: PreTrainedModel) -> dict[int, str]:
    """Names of the outputs, by column."""
    return {int(column): str(label) for column, label in (model.config.id2label or {}).items()}


def _column(name: str, labels: dict[int, str], label: str | None) -> int:
    """Number of the label asked for."""
    listed = ", ".join(labels[column] for column in sorted(labels))
    if label is None:
        if len(labels) == 1:
            return 0
        raise ModelError(f"{name}: has {len(labels)} labels; set reward.label to one of: {listed}")
    for column, text in labels.items():
        if text == label:
            return column
    raise ModelError(f"{name}: has no label {label!r}; its labels are: {listed}; set reward.label to one of them")
