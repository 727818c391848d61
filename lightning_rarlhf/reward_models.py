"""Rewards: anything that maps prompts and responses to one score each, higher = better.

Texts, not tokens, cross this boundary, so a reward model may have any tokenizer. Rewards are frozen and belong to no
checkpoint.
"""

from __future__ import annotations

import importlib
import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor

from lightning_rarlhf.classifier import PREFERENCE, read_ends, text_limit
from lightning_rarlhf.config import DType, Judge
from lightning_rarlhf.cpu_linear import multiply_by_onednn
from lightning_rarlhf.errors import ModelError, RewardError, ScoreError, first_few
from lightning_rarlhf.fused_gelu import fuse_gelu
from lightning_rarlhf.hub import require_model
from lightning_rarlhf.own_code import load_pretrained, trust
from lightning_rarlhf.plain_text import visible
from lightning_rarlhf.retries import RetryConfig, call_scorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_log = logging.getLogger(__name__)


class RewardModel(Judge):
    """Scores finished texts: ``reward(prompts, responses) -> scores [B]``."""

    def load(self, device: torch.device) -> None:
        """Load weights onto `device`; called once, before the first batch."""

    @abstractmethod
    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """f32 [B] on the CPU, one finite score per response; an empty response scores the prompt alone."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What result files say of this reward."""

    def works_beside(self, device: torch.device) -> bool:
        """Whether scoring, in a thread of its own, leaves `device` its whole speed: else the two only divide it."""
        return True


class ClassifierReward(RewardModel):
    """The raw logit of one label of a sequence classifier, read on prompt + response, no softmax (paper, section 5).

    A text longer than the classifier reads loses its beginning, so that the response is scored whatever the prompt.
    """

    def __init__(
        self,
        pretrained: str,
        label: str | None = None,
        sign: Literal[1, -1] = 1,
        batch_size: PositiveInt = 64,
        dtype: DType = "float32",
        device: str | None = None,
        revision: str | None = None,
        load_in_8bit: bool = False,
        trust_remote_code: str | None = None,
    ) -> None:
        """Remember what to load; nothing is read before `load`.

        Args:
            pretrained: hub id or folder of an `AutoModelForSequenceClassification` with its tokenizer.
            label: name of the label whose logit is the score; may be left out when there is only one.
            sign: −1 turns the logit of an unwanted class (toxic) into a reward.
            batch_size: texts per forward pass.
            dtype: of the classifier's weights.
            device: where it runs: cpu, or one device for all processes (cuda:1, ...); none = beside each one's policy.
            revision: commit, tag or branch on the hub.
            load_in_8bit: keep the linear layers' weights in 8 bits by bitsandbytes, but for the classification head;
                dtype is then that of the rest.
            trust_remote_code: the name of pretrained again, if code that it ships may run; none = refuse it.

        Raises:
            RewardError: no name of a device.
        """
        self.pretrained = pretrained
        self.label = label
        self.sign = sign
        self.batch_size = batch_size
        self.dtype = dtype
        self.device = None if device is None else _device(device)
        self.revision = revision
        self.load_in_8bit = load_in_8bit
        self.trust_remote_code = trust_remote_code
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase, int, int | None] | None = None

    def load(self, device: torch.device) -> None:
        """Load classifier and tokenizer.

        Raises:
            ModelError: nothing there, no classifier, no such label (they are listed), or a preference upside down.
            RewardError: this machine has no such device.
        """
        place = self.device or device
        _require_device(place)
        if self._loaded is None:
            trust(self.trust_remote_code, self.pretrained, self.revision, "reward.trust_remote_code")
            self._loaded = self._load(place)
        if not self.load_in_8bit:  # such weights are made where they are needed
            self._loaded[0].to(place)  # type: ignore[arg-type]

    def _load(self, place: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, int, int | None]:
        options: dict[str, Any] = {"revision": self.revision, "dtype": getattr(torch, self.dtype)}
        if self.load_in_8bit:
            from transformers import BitsAndBytesConfig

            # the heads' names in transformers; a score is read from them, so they are not rounded
            skipped = ["classifier", "score"]
            options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
            options["device_map"] = {"": place}
        model, tokenizer, column, limit = _load_classifier(self.pretrained, self.label, options)
        if self.sign < 0 and _labels(model)[column] == PREFERENCE:
            raise ModelError(
                f"{self.pretrained}: it scores what people preferred higher, and sign -1 would train away from that; "
                "set model.reward.sign 1"
            )
        return model, tokenizer, column, limit

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        if self._loaded is None:
            raise RewardError("the reward model is not loaded; call load(device) first")
        model, tokenizer, column, limit = self._loaded
        texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        # by length, so that a micro-batch carries little padding
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]), reverse=True)
        scores = torch.empty(len(texts))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            inputs, cut = read_ends(tokenizer, [texts[row] for row in rows], limit)
            self._count_cut(cut, len(rows), limit)
            # autocast of the policy's training step must not reach the reward: scores keep the classifier's own dtype
            with torch.autocast(model.device.type, enabled=False):
                logits = model(**inputs.to(model.device)).logits
            scores[rows] = self.sign * logits[:, column].float().cpu()
        return checked_scores(scores, len(texts), self.pretrained)

    def _count_cut(self, cut: int, among: int, limit: int | None) -> None:
        if cut and not self.texts_cut:
            _log.warning(
                "%s reads %d tokens: %d of %d texts are longer and lose their beginning; said once, counted by `test`",
                *(visible(self.pretrained), limit, cut, among),
            )
        self.texts_cut += cut

    def works_beside(self, device: torch.device) -> bool:
        """On the device that samples only where that has streams (CUDA).

        On the CPU two threads wait for one another's cores; on Apple's GPU they must not send commands at once. Kinds
        are compared, for ``mps`` and ``mps:0`` are one device but unequal.
        """
        own = self.device or device
        return own.type != device.type or own.type == "cuda"

    @property
    def commit(self) -> str | None:
        """The hub's commit that was loaded; None for a folder, or before `load`."""
        return None if self._loaded is None else getattr(self._loaded[0].config, "_commit_hash", None)

    def identity(self) -> dict[str, Any]:
        return {
            "reward": type(self).__name__,
            "pretrained": self.pretrained,
            "revision": self.revision,
            "commit": self.commit,
            "trust_remote_code": self.trust_remote_code,
            "label": self.label,
            "sign": self.sign,
            "dtype": self.dtype,
            "load_in_8bit": self.load_in_8bit,
        }


