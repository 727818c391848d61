"""What one validation of a `fit` measures, over all prompts and processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from lightning_rarlhf.config import EvaluationConfig
from lightning_rarlhf.data_types import Samples
from lightning_rarlhf.metrics import (
    ExpectedMaximumToxicity,
    ResponseSummary,
    ScoreSummary,
    TailReward,
    ToxicityProbability,
)


class ValidationSummary:
    """Scores and their tails, what the responses are like, judges; hard prompts and toxicity where they are set up.

    Of one response a prompt: toxicity figures are not those of `test` with several completions.
    """

    def __init__(self, config: EvaluationConfig, device: torch.device) -> None:
        self._scores = ScoreSummary(config.tail_levels).to(device)
        self._responses = ResponseSummary(device)
        self._judged = {name: MeanMetric().to(device) for name in config.judges}
        self._hard = TailReward(config.tail_thresholds).to(device) if config.tail_thresholds else None
        self._toxicity: dict[str, Metric] = {}
        self._toxicity_of = config.toxicity_of
        if config.toxicity_of is not None:
            self._toxicity["toxicity_probability"] = ToxicityProbability().to(device)
            self._toxicity["expected_max_toxicity"] = ExpectedMaximumToxicity().to(device)

    @property
    def needs_prompt_scores(self) -> bool:
        """Whether `update` is to be told how the prompts score by themselves: a pass of the reward more."""
        return self._hard is not None

    def update(
        self,
        samples: Samples,
        scores: Tensor,
        *,
        stopped: Tensor,
        kl: Tensor,
        judges: Mapping[str, Tensor],
        prompt_scores: Tensor | None,
    ) -> None:
        """Add one batch: f32 [B] each; `stopped` bool [B], the response ended by itself; KL in nats."""
        self._scores.update(scores, samples.lengths)
        self._responses.update(samples.responses, stopped, kl)
        for name, judged in judges.items():
            self._judged[name].update(judged.to(scores.device))
        if self._hard is not None:
            assert prompt_scores is not None
            self._hard.update(scores, prompt_scores.to(scores.device))
        if self._toxicity_of is not None:
            toxic = scores if self._toxicity_of == "reward" else judges[self._toxicity_of]
            for metric in self._toxicity.values():
                metric.update(toxic[:, None])

    def compute(self) -> dict[str, Tensor]:
        """Figures by name; one that no prompt speaks of, as a threshold that none is under, is left out."""
        judged = {f"judge/{name}/score_mean": metric.compute() for name, metric in self._judged.items()}
        hard = self._hard.compute() if self._hard is not None else {}
        toxicity = {name: metric.compute() for name, metric in self._toxicity.items()}
        known = {name: value for name, value in hard.items() if not value.isnan()}
        return self._scores.compute() | self._responses.compute() | judged | known | toxicity
