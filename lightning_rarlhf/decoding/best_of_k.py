"""Best of k, also called rejection sampling: draw k responses, keep the one that the reward model likes best."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jsonargparse.typing import PositiveInt

from lightning_rarlhf.cached_decoding.cached_decoder import CachedDecoder
from lightning_rarlhf.data_types import PromptBatch, Samples
from lightning_rarlhf.decoding.method import DecodingMethod
from lightning_rarlhf.functional.decoding import best_of_k_kl
from lightning_rarlhf.functional.sequences import pad_right
from lightning_rarlhf.sampling import SamplingSeed


class BestOfK(DecodingMethod):
    """The best of k responses by the reward model, which is needed at every use, not only in training."""

    def __init__(self, k: PositiveInt = 4) -> None:
        """Remember k.

        Args:
            k: draws for each response that is kept; 1 = the policy alone.
        """
        super().__init__()
        best_of_k_kl(k)  # refuses k < 1
        self.k = int(k)

    @property
    def forward_passes_per_token(self) -> float:
        return float(self.k)

    @property
    def kl_excess(self) -> float:
        return best_of_k_kl(self.k)

    @property
    def kl_meaning(self) -> str:
        return (
            "upper bound: mean log-ratio of policy and reference on the chosen responses, plus log k - (k-1)/k = "
            f"{self.kl_excess:.4f} nats, the most that choosing can add; a single response's number is no sample of it"
        )

    def _draw(self, batch: PromptBatch, seed: SamplingSeed) -> Samples:
        """Draw k times, each with random numbers of its own; of equal scores the first draw's response stays."""
        seeds = [replace(seed, draw=seed.draw * self.k + number) for number in range(self.k)]
        draws = [self.run_loop(CachedDecoder(self.host.policy), batch, each) for each in seeds]
        scores = torch.stack([self.host.score(samples) for samples in draws], dim=1)
        return chosen(draws, scores.argmax(dim=1).tolist(), int(self.host.tokenizer.pad_token_id))

    def settings(self) -> dict[str, Any]:
        return {"k": self.k, "kl_bound": self.kl_excess}


def chosen(draws: list[Samples], best: list[int], pad_token_id: int) -> Samples:
    """Row b of draw `best[b]`, for each b; all draws are of one batch, their responses may differ in width."""
    width = max(samples.response_mask.shape[1] for samples in draws)
    rows = [draws[number].select(torch.tensor([row])) for row, number in enumerate(best)]
    prompt = draws[0].batch.input_ids.shape[1]
    logprobs = [row.logprobs for row in rows if row.logprobs is not None]
    return Samples(
        batch=draws[0].batch,
        sequences=torch.cat([pad_right(row.sequences, prompt + width, pad_token_id) for row in rows]),
        response_mask=torch.cat([pad_right(row.response_mask, width, False) for row in rows]),
        responses=tuple(row.responses[0] for row in rows),
        logprobs=torch.cat([pad_right(values, width, 0.0) for values in logprobs]) if logprobs else None,
    )
