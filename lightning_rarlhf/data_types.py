"""One frozen type per phase of an iteration: ``PromptBatch`` → ``Rollout`` → ``PPOBatch`` → ``PPOStats``.

Symbols: B prompts per batch, P prompt tokens, T response tokens, S = P + T, k kept episodes. Masks are bool and True
means *counts*. Shapes are checked here, once, so that the functions that take these types need not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


def _require(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ValueError(f"{name}: expected {dtype} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}")


def _require_states(name: str, states: Tensor | None, rows: int, columns: int) -> None:
    """Hidden states of any width and type; None = there are none."""
    if states is not None and (states.dim() != 3 or tuple(states.shape[:2]) != (rows, columns)):
        raise ValueError(f"{name}: expected [{rows}, {columns}, H], got {list(states.shape)}")


class _Batch:
    """What all the batch types share: moving to a device and choosing rows, field by field."""

    def to(self, device: torch.device | str, *args: object, **kwargs: object) -> Self:
        """Copy with every tensor on `device`; anything else travels unchanged."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        moved = {name: part.to(device) for name, part in parts.items() if isinstance(part, Tensor | _Batch)}
        return replace(self, **moved)  # type: ignore[type-var]

    def select(self, rows: Tensor) -> Self:
        """Copy that holds `rows` (i64 [n], in that order) of every field."""
        picked = rows.tolist()
        chosen: dict[str, object] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                chosen[field.name] = value[rows.to(value.device)]
            elif isinstance(value, tuple):
                chosen[field.name] = tuple(value[row] for row in picked)
            elif isinstance(value, _Batch):
                chosen[field.name] = value.select(rows)
            else:
                chosen[field.name] = value
        return replace(self, **chosen)  # type: ignore[type-var]


@dataclass(frozen=True, kw_only=True)
class TextBatch(_Batch):
    """Texts for supervised fine-tuning, right-padded to [B, S]."""

    input_ids: Tensor
    """i64 [B, S]"""
    attention_mask: Tensor
    """bool [B, S]; True = a token of the text (an appended EOS included)"""

    def __post_init__(self) -> None:
        _require("input_ids", self.input_ids, tuple(self.input_ids.shape[:2]), torch.int64)
        _require("attention_mask", self.attention_mask, tuple(self.input_ids.shape), torch.bool)

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])


@dataclass(frozen=True, kw_only=True)
class PromptBatch(_Batch):
    """Prompts as a data module collates them, left-padded to [B, P]."""

    input_ids: Tensor
    """i64 [B, P]"""
    attention_mask: Tensor
    """bool [B, P]; True = a prompt token"""
    index: Tensor
    """i64 [B], the prompt's number in its dataset: names it in outputs and seeds its sampling"""
    prompts: tuple[str, ...]
    """B decoded prompts, as they are scored"""
    labels: Tensor
    """i64 [B]; 1 = wanted class (positive, non-toxic), 0 = unwanted class, -1 = unknown"""
    source_scores: Tensor
    """f32 [B], a score of the prompt that the data ships, in the data's own unit (RTP: Perspective toxicity);
    NaN = unknown"""

    def __post_init__(self) -> None:
        rows, columns = self.input_ids.shape
        _require("input_ids", self.input_ids, (rows, columns), torch.int64)
        _require("attention_mask", self.attention_mask, (rows, columns), torch.bool)
        _require("index", self.index, (rows,), torch.int64)
        _require("labels", self.labels, (rows,), torch.int64)
        _require("source_scores", self.source_scores, (rows,), torch.float32)
        if len(self.prompts) != rows:
            raise ValueError(f"prompts: expected {rows} strings, got {len(self.prompts)}")

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])


