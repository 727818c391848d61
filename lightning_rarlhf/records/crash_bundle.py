"""What a failed iteration leaves behind: its batch, as tensors and as facts, to be looked at or run again.

A bundle holds token ids, and so the texts: treat it as you treat the data.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_rarlhf import __version__
from lightning_rarlhf.data_types import PromptBatch, Rollout, Samples, TextBatch
from lightning_rarlhf.terminal.redaction import redacted

FACTS = "crash.json"
TENSORS = "tensors.safetensors"


def write_crash_bundle(folder: Path, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write ``crash.json`` and ``tensors.safetensors`` into `folder`, which appears whole or not at all.

    Secrets are taken out of the facts. A folder of that name is kept, and a number added to the new one's.

    Raises:
        OSError: the disk is full, permission is missing, ...; nothing is left then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as scratch:
        made = Path(scratch) / "bundle"
        made.mkdir()
        versions = {"code_version": __version__, "torch_version": torch.__version__}
        text = json.dumps(redacted({**facts, **versions}), indent=2, ensure_ascii=False, default=str)
        (made / FACTS).write_text(text + "\n", encoding="utf-8")
        _write_tensors(tensors, made / TENSORS)
        target = _free(folder)
        shutil.move(made, target)
    return target


def _write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # each its own copy: of a batch of one, the parts of a tensor share its memory, which the format refuses
    whole = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    try:
        save_file(whole, path)
    except SafetensorError as error:  # how the library says that the disk is full
        raise OSError(str(error)) from error


def evidence_of(part: PromptBatch | TextBatch | Samples | Rollout) -> dict[str, Tensor]:
    """Every tensor of a batch type, by its dotted name."""
    found: dict[str, Tensor] = {}
    for name, value in vars(part).items():
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, PromptBatch | Samples):
            found |= {f"{name}.{inner}": tensor for inner, tensor in evidence_of(value).items()}
    return found


def _free(folder: Path) -> Path:
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free
