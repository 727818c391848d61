"""Run by test_estimate.py in a process of its own: one real update, and how far the process's memory rose for it."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from pathlib import Path

import torch

from lightning_rarlhf.config import LoRAConfig, PolicyConfig, SamplingConfig
from lightning_rarlhf.loading.policy_loading import load_actor_critic
from lightning_rarlhf.loading.tokenizer import load_tokenizer
from lightning_rarlhf.terminal.quiet import quiet


def status(name: str) -> int:
    """Bytes, by the kernel's count of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def main(folder: str, cases: list[tuple[bool, bool, int]], sizes: tuple[int, int, int]) -> None:
    """Print the rise for each case (checkpointing, LoRA, frozen layers), each in a child: libraries are loaded once."""
    quiet()
    # large blocks go back to the system when they are freed, so that the count is that of live memory
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(-3, 1 << 16)
    for case in cases:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            print(json.dumps(rise(libc, folder, *case, *sizes)), flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0


def rise(
    libc: ctypes.CDLL, folder: str, checkpointing: bool, lora: bool, frozen: int, rows: int, prompt: int, response: int
) -> int:
    """Bytes at the peak of an update, above what there was before."""
    policy = PolicyConfig(
        pretrained=folder,
        gradient_checkpointing=checkpointing,
        lora=LoRAConfig(r=16) if lora else None,
        frozen_layers=frozen,
    )
    one_update(policy, folder, 1, 2, 2)  # libraries are loaded by now, and are not what is measured
    gc.collect()
    libc.malloc_trim(0)
    before = status("VmRSS")
    one_update(policy, folder, rows, prompt, response)
    return status("VmHWM") - before


def one_update(policy: PolicyConfig, folder: str, rows: int, prompt: int, response: int) -> None:
    actor = load_actor_critic(policy, load_tokenizer(folder)).train()
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.data = parameter.data.clone()  # out of the file's pages
    optimizer = torch.optim.Adam([p for p in actor.parameters() if p.requires_grad])
    ids = torch.randint(3, 16, (rows, prompt + response))
    mask = torch.ones_like(ids, dtype=torch.bool)
    states = actor.frozen_states(ids, mask)
    for _ in range(2):
        optimizer.zero_grad()
        Path("/proc/self/clear_refs").write_text("5")
        output = actor(ids, mask, mask[:, prompt:], SamplingConfig(max_new_tokens=response), states)
        (output.logprobs.sum() + output.values.sum()).backward()
        optimizer.step()
        del output


if __name__ == "__main__":
    main(sys.argv[1], *(json.loads(word) for word in sys.argv[2:]))
