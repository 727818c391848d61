"""The same result on 1 or N processes: one global batch of episodes, and each process's share of the work on it.

Sampling and scoring are divided by prompt. Their outcome, a few numbers a token, is then gathered, so that every
process holds the episodes of all and computes the tail, the whitening, the KL coefficient and the curves from them
exactly as a single process would. Of each minibatch of the update a process takes every N-th row; its loss is divided
by the token count of the whole minibatch, so that the processes' gradients add up to the gradient of one process.

Row i of a global batch lies on process i mod N, as `datamodules.loader.PromptLoader` deals them. Without an initialised
process group all of this is the identity.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from lightning_rarlhf.data_types import PPOBatch, PromptBatch, Rollout, Samples

ItemT = TypeVar("ItemT")


def world_size() -> int:
    """Number of processes that work together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def total(values: Tensor) -> Tensor:
    """Sum over the processes, elementwise; detached."""
    if world_size() == 1:
        return values.detach()
    summed = values.detach().clone()
    dist.all_reduce(summed)
    return summed


_LOST = ("closed by peer", "reset by peer", "broken pipe", "timed out", "timeout", "nccl", "tcpstore")


def lost_process(error: BaseException) -> str | None:
    """One line for an error that means that another process is gone or stuck; None for any other error."""
    known = isinstance(error, dist.DistError) or any(sign in str(error).lower() for sign in _LOST)
    if world_size() == 1 or not isinstance(error, RuntimeError) or not known:
        return None
    said = re.sub(r"^\[[^\]]*\] *", "", str(error).strip().splitlines()[-1]).split(". ")[0]
    return (
        f"process {rank()} of {world_size()} lost another one ({said}); see what that one said, and go on from the "
        "last checkpoint with --ckpt_path last"
    )


def leave(line: str) -> NoReturn:
    """Print `line` and end this process with status 1, past the interpreter's own end.

    For a process that lost another one. Threads of torch's still talk to the lost one; while the interpreter ends they
    can abort it (SIGABRT in place of the status), or keep it until their timeout.
    """
    with suppress(OSError):  # a pipe that nobody reads any longer
        sys.stdout.flush()
    with suppress(OSError):
        sys.stderr.write(line)
        sys.stderr.flush()
    os._exit(1)


def gather_items(items: Sequence[ItemT]) -> list[ItemT]:
    """Every process's items on every process, in the order of the global batch that they were dealt from."""
    if world_size() == 1:
        return list(items)
    shares: list[Sequence[ItemT]] = [[]] * world_size()
    dist.all_gather_object(shares, list(items))
    missing = object()
    rounds = itertools.zip_longest(*shares, fillvalue=missing)
    return [item for item in itertools.chain.from_iterable(rounds) if item is not missing]  # type: ignore[misc]


def gather_rollout(rollout: Rollout, pad_token_id: int) -> Rollout:
    """The episodes of all processes on every process, in the order of the global batch.

    Processes may have different numbers of episodes (uneven batches) and responses of different lengths; the result is
    as wide as the widest.
    """
    if world_size() == 1:
        return rollout
    rows, prompt, response = _shapes(rollout)
    width = (int(prompt.max()), int(response.max()))
    ints, floats = (_gather_table(table, rows) for table in _tables(rollout, *width, pad_token_id))
    states = _gather_states(rollout, rows, *width)
    texts = gather_items(list(zip(rollout.samples.batch.prompts, rollout.samples.responses, strict=True)))
    return _from_tables(ints, floats, states, texts, *width)


