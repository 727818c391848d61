"""What trained a policy: kept in checkpoints and exported folders, so that a test can say whose responses it has.

Two runs are training seeds of one method if their records differ in the seed alone. Folders are told by what is in
them, not by their paths: a policy that was trained here by its own record, anything else by a fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_rarlhf import __version__
from lightning_rarlhf.records.method import fingerprint, method_of
from lightning_rarlhf.terminal.redaction import redacted

TRAINING = "training.json"
"""the record's file in an exported folder"""
CHOSEN = {"chosen": "best"}
"""part of the record of a state that validation chose among its fit's"""
_LENGTH = ("max_epochs", "max_steps", "limit_train_batches")
"""trainer settings that runs of one method share; one that is resumed may have others"""

_ABSENT = ("seed", "unknown_labels")
"""settings that mean the same if they are null and if they are not there, as in records from before they came"""


def training_record(module: str, settings: Mapping[str, Any] | None, *, seed: int | None, steps: int) -> dict[str, Any]:
    """What is to be known of a training, as plain numbers and texts.

    Args:
        module: the method's class.
        settings: `method_settings` of the command; None where there was no command line.
        seed: of the training.
        steps: that the trainer counted: iterations of PPO and Quark, optimizer steps of everything else.
    """
    return {
        "module": module,
        "method_sha256": None if settings is None else _sha256_of(settings),
        "settings": None if settings is None else dict(settings),
        "seed": seed,
        "steps": steps,
        "code_version": __version__,
    }


def method_settings(fit: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a `fit` configuration that makes the method: no seed, path or secret, nothing that only looks on."""
    kept = method_of(fit)
    kept["trainer"] |= {name: (fit.get("trainer") or {}).get(name) for name in _LENGTH}
    settings: dict[str, Any] = redacted({name: _canonical(value, name) for name, value in kept.items()})
    return settings


def read_training(folder: str) -> dict[str, Any] | None:
    """The record in an exported folder; None if `folder` has none."""
    path = Path(folder) / TRAINING
    try:
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def training_of_checkpoint(checkpoint: Mapping[str, Any], path: str | Path | None) -> dict[str, Any] | None:
    """The record in a checkpoint; None if it has none.

    Args:
        checkpoint: its content.
        path: of it, which tells whether it is the best that its run had found.
    """
    record = checkpoint.get("training")
    state = (checkpoint.get("callbacks") or {}).get("RunCheckpoint") or {}
    best = Path(state.get("best_model_path") or "").name
    is_best = path is not None and state.get("monitor") is not None and Path(path).name == best
    return record | CHOSEN if record and is_best else record


def write_training(folder: Path, record: Mapping[str, Any]) -> None:
    """Put the record into an exported folder."""
    (folder / TRAINING).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _canonical(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _canonical(each, name) for name, each in value.items() if each is not None or name not in _ABSENT}
    if isinstance(value, list | tuple):
        return [_canonical(each, key) for each in value]
    is_path = isinstance(value, str) and (os.sep in value or key in ("pretrained", "path", "reference"))
    return _identity_of(value) if is_path and os.path.exists(value) else value


def _identity_of(path: str) -> str:
    record = read_training(path)
    if record and record.get("method_sha256"):
        return f"trained by {record.get('module')} {record['method_sha256']}"
    return f"content {fingerprint(Path(path))}"


def _sha256_of(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