class CallableReward(RewardModel):
    """Any Python function ``(prompts, responses) -> scores``, by import path."""

    def __init__(self, function: str, retry: RetryConfig = RetryConfig()) -> None:
        """Import `function`.

        Args:
            function: import path of the callable, such as ``my_package.my_module.my_reward``.
            retry: what happens when it raises or hangs.

        Raises:
            RewardError: no such module or name, or not callable.
        """
        self.function = function
        self.retry = retry
        self._call = _import(function)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        scores = call_scorer(self._call, prompts, responses, name=self.function, retry=self.retry)
        return checked_scores(scores, len(responses), self.function)

    def identity(self) -> dict[str, Any]:
        return {"reward": type(self).__name__, "function": self.function}


def checked_scores(scores: object, expected: int, name: str) -> Tensor:
    """Turn what a reward returned into f32 [B], or refuse it.

    Raises:
        RewardError: not numbers, or the wrong count.
        ScoreError: a score that is not finite, with its row.
    """
    if isinstance(scores, str | bytes):
        raise RewardError(f"reward {name}: returned a string; expected {expected} numbers, one per response")
    try:
        # via float64, so that numbers of any kind are read before they are rounded
        tensor = torch.as_tensor(scores, dtype=torch.float64).detach().cpu().float()
    except (TypeError, ValueError, RuntimeError):
        raise RewardError(
            f"reward {name}: returned {type(scores).__name__} that is no list of numbers; "
            f"expected {expected} numbers, one per response"
        ) from None
    if tuple(tensor.shape) != (expected,):
        raise RewardError(
            f"reward {name}: returned shape {list(tensor.shape)}; expected [{expected}], one score per response"
        )
    bad = [row for row, score in enumerate(tensor.tolist()) if not math.isfinite(score)]
    if bad:
        raise ScoreError(
            f"reward {name}: {len(bad)} of {expected} scores are not finite (responses {first_few(bad)}); "
            "fix the reward",
            rows=bad,
        )
    return tensor


def _import(path: str) -> Callable[[list[str], list[str]], object]:
    module, _, name = path.rpartition(".")
    if not module:
        raise RewardError(f"reward function {path!r}: expected an import path such as package.module.function")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise RewardError(
            f"reward function {path!r} cannot be imported ({error}); is its folder on PYTHONPATH?"
        ) from None
    if not callable(found):
        raise RewardError(
            f"reward function {path!r} is a {type(found).__name__}, not a callable (prompts, responses) -> scores"
        )
    call: Callable[[list[str], list[str]], object] = found
    return call


def _device(name: str) -> torch.device:
    """The device called `name`; it need not be on this machine."""
    try:
        return torch.device(name)
    except RuntimeError:
        raise RewardError(f"reward.device={name}: not a device; expected cpu, cuda:N, or none") from None


def _require_device(device: torch.device) -> None:
    """Refuse a device that this machine does not have."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # torch built without CUDA asserts
        raise RewardError(f"reward.device={device}: not on this machine; expected cpu, cuda:N, or none") from None


def _load_classifier(
    name: str, label: str | None, options: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, int, int | None]:
    """Model, tokenizer, column of the label, and the most tokens that the model reads."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    require_model(name, options["revision"])
    revision = options["revision"]
    tokenizer = load_pretrained(
        AutoTokenizer, name, "a folder with a tokenizer", revision=revision, padding_side="right"
    )
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
    return model.eval().requires_grad_(False), tokenizer, column, limit


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
    raise ModelError(f"{name}: has no label {label!r}; its labels are: {listed}")
