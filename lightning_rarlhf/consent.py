"""What must not change unnoticed when a run goes on from its checkpoint: everything that the trained policy depends on.

A checkpoint holds the run's settings and a fingerprint of each local file or folder that they name. A resumed run
compares its own: a setting of the method that differs needs the user's consent, one that moves no number (how long, how
often, where to) does not.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CHECKPOINT_KEY = "resume"
"""of a checkpoint's entry with the settings and the fingerprints"""

_TRAINER_SETTINGS = ("precision", "limit_train_batches", "gradient_clip_val", "gradient_clip_algorithm")
_SFT_STEP = "accumulate_grad_batches"
"""how many batches make a step, in modules that leave stepping to the trainer"""
_HARMLESS = re.compile(
    r"model\.evaluation(\..*)?"  # never trains
    r"|model\.policy\.(gradient_checkpointing|attn_implementation)"  # equal up to rounding
    r"|model\.reward(\..*)?\.(batch_size|device)"
    r"|model\.ppo\.micro_batch_size"  # the same gradient in smaller parts
    r"|data\.(progress|eval_batch_size)"
    r"|data\.order_seed"  # the order goes on by the checkpoint's own
    r"|data\.tokenizer(_revision)?"  # the policy's
)
_INTERFERING = {
    "RiskSchedule",
    "GradientAccumulationScheduler",
    "StochasticWeightAveraging",
    "WeightAveraging",
    "EMAWeightAveraging",
}
"""callbacks that change what is learned; all others of ours and of Lightning watch, write or stop"""
_PATH = re.compile(r".*\b(pretrained|reference|adapter|\w*path|\w*file)")
"""settings that may name a local file or folder"""
_READ = 1 << 16
"""bytes of a file's beginning and of its end that a fingerprint covers, beside its size"""


def settings_of_method(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key → value of what the trained policy depends on, from a run's configuration as plain values."""
    trainer = config.get("trainer") or {}
    found = dict(_flat("model", config.get("model"))) | dict(_flat("data", config.get("data")))
    found |= {f"trainer.{name}": trainer.get(name) for name in (*_TRAINER_SETTINGS, _SFT_STEP) if name in trainer}
    callbacks = trainer.get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        name = str(callback.get("class_path", "")).rpartition(".")[2]
        if name in _INTERFERING:
            found |= dict(_flat(f"trainer.callbacks.{name}", callback.get("init_args") or {}))
            found.setdefault(f"trainer.callbacks.{name}", "used")
    return {key: value for key, value in found.items() if not _HARMLESS.fullmatch(key)}


def fingerprints(settings: Mapping[str, Any]) -> dict[str, str]:
    """Of each setting that names a local file or folder: a hash that tells whether its content is the same.

    Sizes, beginnings and ends of the files are hashed, not every byte of them: that takes no time for large models.
    """
    named = {
        key: Path(value).expanduser()
        for key, value in settings.items()
        if isinstance(value, str) and _PATH.fullmatch(key)
    }
    return {key: _fingerprint(path) for key, path in named.items() if path.exists()}


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], prints: Mapping[str, str], prints_now: Mapping[str, str]
) -> list[str]:
    """A line ``key: old → new`` for each setting of the method that differs.

    A file or folder that has moved is the same one; one whose content has changed in its place is not.

    Args:
        before: the checkpoint's settings.
        now: this run's.
        prints: the fingerprints in the checkpoint.
        prints_now: this run's.
    """
    lines = []
    for key in dict.fromkeys((*before, *now)):
        same_file = key in prints and key in prints_now and prints[key] == prints_now[key]
        if same_file or _below_another_class(key, before, now):
            continue
        old, new = before.get(key), now.get(key)
        if old != new:
            lines.append(f"{_shown(key)}: {old} → {new}")
        elif key in prints and key in prints_now:
            lines.append(f"{_shown(key)}: {old} → another content at the same place")
    return lines


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            # init_args says nothing of its own: model.init_args.kl.target is model.kl.target to the user
            yield from _flat(prefix if key == "init_args" else f"{prefix}.{key}", inner)
    elif isinstance(value, list | tuple) and any(isinstance(inner, Mapping) for inner in value):
        for number, inner in enumerate(value):
            yield from _flat(f"{prefix}.{number}", inner)
    else:
        yield prefix, list(value) if isinstance(value, tuple) else value


def _below_another_class(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the class that this setting belongs to is another one now: its line says enough."""
    parts = key.split(".")
    owners = [".".join(parts[:end]) + ".class_path" for end in range(1, len(parts))]
    return any(before.get(owner) != now.get(owner) for owner in owners if owner != key)


def _shown(key: str) -> str:
    return key.removesuffix(".class_path")


def _fingerprint(path: Path) -> str:
    digest = hashlib.sha256()
    files = sorted(entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else [path]
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path)}\0{size}\0".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_READ))
            stream.seek(max(0, size - _READ))
            digest.update(stream.read(_READ))
    return digest.hexdigest()
