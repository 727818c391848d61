"""In one process everything is the identity; what two processes do is tested in tests/test_two_processes.py."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from lightning_rarlhf import distributed
from lightning_rarlhf.distributed import dealt, gather_items, gather_rollout, lost_process, total
from lightning_rarlhf.loading.rehearsal import Allocations
from tests.test_data_types import ppo_batch
from tests.test_rollout import GOLDEN, rollout_of


def test_one_process_gathers_what_it_has():
    rollout = rollout_of(GOLDEN[0]["inputs"])
    assert gather_rollout(rollout, pad_token_id=2) is rollout
    assert gather_items(["a", "b"]) == ["a", "b"]
    summed = total(torch.ones(2, requires_grad=True))
    assert summed.tolist() == [1, 1]
    assert not summed.requires_grad


def as_process(monkeypatch, rank: int, of: int) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: of)
    monkeypatch.setattr(distributed, "rank", lambda: rank)


@pytest.mark.parametrize(("processes", "part_size"), [(1, None), (2, None), (2, 1), (3, 1), (7, 2)])
def test_rows_are_dealt_once_in_equally_many_parts(monkeypatch, processes, part_size):
    batch, dealt_to, parts = ppo_batch(5), [], set()
    for rank in range(processes):
        as_process(monkeypatch, rank, processes)
        own = list(dealt(batch, part_size))
        parts.add(len(own))
        counted = [
            row
            for part in own
            for row, mask in zip(part.sequences[:, 0], part.response_mask, strict=True)
            if mask.any()
        ]
        dealt_to.append([int(row) for row in counted])
        assert all(part_size is None or len(part) <= part_size for part in own)
    assert len(parts) == 1
    assert dealt_to == [list(range(5))[rank::processes] for rank in range(processes)]


def test_episodes_of_unequal_processes_come_back_in_global_order(monkeypatch):
    """Rows 0, 3, 6 on process 0, rows 1, 4, 7 on process 1, rows 2 and 5 on process 2; texts beside their numbers."""
    whole = with_texts(rollout_of(GOLDEN[0]["inputs"]))
    rows = torch.arange(len(whole))
    shares = [whole.select(rows[rank::3]) for rank in range(3)]  # 3, 3 and 2 of 8
    monkeypatch.setattr(distributed, "world_size", lambda: 3)

    def everyone(tensors, own):
        """What `all_gather` would bring: each process's tensor of the same kind."""
        kind = "shape" if own.dim() == 1 else "ints" if own.dtype == torch.int64 else "floats"
        for target, value in zip(tensors, gathered[kind], strict=True):
            target.copy_(value)

    def texts(shares_of, own):
        shares_of[:] = [list(zip(s.samples.batch.prompts, s.samples.responses, strict=True)) for s in shares]

    width = (whole.samples.batch.input_ids.shape[1], whole.response_mask.shape[1])
    tables = [distributed._tables(share, *width, 2) for share in shares]
    padded = [[torch.nn.functional.pad(t, (0, 0, 0, 3 - len(t))) for t in pair] for pair in tables]
    gathered = {
        "shape": [torch.tensor([len(share), *width]) for share in shares],
        "ints": [pair[0] for pair in padded],
        "floats": [pair[1] for pair in padded],
    }
    monkeypatch.setattr(dist, "all_gather", everyone)
    monkeypatch.setattr(dist, "all_gather_object", texts)
    back = gather_rollout(shares[1], pad_token_id=2)
    assert torch.equal(back.samples.sequences, whole.samples.sequences)
    assert torch.equal(back.response_mask, whole.response_mask)
    for name in ("scores", "logprobs", "ref_logprobs", "values", "entropy"):
        assert torch.equal(getattr(back, name), getattr(whole, name))
    assert back.samples.batch.index.tolist() == whole.samples.batch.index.tolist()
    assert back.samples.batch.prompts == whole.samples.batch.prompts
    assert back.samples.responses == whole.samples.responses


def with_texts(rollout):
    """Prompts and responses that name their row."""
    prompts, responses = (tuple(f"{kind}{row}" for row in range(len(rollout))) for kind in "pr")
    batch = replace(rollout.samples.batch, prompts=prompts)
    return replace(rollout, samples=replace(rollout.samples, batch=batch, responses=responses))


