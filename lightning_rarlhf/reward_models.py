"""Rewards: anything that maps prompts and responses to one score each, higher = better.

Texts, not tokens, cross this boundary, so a reward model may have any tokenizer. Rewards are frozen and belong to no
checkpoint.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor

from lightning_rarlhf.config import DType, Judge
from lightning_rarlhf.errors import ModelError, RewardError
from lightning_rarlhf.loading.own_code import trust
from lightning_rarlhf.rewards.checked_scores import checked_scores
from lightning_rarlhf.rewards.classifier import PREFERENCE
from lightning_rarlhf.rewards.classifier_label import ClassifierLabel, load_classifier_label
from lightning_rarlhf.rewards.retries import RetryConfig, call_scorer
from lightning_rarlhf.terminal.plain_text import visible

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
        self._loaded: ClassifierLabel | None = None

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
            self._loaded.model.to(place)  # type: ignore[arg-type]

    def _load(self, place: torch.device) -> ClassifierLabel:
        on = place if self.load_in_8bit else None
        found = load_classifier_label(
            self.pretrained, self.label, revision=self.revision, dtype=self.dtype, in_8bit_on=on
        )
        if self.sign < 0 and found.name == PREFERENCE:
            raise ModelError(
                f"{self.pretrained}: it scores what people preferred higher, and sign -1 would train away from that; "
                "set model.reward.sign 1"
            )
        return found

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        if self._loaded is None:
            raise RewardError("the reward model is not loaded; call load(device) first")
        texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        # by length, so that a micro-batch carries little padding
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]), reverse=True)
        scores = torch.empty(len(texts))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            logits, cut = self._loaded.logits([texts[row] for row in rows])
            self._count_cut(cut, len(rows), self._loaded.limit)
            scores[rows] = self.sign * logits
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
        return None if self._loaded is None else getattr(self._loaded.model.config, "_commit_hash", None)

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
    _require_two_arguments(found, path)
    call: Callable[[list[str], list[str]], object] = found
    return call


def _require_two_arguments(function: Callable[..., object], path: str) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions of C tell none
        return
    try:
        signature.bind([], [])
    except TypeError as error:
        takes = ", ".join(signature.parameters)
        raise RewardError(f"reward function {path!r} takes ({takes}), expected (prompts, responses): {error}") from None


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