def dealt(minibatch: PPOBatch, part_size: int | None) -> Iterator[PPOBatch]:
    """This process's rows of a minibatch, in parts of at most `part_size` rows (None = in one part).

    All processes get equally many parts, since each may wait for the others in its backward pass. Where the rows do not
    suffice, a part is one row of which no token counts: its loss and its gradient are 0.
    """
    rows = torch.arange(len(minibatch))[rank() :: world_size()]
    largest = -(-len(minibatch) // world_size())
    for part in rows.tensor_split(-(-largest // (part_size or largest))):
        yield minibatch.select(part) if len(part) else _weightless(minibatch)


def _shapes(rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
    """i64 [N] each, on the CPU: episodes, prompt columns and response columns of each process."""
    own = torch.tensor(
        [len(rollout), rollout.samples.batch.input_ids.shape[1], rollout.response_mask.shape[1]],
        device=rollout.scores.device,
    )
    shapes = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(shapes, own)
    rows, prompt, response = torch.stack(shapes).cpu().unbind(dim=1)
    return rows, prompt, response


def _tables(rollout: Rollout, prompt: int, response: int, pad_token_id: int) -> tuple[Tensor, Tensor]:
    """All tensors of the rollout as two tables, so that two collectives carry them."""
    samples, batch = rollout.samples, rollout.samples.batch
    left, right = prompt - batch.input_ids.shape[1], response - rollout.response_mask.shape[1]
    ints = (
        batch.index[:, None],
        batch.labels[:, None],
        pad(samples.sequences, (left, right), value=pad_token_id),
        pad(samples.attention_mask.long(), (left, right)),
    )
    per_token = (rollout.logprobs, rollout.ref_logprobs, rollout.values, rollout.entropy)
    floats = (batch.source_scores[:, None], rollout.scores[:, None], *(pad(values, (0, right)) for values in per_token))
    return torch.cat(ints, dim=1), torch.cat(floats, dim=1)


def _gather_table(table: Tensor, rows: Tensor) -> Tensor:
    """[b, C] of each process → [B, C] in the global order; `rows` [N] = the b of each."""
    most = int(rows.max())
    tables = [table.new_empty(most, table.shape[1]) for _ in range(world_size())]
    dist.all_gather(tables, pad(table, (0, 0, 0, most - len(table))).contiguous())
    there = torch.arange(most)[:, None] < rows[None, :]
    return torch.stack(tables, dim=1).flatten(0, 1)[there.flatten().to(table.device)]


def _gather_states(rollout: Rollout, rows: Tensor, prompt: int, response: int) -> Tensor | None:
    """The frozen layers' states of all episodes, if there are any: less to send than one gradient of the policy.

    They are the largest part of a rollout, so they come a row of each process at a time, to where they stay: memory
    holds them once.
    """
    samples = rollout.samples
    states = samples.frozen_states
    if states is None:
        return None
    left, right = prompt - samples.batch.input_ids.shape[1], response - samples.response_mask.shape[1]
    most, processes = int(rows.max()), len(rows)
    gathered = states.new_empty(most * processes, prompt + response, states.shape[2])
    nothing = states.new_zeros(1, *gathered.shape[1:])
    for number, of_all in enumerate(gathered.split(processes)):
        own = pad(states[number : number + 1], (0, 0, left, right)) if number < len(states) else nothing
        dist.all_gather_into_tensor(of_all, own)
    there = (torch.arange(most)[:, None] < rows[None, :]).flatten()
    episodes = int(rows.sum())
    return gathered[:episodes] if there[:episodes].all() else gathered[there.to(gathered.device)]


def _from_tables(
    ints: Tensor,
    floats: Tensor,
    states: Tensor | None,
    texts: Sequence[tuple[str, str]],
    prompt: int,
    response: int,
) -> Rollout:
    width = prompt + response
    index, labels, sequences, attention = ints.split([1, 1, width, width], dim=1)
    source_scores, scores, *per_token = floats.split([1, 1, *[response] * 4], dim=1)
    counts = attention.bool()
    prompts, responses = zip(*texts, strict=True)
    batch = PromptBatch(
        input_ids=sequences[:, :prompt].contiguous(),
        attention_mask=counts[:, :prompt].contiguous(),
        index=index.flatten(),
        prompts=prompts,
        labels=labels.flatten(),
        source_scores=source_scores.flatten(),
    )
    samples = Samples(
        batch=batch,
        sequences=sequences.contiguous(),
        response_mask=counts[:, prompt:].contiguous(),
        responses=responses,
        frozen_states=states,
    )
    logprobs, ref_logprobs, values, entropy = (part.contiguous() for part in per_token)
    return Rollout(
        samples=samples,
        scores=scores.flatten(),
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
        entropy=entropy,
    )


def _weightless(minibatch: PPOBatch) -> PPOBatch:
    row = minibatch.select(torch.zeros(1, dtype=torch.int64))
    return replace(row, response_mask=torch.zeros_like(row.response_mask))
