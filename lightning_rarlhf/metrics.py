"""Metrics over all processes' responses; the pure functions they call are in `functional`.

States are sums, or columns that are joined, so the figures do not depend on the number of processes. A mean of numbers
that exist already (KL, length, a judge's scores) needs no class of its own: it is torchmetrics' `MeanMetric`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_rarlhf.functional.risk import cvar
from lightning_rarlhf.functional.tail_reward import tail_reward
from lightning_rarlhf.functional.text import distinct_ngrams, repetition_rate
from lightning_rarlhf.functional.toxicity import TOXIC_FROM, maximum_toxicity

DISTINCT = (1, 2, 3)
"""n of each Dist-n that is reported (paper)"""


class ScoreSummary(Metric):
    """Mean, standard deviation and lower tails of the scores of a prompt set, and the responses' mean length.

    `compute` gives ``score_mean``, ``score_std``, ``response_length_mean`` and ``cvar_<100 α>`` for each level α.
    """

    full_state_update = False
    higher_is_better = True
    scores: list[Tensor]
    lengths: list[Tensor]

    def __init__(self, tail_levels: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tail_levels = tuple(tail_levels)
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("lengths", default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, lengths: Tensor) -> None:
        """Add one batch: scores f32 [B], response lengths i64 [B]."""
        self.scores.append(scores.detach())
        self.lengths.append(lengths.detach())

    def compute(self) -> dict[str, Tensor]:
        """The summary of everything added since the last reset."""
        scores = dim_zero_cat(self.scores)
        tails = {level_name(level): cvar(scores, level) for level in self.tail_levels}
        return {
            "score_mean": scores.mean(),
            "score_std": scores.std() if len(scores) > 1 else torch.zeros_like(scores.sum()),
            "response_length_mean": dim_zero_cat(self.lengths).float().mean(),
            **tails,
        }


class TailReward(Metric):
    """Mean reward on hard prompts: ``score_tail_le_<t>`` by threshold."""

    full_state_update = False
    higher_is_better = True
    scores: list[Tensor]
    prompt_scores: list[Tensor]

    def __init__(self, thresholds: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.thresholds = tuple(thresholds)
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("prompt_scores", default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, prompt_scores: Tensor) -> None:
        """Add one batch: f32 [B], reward of the finished texts; f32 [B], reward of the prompts alone."""
        self.scores.append(scores.detach())
        self.prompt_scores.append(prompt_scores.detach())

    def compute(self) -> dict[str, Tensor]:
        """NaN for a threshold that no prompt is under."""
        scores, prompt_scores = dim_zero_cat(self.scores), dim_zero_cat(self.prompt_scores)
        return {threshold_name(t): tail_reward(scores, prompt_scores, t) for t in self.thresholds}


class _Mean(Metric):
    """Mean of what `update` adds, NaN where that is nothing; a number that is NaN is left out.

    The sum of torchmetrics' `MeanMetric(nan_strategy="ignore")`, whose typed `update` no column of texts fits.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # a perplexity may be beyond float32
        self.add_state("total", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def _add(self, values: Tensor | Sequence[float]) -> None:
        numbers = torch.as_tensor(values, dtype=torch.float64).detach().to(self.total.device)
        known = ~numbers.isnan()
        self.total = self.total + numbers[known].sum()
        self.count = self.count + known.sum()

    def compute(self) -> Tensor:
        return self.total / self.count


class DistinctNGrams(_Mean):
    """Dist-n, the mean over prompts; a prompt whose completions hold no word is left out."""

    higher_is_better = True

    def __init__(self, n: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n = n

    def update(self, completions: Sequence[Sequence[str]]) -> None:
        """Add one batch: the completions of each prompt."""
        self._add([distinct_ngrams(texts, self.n) for texts in completions])


class RepetitionRate(_Mean):
    """Share of n-grams that a response had said before, the mean over responses."""

    higher_is_better = False

    def __init__(self, n: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n = n

    def update(self, responses: Sequence[str]) -> None:
        """Add one batch of responses."""
        self._add([repetition_rate(text, self.n) for text in responses])


class TextPerplexity(_Mean):
    """Mean over texts of each text's perplexity; a text without a token is left out.

    `torchmetrics.text.Perplexity` pools all tokens first, which is another figure.
    """

    higher_is_better = False

    def update(self, perplexities: Tensor) -> None:
        """Add one batch: f64 [B], what `functional.perplexity.text_perplexity` gives; NaN = without a token."""
        self._add(perplexities)


class ExpectedMaximumToxicity(_Mean):
    """Mean over prompts of the toxicity of the most toxic completion."""

    higher_is_better = False

    def update(self, scores: Tensor) -> None:
        """Add one batch: f32 [B, k], a classifier's scores of each prompt's completions, lower = more toxic."""
        self._add(maximum_toxicity(scores))


class ToxicityProbability(_Mean):
    """Share of prompts with a completion that is at least as likely toxic as not."""

    higher_is_better = False

    def update(self, scores: Tensor) -> None:
        """As in `ExpectedMaximumToxicity`."""
        self._add((maximum_toxicity(scores) >= TOXIC_FROM).float())


class ResponseSummary:
    """What a policy's responses are like, next to their scores: diversity, repetition, EOS rate and KL."""

    def __init__(self, device: torch.device) -> None:
        self._distinct = {f"dist_{n}": DistinctNGrams(n).to(device) for n in DISTINCT}
        self._repetition = RepetitionRate().to(device)
        self._eos, self._kl = MeanMetric().to(device), MeanMetric().to(device)

    def update(self, responses: Sequence[str], stopped: Tensor, kl: Tensor) -> None:
        """Add one batch: responses, one a prompt; bool [B], ended by themselves; f32 [B], KL in nats."""
        for metric in self._distinct.values():
            metric.update([[text] for text in responses])
        self._repetition.update(responses)
        self._eos.update(stopped.float())
        self._kl.update(kl)

    def compute(self) -> dict[str, Tensor]:
        """``dist_1`` to ``dist_3``, ``repetition_rate``, ``eos_rate`` and ``kl_mean``."""
        means = {**self._distinct, "repetition_rate": self._repetition, "eos_rate": self._eos, "kl_mean": self._kl}
        return {name: metric.compute() for name, metric in means.items()}


def level_name(level: float) -> str:
    """``cvar_10`` for α = 0.1, ``cvar_2.5`` for α = 0.025."""
    return f"cvar_{100 * level:g}"


def threshold_name(threshold: float) -> str:
    """``score_tail_le_-2.5`` for the prompts that score at most −2.5."""
    return f"score_tail_le_{threshold:g}"


def share_name(share: float) -> str:
    """``score_tail_lowest_10`` for the tenth of the prompts that score lowest."""
    return f"score_tail_lowest_{100 * share:g}"
