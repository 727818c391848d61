"""One gradient step's responses: drawn from the pool, padded, each with its quantile."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_rarlhf.data_types import QuarkBatch, Samples
from lightning_rarlhf.quark.pool import QuarkPool


def rows_of_step(responses: int, step: int, size: int, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """Which responses of the pool a gradient step takes: pass after pass over all of them, each in an order of its own.

    The passes follow each other without a gap: a step at the end of one takes its other rows from the next.
    A function of its arguments alone, so that a resumed run draws what the killed one would have drawn.

    Args:
        responses: N, in the pool.
        step: 0-based, since the last exploration.
        size: responses of a step; all N where there are fewer.
        seed: of this exploration's orders.
    """
    size = min(size, responses)
    first, last = step * size, (step + 1) * size  # positions in the endless row of passes
    passes = range(first // responses, (last - 1) // responses + 1)
    orders = [np.random.default_rng([*seed, number]).permutation(responses) for number in passes]
    rows: NDArray[np.int64] = np.concatenate(orders)[first - passes[0] * responses :][:size]
    return rows


def batch_of(pool: QuarkPool, rows: NDArray[np.int64], quantiles: NDArray[np.int64], pad_id: int) -> QuarkBatch:
    """Read `rows` of the pool; `quantiles` are those of the whole pool."""
    texts = pool.read(rows)
    before, after = max(len(prompt) for prompt, _ in texts), max(len(response) for _, response in texts)
    sequences = torch.full((len(texts), before + after), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(sequences, dtype=torch.bool)
    for row, (prompt, response) in enumerate(texts):
        columns = slice(before - len(prompt), before + len(response))
        sequences[row, columns] = torch.tensor(prompt + response, dtype=torch.int64)
        mask[row, columns] = True
    return QuarkBatch(
        sequences=sequences,
        attention_mask=mask,
        response_mask=mask[:, before:],
        quantiles=torch.from_numpy(quantiles[rows]),
    )


def token_lists(samples: Samples) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and responses of finished samples as token ids without padding, for the pool."""
    columns = samples.batch.input_ids.shape[1]
    prompts = zip(samples.batch.input_ids.cpu(), samples.batch.attention_mask.cpu(), strict=True)
    responses = zip(samples.sequences[:, columns:].cpu(), samples.response_mask.cpu(), strict=True)
    return [ids[keep].tolist() for ids, keep in prompts], [ids[keep].tolist() for ids, keep in responses]
