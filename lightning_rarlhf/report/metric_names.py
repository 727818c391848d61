"""What the numbers of ``results.json`` are called in a table, in what unit, and which direction is better."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Direction = Literal["higher", "lower", ""]
_ARROWS: dict[Direction, str] = {"higher": " ↑", "lower": " ↓", "": ""}


@dataclass(frozen=True, kw_only=True)
class MetricName:
    """A metric as a reader sees it."""

    title: str
    unit: str = ""
    better: Direction = ""
    """empty where neither direction is better in itself"""

    @property
    def heading(self) -> str:
        """Title, unit and an arrow towards the better."""
        return f"{self.title}{f' ({self.unit})' if self.unit else ''}{_ARROWS[self.better]}"


_KNOWN = {
    "score_mean": MetricName(title="mean reward", better="higher"),
    "score_mean/wanted": MetricName(title="mean reward, wanted class", better="higher"),
    "score_mean/unwanted": MetricName(title="mean reward, unwanted class", better="higher"),
    "kl_mean": MetricName(title="KL from the reference", unit="nats"),
    "response_length_mean": MetricName(title="response length", unit="tokens"),
    "eos_rate": MetricName(title="responses that end by themselves", unit="share"),
    "perplexity": MetricName(title="perplexity of human text", better="lower"),
    "perplexity_generations": MetricName(title="perplexity of the responses under a judge", better="lower"),
    "toxicity_probability": MetricName(title="toxicity probability", better="lower"),
    "expected_max_toxicity": MetricName(title="expected maximum toxicity", better="lower"),
    "repetition_rate": MetricName(title="repetition rate", unit="share", better="lower"),
}
_PATTERNS: tuple[tuple[str, str, str, Direction], ...] = (
    (r"score_tail_le_(.+)", r"mean reward, prompt score ≤ \1", "", "higher"),
    (r"score_tail_lowest_(.+)", r"mean reward, \1 % of prompts with the lowest score", "", "higher"),
    (r"cvar_([\d.]+)", r"CVaR: mean of the worst \1 %", "", "higher"),
    (r"judge/(.+)/score_mean", r"judge \1: mean score", "", "higher"),
    (r"judge/(.+)/cvar_([\d.]+)", r"judge \1: mean of the worst \2 %", "", "higher"),
    (r"dist_(\d)", r"Dist-\1", "", "higher"),
)


def metric_name(metric: str) -> MetricName:
    """The name of `metric`; one that is not known is shown as it is written.

    >>> metric_name("cvar_10").heading
    'CVaR: mean of the worst 10 % ↑'
    """
    if metric in _KNOWN:
        return _KNOWN[metric]
    for pattern, title, unit, better in _PATTERNS:
        if re.fullmatch(pattern, metric):
            return MetricName(title=_plain(re.sub(pattern, title, metric)), unit=unit, better=better)
    return MetricName(title=_plain(metric))


def _plain(text: str) -> str:
    return re.sub(r"(?<!\w)-(?=\d)", "−", text).replace("_", " ").replace("/", ": ")
