"""Settings of the method, with unit and source at each field; the command line's help is made from these texts.

Defaults are the paper's (Risk-Averse Fine-tuning of Large Language Models, NeurIPS 2024). An option that reproduces the
authors' public code where it differs from the paper says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from torch import Tensor

from lightning_rarlhf.errors import UserError
from lightning_rarlhf.functional.checks import least_resamples
from lightning_rarlhf.number_types import Fraction, require_in_range

DType = Literal["float32", "bfloat16", "float16"]
PolicyDType = Literal["float32", "bfloat16"]
"""float16 overflows in sampling: probabilities are NaN within an iteration"""
RankBy = Literal["return", "lambda_return", "score"]
Ties = Literal["exact", "keep"]
Quantization = Literal["8bit", "4bit"]
ControllerKL = Literal["kept_mean", "all_mean", "kept_sum_over_batch"]


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adapters (Hu et al. 2021): W stays, W + (α / r) B A is used, and only A and B are trained, in float32.

    There is no dropout, as nowhere else in this library, and no trained bias: the reference is the same network with
    its adapters off, and a bias would have moved.
    """

    r: PositiveInt = 16
    """rank of each adapter (paper: 16)"""
    alpha: PositiveInt = 16
    """α; the adapter's output is scaled by α / r (paper: 16)"""
    target_modules: list[str] | None = None
    """ends of the names of the layers that get an adapter (q_proj, ...), or all-linear; none = the architecture's usual
    ones: q_proj and v_proj for GPT-J (paper), Llama and Qwen, c_attn for GPT-2"""

    def __post_init__(self) -> None:
        require_in_range(self)


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """The language model that is trained."""

    pretrained: str = "gpt2"
    """hub id, or folder written by `save_pretrained`; a folder that holds a LoRA adapter is loaded with its base"""
    revision: str | None = None
    """commit, tag or branch on the hub; none = its main branch"""
    trust_remote_code: str | None = None
    """the name of pretrained again, if code that it ships may run; from the hub only with revision = a commit. none =
    refuse such a model"""
    lora: LoRAConfig | None = None
    """train low-rank adapters instead of all weights; the reference is then the same network without them, and costs no
    memory. {} = r 16, α 16. none = train everything"""
    frozen_layers: NonNegativeInt = 0
    """do not train the embeddings and this many of the first blocks, and let policy and reference share them: their
    weights are in memory once, and a batch's sequences go through them once an iteration (TRL's num_shared_layers). An
    output layer that is tied to the embeddings is frozen too. With lora: no adapters in these blocks"""
    quantization: Quantization | None = None
    """keep the linear layers' weights in 8 or 4 (nf4) bits by bitsandbytes; fit needs lora with it. The output layer
    and the value head are never quantised"""
    dtype: PolicyDType = "float32"
    """of the weights, whatever the checkpoint's own; keep float32 for a fully trained policy, as steps of
    1e-5 vanish in bfloat16"""
    gradient_checkpointing: bool = False
    """recompute the trunk's activations in the backward pass: less memory, more time"""
    attn_implementation: str | None = None
    """attention kernel by the name that transformers gives it (eager, sdpa, ...); none = the model's default"""
    compile_sampling: bool = False
    """draw responses by steps that torch's compiler has made one function of, on a GPU a CUDA graph: the same
    distribution, without Python between a step's kernels. The first batch of a size waits for the compiler, a minute or
    so; key-value cache and, in bf16-mixed, bfloat16 copies of the linear layers stay in memory. Not with quantization,
    FSDP or a decoding-time method"""

    def __post_init__(self) -> None:
        require_in_range(self)

    @property
    def trains_part(self) -> bool:
        """Whether some of the network's weights stay as they are, and so need not be in a checkpoint."""
        return self.lora is not None or self.frozen_layers > 0


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """The distribution that responses are drawn from. Log-probabilities are always those of this very distribution."""

    max_new_tokens: PositiveInt = 48
    """response tokens at most (paper: 48 IMDB, 32 Jigsaw and RealToxicityPrompts)"""
    min_new_tokens: NonNegativeInt = 0
    """response tokens before the end-of-text token may be drawn"""
    temperature: PositiveFloat = 1.0
    """divides the logits before anything else (paper: 1)"""
    top_k: NonNegativeInt = 0
    """draw from the k likeliest tokens only; 0 = all (paper)"""
    top_p: Fraction = 1.0
    """draw from the likeliest tokens that hold this share of the mass; 1 = all (paper)"""

    def __post_init__(self) -> None:
        require_in_range(self)
        if self.min_new_tokens > self.max_new_tokens:
            raise UserError(
                f"min_new_tokens={self.min_new_tokens} is more than max_new_tokens={self.max_new_tokens}: lower it"
            )


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """One iteration's update (paper, section 4 and table 5)."""

    epochs: PositiveInt = 4
    """passes over the kept episodes"""
    minibatch_size: PositiveInt = 128
    """episodes per optimizer step, over all processes; a tail smaller than this is one minibatch"""
    micro_batch_size: PositiveInt | None = None
    """episodes per forward and backward pass of each process: smaller = less memory, the same gradient; none = a
    process's whole share of the minibatch on an accelerator, about 2,000 tokens on a CPU, which is faster there"""
    micro_rollout_batch_size: PositiveInt | None = None
    """episodes that each process samples at a time; while the next are sampled, a reward that works elsewhere (over
    HTTP, on another device) scores the last in a thread of its own. Smaller = less memory for the key-value cache, the
    same responses, but every part takes sampling's steps anew. none = all episodes at once, then the reward"""
    gamma: ClosedUnitInterval = 1.0
    """discount per token"""
    lam: ClosedUnitInterval = 0.95
    """λ of generalised advantage estimation"""
    cliprange: PositiveFloat = 0.2
    """the probability ratio is clipped to 1 ± this"""
    cliprange_value: PositiveFloat = 0.2
    """a value moves at most this far from the old one before its loss is clipped"""
    vf_coef: NonNegativeFloat = 0.1
    """weight of the critic's loss"""
    whiten_advantages: bool = True
    """centre and scale the advantages over the kept tokens"""
    max_grad_norm: PositiveFloat | None = None
    """clip the gradient to this global norm; none = no clipping (paper)"""
    max_ratio: PositiveFloat | None = None
    """throw away the gradient of a minibatch whose mean probability ratio π/π_old is above this (TRL: 10); none =
    never (paper)"""
    target_kl: PositiveFloat | None = None
    """end the iteration's epochs at the first minibatch whose ½ mean (log π − log π_old)² is above this, in nats²;
    none = run them all (paper)"""
    rank_by: RankBy = "return"
    """statistic that ranks episodes: their return (paper), the critic's λ-return at the first response token (authors'
    code), or the bare score"""
    ties: Ties = "exact"
    """episodes that tie at the quantile: keep exactly ⌈α′B⌉ (paper) or every one of them (authors' code)"""

    def __post_init__(self) -> None:
        require_in_range(self)