def test_a_lost_process_is_told_from_other_errors(monkeypatch):
    gloo = RuntimeError("[/x/pair.cc:553] Connection closed by peer [127.0.0.1]:8098. This is typically caused by")
    assert lost_process(gloo) is None  # alone
    as_process(monkeypatch, 1, 2)
    line = lost_process(gloo)
    assert line is not None
    assert line.startswith("process 1 of 2 lost another one (Connection closed by peer [127.0.0.1]:8098); see")
    assert lost_process(RuntimeError("shape mismatch")) is None
    assert lost_process(ValueError("timeout")) is None


@pytest.mark.parametrize("heard", [True, False])
def test_a_process_leaves_with_all_that_it_said_and_without_the_interpreters_end(heard):
    """Also where nobody reads its output any longer: that is no reason to end otherwise."""
    script = "import atexit; from lightning_rarlhf.distributed import leave; atexit.register(print, 'the end')\n"
    script += "print('so far', end=''); leave('error: lost\\n')"
    (read, write), buffered = os.pipe(), os.environ | {"PYTHONUNBUFFERED": ""}
    if not heard:
        os.close(read)
    command, streams = [sys.executable, "-c", script], {"stdout": write, "stderr": subprocess.PIPE}
    done = subprocess.run(command, **streams, env=buffered, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "error: lost\n")
    if heard:
        with os.fdopen(read) as output:
            assert output.read() == "so far"


def of_all(shares, prompt: int, response: int, monkeypatch, rank: int) -> torch.Tensor | None:
    """`shares`, rollouts with states, gathered as process `rank` does."""
    rows = torch.tensor([len(share) for share in shares])
    rounds = iter(range(int(rows.max())))

    def everyone(target, own):
        number = next(rounds)
        for process, share in enumerate(shares):
            if number < len(share):
                row = share.samples.frozen_states[number]
                left = prompt - share.samples.batch.input_ids.shape[1]
                target[process].zero_()
                target[process, left : left + len(row)] = row
        sent = target[rank] if int(rows[rank]) > number else torch.zeros_like(own[0])
        assert torch.equal(own[0], sent)

    monkeypatch.setattr(dist, "all_gather_into_tensor", everyone)
    return distributed._gather_states(shares[rank], rows, prompt, response)


def with_states(rollout, width: int = 5):
    sequences = rollout.samples.sequences
    states = torch.rand(*sequences.shape, width)
    return replace(rollout, samples=replace(rollout.samples, frozen_states=states))


def test_frozen_states_come_in_the_global_order(monkeypatch):
    whole = with_states(rollout_of(GOLDEN[0]["inputs"]))
    states = whole.samples.frozen_states
    rows, width = torch.arange(len(whole)), states.shape[1]
    prompt = whole.samples.batch.input_ids.shape[1]
    for processes in (2, 3):  # 8 episodes: equal shares, and 3, 3 and 2
        shares = [whole.select(rows[rank::processes]) for rank in range(processes)]
        for rank in range(processes):
            assert torch.equal(of_all(shares, prompt, width - prompt, monkeypatch, rank), states)
    uneven = [whole.select(rows[:1]), whole.select(rows[1:4])]
    back = of_all(uneven, prompt + 2, width - prompt + 1, monkeypatch, 0)
    assert torch.equal(back[:, 2:-1], states[:4])
    assert back[:, :2].abs().sum() + back[:, -1].abs().sum() == 0


def test_frozen_states_are_in_memory_once_while_they_come(monkeypatch):
    whole = with_states(rollout_of(GOLDEN[0]["inputs"]), width=4096)
    rows, width = torch.arange(len(whole)), whole.samples.sequences.shape[1]
    prompt = whole.samples.batch.input_ids.shape[1]
    shares = [whole.select(rows[rank::2]) for rank in range(2)]
    monkeypatch.setattr(dist, "all_gather_into_tensor", lambda target, own: None)
    with Allocations(torch.nn.Linear(1, 1)) as count:
        states = distributed._gather_states(shares[0], torch.tensor([4, 4]), prompt, width - prompt)
    assert states is not None
    own_and_all = 4 + 8
    assert count.peak < (own_and_all + 4) * 4 * states[0].numel()  # at a copy more it would be 8 rows more
