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
from lightning_rarlhf.redaction import redacted

TRAINING = "training.json"
"""the record's file in an exported folder"""
_TRAINER = (
    "max_epochs",
    "max_steps",
    "limit_train_batches",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "precision",
)
"""what of the trainer's settings changes the policy"""
_WATCHERS = ("HuggingFaceExport", "PromptPerplexity", "DriftAlarm", "TQDMProgressBar", "RichProgressBar")
"""callbacks that only look on"""
_HOW_IT_RAN = ("num_workers", "tokenizer", "tokenizer_revision", "device", "seed_everything", "dirpath", "evaluation")
_WINDOW = 65_536
"""bytes that a fingerprint reads at the beginning, middle and end of a file"""


def training_record(module: str, settings: Mapping[str, Any] | None, *, seed: int | None, steps: int) -> dict[str, Any]:
    """What is to be known of a training, as plain numbers and texts.

    Args:
        module: the method's class.
        settings: `method_settings` of the command; None where there was no command line.
        seed: of the training.
        steps: optimizer steps taken.
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
    trainer = fit.get("trainer") or {}
    callbacks = trainer.get("callbacks") or []
    kept = {
        "model": fit.get("model"),
        "data": fit.get("data"),
        "trainer": {name: trainer.get(name) for name in _TRAINER},
        "callbacks": [each for each in _as_list(callbacks) if _class_of(each) not in _WATCHERS],
    }
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


def write_training(folder: Path, record: Mapping[str, Any]) -> None:
    """Put the record into an exported folder."""
    (folder / TRAINING).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _canonical(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return {
            name: _canonical(each, name)
            for name, each in value.items()
            if name not in _HOW_IT_RAN and not (name == "seed" and each is None)
        }
    if isinstance(value, list | tuple):
        return [_canonical(each, key) for each in value]
    is_path = isinstance(value, str) and (os.sep in value or key in ("pretrained", "path", "reference"))
    return _identity_of(value) if is_path and os.path.exists(value) else value


def _identity_of(path: str) -> str:
    record = read_training(path)
    if record and record.get("method_sha256"):
        return f"trained by {record.get('module')} {record['method_sha256']}"
    return f"content {_fingerprint(Path(path))}"


def _fingerprint(path: Path) -> str:
    """Hash of names, sizes and parts of the contents of a file, or of the files right in a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if not file.is_file():
            continue
        size = file.stat().st_size
        digest.update(f"{file.name if path.is_dir() else ''} {size}\0".encode())
        with file.open("rb") as content:
            for start in sorted({0, max(0, size // 2), max(0, size - _WINDOW)}):
                content.seek(start)
                digest.update(content.read(_WINDOW))
    return digest.hexdigest()


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _class_of(callback: Any) -> str:
    name = callback.get("class_path", "") if isinstance(callback, Mapping) else str(callback)
    return str(name).rpartition(".")[2]


def _sha256_of(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