@dataclass(frozen=True, kw_only=True)
class KLConfig:
    """The KL penalty's coefficient β and its controller (paper, Eqs. 4 and 12)."""

    init_kl_coef: NonNegativeFloat = 0.2
    """β at iteration 0; 0, no penalty, is for adaptive: false only"""
    adaptive: bool = True
    """move β so that the observed KL approaches the target; false = β stays"""
    target: PositiveFloat = 6.0
    """KL per episode, in nats"""
    horizon: PositiveInt = 10_000
    """episodes over which β can move by a factor of e^0.2: K_β = batch / horizon, which must be less than 5"""
    observe: ControllerKL = "kept_mean"
    """KL that the controller sees: mean over the kept episodes (paper), mean over all, or sum over the kept divided
    by B (authors' code)"""

    def __post_init__(self) -> None:
        require_in_range(self)


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What happens when a logit, a score, the loss or the gradient is not finite. No weight is ever updated with it."""

    on_failure: Literal["stop", "skip"] = "stop"
    """stop = end the run; skip = drop the rest of the iteration (of the optimizer step, in SFT) and go on"""
    max_skips: PositiveInt = 10
    """iterations skipped one after the other before the run ends all the same"""
    crash_bundles: NonNegativeInt = 3
    """failures of a run whose batch is written to its folder crash; 0 = none"""

    def __post_init__(self) -> None:
        require_in_range(self)


@dataclass(frozen=True, kw_only=True)
class QuarkConfig:
    """Quark's pool and its update (Lu et al. 2022; defaults are the authors' where nothing else is said)."""

    quantiles: PositiveInt = 5
    """K, parts that the pool is sorted into by score, and reward tokens"""
    sample_interval: PositiveInt = 4
    """gradient steps between two explorations: those of one iteration (authors: 500, each exploration with every
    prompt of the training set; about as many responses a step come of data.batch_size 64,000)"""
    initial_iterations: PositiveInt = 8
    """first iterations whose responses come from the reference, not from the policy at its best token (authors: 1,
    with every prompt)"""
    batch_size: PositiveInt = 128
    """responses of the pool per gradient step, and prompts per pass of an exploration"""
    kl_coef: NonNegativeFloat = 0.05
    """weight of KL(π(·|token) ‖ π_ref) per token, in nats"""
    entropy_coef: NonNegativeFloat = 0.06
    """weight of the entropy per token, in nats"""
    warmup: ClosedUnitInterval = 0.02
    """share of the gradient steps over which the learning rate rises linearly; it falls linearly to 0 after that
    (authors: 500 of 23,437 steps)"""
    exploration_top_p: Fraction = 1.0
    """top-p of the responses that go into the pool; those of validation, test and predict follow model.sampling"""
    max_grad_norm: PositiveFloat | None = None
    """clip the gradient to this global norm; none = no clipping"""
    pool: str | None = None
    """folder of the pool; none = quark_pool in the run's folder"""

    def __post_init__(self) -> None:
        require_in_range(self)
        if self.quantiles < 2:
            raise UserError(f"quantiles={self.quantiles}: one quantile does not tell good from bad; expected 2 or more")


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The network that becomes a reward model."""

    pretrained: str = "distilbert-base-uncased"
    """hub id or folder of any network that transformers can put a classification head on: an encoder, a causal language
    model, or a classifier to go on with"""
    revision: str | None = None
    """commit, tag or branch on the hub; none = its main branch"""


class Judge(ABC):
    """What evaluation asks of a `RewardModel`; stands here so that the settings below can name it.

    Attributes:
        texts_cut: texts so far of which a part was not read, being longer than the model reads.
    """

    texts_cut: int = 0

    @abstractmethod
    def load(self, device: torch.device) -> None:
        """Load weights onto `device`; called once, before the first batch."""

    @abstractmethod
    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """f32 [B], one finite score per response, higher = better."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What result files say of this judge."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How validation, test and predict sample and what they report."""

    seed: NonNegativeInt = 0
    """of the responses; leave it alone across runs that are compared: equal prompts then get equal random numbers"""
    completions: PositiveInt = 1
    """k, responses per prompt in test and predict (paper: 1); 25 is usual for toxicity"""
    tail_thresholds: tuple[float, ...] = ()
    """tail reward = mean score of the prompts whose own score is at most this (paper: -2.5 IMDB, 5 Jigsaw and RTP)"""
    tail_levels: tuple[Fraction, ...] = (0.01, 0.05, 0.1, 0.2)
    """α of each CVaR that is reported, the mean of the lowest ⌈αN⌉ scores, and of each mean score of the ⌈αN⌉ prompts
    whose own score is lowest"""
    judges: dict[str, Judge] = field(default_factory=dict)
    """held-out rewards by a name of your choice; they score what validation, test and predict generate, and none is
    trained on"""
    toxicity_of: str | None = None
    """whose score is a toxicity classifier's logit with sign -1: reward, or a judge's name; test then reports toxicity
    probability and expected maximum toxicity over the completions of a prompt. none = neither"""
    perplexity_texts: NonNegativeInt | None = None
    """human texts whose perplexity under the policy test measures; none = every test text of the wanted class (paper),
    0 = no perplexity"""
    perplexity_judge: str | None = None
    """hub id (owner/model@revision pins it) or folder of a frozen language model under which test measures the
    responses' perplexity; none = not"""
    confidence: Fraction = 0.95
    """of every interval, less than 1"""
    resamples: PositiveInt = 2000
    """bootstrap resamples, by prompt"""

    def __post_init__(self) -> None:
        require_in_range(self)
        if self.confidence >= 1:
            raise UserError(f"confidence={self.confidence}: only an infinite interval is certain; expected less than 1")
        least = least_resamples(self.confidence)
        if self.resamples < least:
            raise UserError(
                f"resamples={self.resamples}: too few for confidence={self.confidence}, expected at least {least}"
            )
        for name in self.judges:
            if not name or name == "reward" or "/" in name:
                raise UserError(
                    f"judges: {name!r} cannot be a judge's name; expected one without '/' other than reward"
                )
        if self.toxicity_of is not None and self.toxicity_of not in ("reward", *self.judges):
            known = ", ".join(("reward", *self.judges))
            raise UserError(f"toxicity_of={self.toxicity_of}: expected one of the scores that there are: {known}")