@dataclass(frozen=True, kw_only=True)
class Samples(_Batch):
    """Prompts with one sampled response each; prompts keep their left padding, so responses start in column P."""

    batch: PromptBatch
    sequences: Tensor
    """i64 [B, S], left-padded prompt then response; pad tokens after the response's end"""
    response_mask: Tensor
    """bool [B, T]; True = a response token, the first end-of-text token included"""
    responses: tuple[str, ...]
    """B decoded responses without special tokens"""
    logprobs: Tensor | None = None
    """f32 [B, T], log-probability of each response token under the distribution that it was drawn from, 0 beyond the
    response; None = not kept"""
    entropy: Tensor | None = None
    """f32 [B, T], entropy in nats of the distribution that each response token was drawn from, 0 beyond the response;
    None = not kept"""
    hidden: Tensor | None = None
    """f32 [B, T, H], the policy's hidden states that predicted the response tokens, as sampling had them; None = not
    kept, or not what a full forward pass gives again"""
    frozen_states: Tensor | None = None
    """[B, S, H], hidden states that leave the policy's frozen layers; None = not kept, or no such layers"""

    def __post_init__(self) -> None:
        rows, columns = self.batch.input_ids.shape
        width = self.response_mask.shape[1]
        _require("response_mask", self.response_mask, (rows, width), torch.bool)
        _require("sequences", self.sequences, (rows, columns + width), torch.int64)
        if len(self.responses) != rows:
            raise ValueError(f"responses: expected {rows} strings, got {len(self.responses)}")
        if self.logprobs is not None:
            _require("logprobs", self.logprobs, (rows, width), torch.float32)
        if self.entropy is not None:
            _require("entropy", self.entropy, (rows, width), torch.float32)
        _require_states("hidden", self.hidden, rows, width)
        _require_states("frozen_states", self.frozen_states, rows, columns + width)

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def attention_mask(self) -> Tensor:
        """bool [B, S]; True = a prompt or response token."""
        return torch.cat([self.batch.attention_mask, self.response_mask], dim=1)

    @property
    def lengths(self) -> Tensor:
        """i64 [B], response tokens of each row."""
        return self.response_mask.sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class Rollout(_Batch):
    """What one iteration saw: samples, their scores and the statistics of the policy that produced them."""

    samples: Samples
    scores: Tensor
    """f32 [B], the reward model's score of each finished text"""
    logprobs: Tensor
    """f32 [B, T], log π_old(a_t | s_t) of the distribution that was sampled from"""
    ref_logprobs: Tensor
    """f32 [B, T], log π_ref(a_t | s_t)"""
    values: Tensor
    """f32 [B, T], V(s_t), the critic's value before the token a_t"""
    entropy: Tensor
    """f32 [B, T], entropy of π_old(· | s_t) in nats"""

    def __post_init__(self) -> None:
        shape = tuple(self.samples.response_mask.shape)
        _require("scores", self.scores, shape[:1], torch.float32)
        for name in ("logprobs", "ref_logprobs", "values", "entropy"):
            _require(name, getattr(self, name), shape, torch.float32)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def response_mask(self) -> Tensor:
        """bool [B, T]; True = a response token."""
        return self.samples.response_mask

    def without_frozen_states(self) -> Rollout:
        """Copy that is small enough to be kept beside the update, whose batch has the states of its own rows."""
        return replace(self, samples=replace(self.samples, frozen_states=None))

    @property
    def kl(self) -> Tensor:
        """f32 [B], Σ_t log π_old − log π_ref of each episode, in nats."""
        return torch.where(self.response_mask, self.logprobs - self.ref_logprobs, 0.0).sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class PPOBatch(_Batch):
    """The k kept episodes, ready for the PPO epochs; rows outside the tail are not in it."""

    sequences: Tensor
    """i64 [k, S]"""
    attention_mask: Tensor
    """bool [k, S]"""
    response_mask: Tensor
    """bool [k, T]"""
    logprobs: Tensor
    """f32 [k, T], log π_old"""
    values: Tensor
    """f32 [k, T], V_old"""
    advantages: Tensor
    """f32 [k, T], whitened over the kept tokens"""
    returns: Tensor
    """f32 [k, T], the critic's targets"""
    frozen_states: Tensor | None = None
    """[k, S, H], hidden states that leave the policy's frozen layers; None = no such layers"""

    def __post_init__(self) -> None:
        rows, width = self.response_mask.shape
        columns = self.sequences.shape[1]
        _require("sequences", self.sequences, (rows, columns), torch.int64)
        _require("attention_mask", self.attention_mask, (rows, columns), torch.bool)
        _require("response_mask", self.response_mask, (rows, width), torch.bool)
        for name in ("logprobs", "values", "advantages", "returns"):
            _require(name, getattr(self, name), (rows, width), torch.float32)
        _require_states("frozen_states", self.frozen_states, rows, columns)

    def __len__(self) -> int:
        return int(self.sequences.shape[0])

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator[PPOBatch]:
        """Split the rows, in an order drawn from `generator`, into ⌈k/size⌉ parts whose sizes differ by at most one."""
        order = torch.randperm(len(self), generator=generator)
        for rows in order.tensor_split(-(-len(self) // size)):
            yield self.select(rows)


@dataclass(frozen=True, kw_only=True)
class TailReport:
    """What the risk measure saw in one iteration: one number each, over all B episodes."""

    tail_size: int
    """k, episodes kept"""
    var: float
    """VaR of the ranking statistic at the current risk level: the largest value that is still kept"""
    cvar: float
    """mean of the ranking statistic over the kept episodes"""
    score_mean: float
    """mean score of the kept episodes"""
    kl_mean: float
    """mean Σ_t KL of the kept episodes, in nats"""
    return_mean: float
    """mean return R of all B episodes"""


@dataclass(frozen=True, kw_only=True)
class PPOStats:
    """Means over one iteration's minibatch updates, weighted by their episodes."""

    policy_loss: float
    value_loss: float
    """unweighted by vf_coef"""
    approx_kl: float
    """½ mean (log π − log π_old)², in nats²"""
    clip_fraction: float
    """share of tokens whose clipped objective was the worse one, so that they gave no gradient"""
    ratio_mean: float
    grad_norm: float
    """global norm of the gradient before clipping"""
    explained_variance: float
    """1 − Var(returns − V_old) / Var(returns), over the kept tokens"""
    optimizer_steps: int
    """minibatches whose gradient was used"""
    dropped_minibatches: int
    """minibatches whose gradient was thrown away for their ratio (`max_ratio`)"""
    kl_stopped: bool
    """whether the epochs ended early (`target_kl`)"""


@dataclass(frozen=True, kw_only=True)
class QuarkBatch(_Batch):
    """Responses of the pool; prompts are padded on the left to P tokens, responses on the right to T."""

    sequences: Tensor
    """i64 [B, P + T]"""
    attention_mask: Tensor
    """bool [B, P + T]; True = a prompt or response token"""
    response_mask: Tensor
    """bool [B, T]; True = a response token"""
    quantiles: Tensor
    """i64 [B]; 0 = the lowest scores"""

    def __post_init__(self) -> None:
        rows, width = self.response_mask.shape
        columns = self.sequences.shape[1]
        _require("sequences", self.sequences, (rows, columns), torch.int64)
        _require("attention_mask", self.attention_mask, (rows, columns), torch.bool)
        _require("response_mask", self.response_mask, (rows, width), torch.bool)
        _require("quantiles", self.quantiles, (rows,), torch.int64)

    def __len__(self) -> int:
        return len(self.sequences)


@dataclass(frozen=True, kw_only=True)
class LabelledBatch(_Batch):
    """Texts with human labels, right-padded to [B, S]."""

    input_ids: Tensor
    """i64 [B, S]"""
    attention_mask: Tensor
    """bool [B, S]; True = a token of the text"""
    labels: Tensor
    """f32 [B, L]; 1 = yes, 0 = no, NaN = unknown"""

    def __post_init__(self) -> None:
        rows, columns = self.input_ids.shape
        _require("input_ids", self.input_ids, (rows, columns), torch.int64)
        _require("attention_mask", self.attention_mask, (rows, columns), torch.bool)
        _require("labels", self.labels, (rows, self.labels.shape[1]), torch.float32)

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])


@dataclass(frozen=True, kw_only=True)
class PreferenceBatch(_Batch):
    """Pairs of texts of which a human preferred one, all right-padded to one width: one pass reads both sides."""

    chosen_ids: Tensor
    """i64 [B, S]"""
    chosen_mask: Tensor
    """bool [B, S]; True = a token of the text"""
    rejected_ids: Tensor
    """i64 [B, S]"""
    rejected_mask: Tensor
    """bool [B, S]"""

    def __post_init__(self) -> None:
        shape = tuple(self.chosen_ids.shape)
        for side in ("chosen", "rejected"):
            _require(f"{side}_ids", getattr(self, f"{side}_ids"), shape, torch.int64)
            _require(f"{side}_mask", getattr(self, f"{side}_mask"), shape, torch.bool)

    def __len__(self) -> int:
        return int(self.chosen_ids.shape[0])
