"""What must not change unnoticed when a run goes on from its checkpoint: everything that the trained policy depends on.

A checkpoint holds the run's settings and a fingerprint of each local file or folder that they name. A resumed run
compares its own: a setting of the method that differs needs the user's consent, one that moves no number (how long, how
often, where to) does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_rarlhf.records.method import fingerprint, method_of, name_of

CHECKPOINT_KEY = "resume"
"""of a checkpoint's entry with the settings and the fingerprints"""

_PACE = re.compile(r"model\.optimizer\.(?!class_path$).*")  # another optimizer's state means nothing to this one
"""how fast the same goal is approached: what users turn in the middle of a run, and mean to"""
_PATH = re.compile(r".*\b(pretrained|reference|adapter|\w*path|\w*file)")
"""settings that may name a local file or folder"""


@dataclass(frozen=True)
class Change:
    """A setting that is not the checkpoint's."""

    line: str
    """``key: old → new``"""
    needs_consent: bool
    """otherwise it counts, and is said"""


def settings_of_method(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key → value of what the trained policy depends on, from a run's configuration as plain values."""
    method = method_of(config)
    found = {key: value for part in ("model", "data", "trainer") for key, value in _flat(part, method[part])}
    for callback in method["callbacks"]:
        key = f"trainer.callbacks.{name_of(callback)}"
        settings = callback.get("init_args") if isinstance(callback, Mapping) else None
        found |= {key: "used"} | (dict(_flat(key, settings)) if settings else {})
    return found


def fingerprints(settings: Mapping[str, Any]) -> dict[str, str]:
    """Of each model or data setting that names a local file or folder: a hash that tells whether it is the same.

    What callbacks name is mostly written by them.
    """
    named = {
        key: Path(value).expanduser()
        for key, value in settings.items()
        if isinstance(value, str) and _PATH.fullmatch(key) and not key.startswith("trainer.")
    }
    return {key: fingerprint(path) for key, path in named.items() if path.exists()}


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], prints: Mapping[str, str], prints_now: Mapping[str, str]
) -> list[Change]:
    """Each setting of the method that differs.

    A file or folder that has moved is the same one; one whose content has changed in its place is not.

    Args:
        before: the checkpoint's settings.
        now: this run's.
        prints: the fingerprints in the checkpoint.
        prints_now: this run's.
    """
    changes = []
    for key in dict.fromkeys((*before, *now)):
        same_file = key in prints and key in prints_now and prints[key] == prints_now[key]
        if same_file or _below_another_class(key, before, now):
            continue
        old, new = before.get(key), now.get(key)
        if old != new:
            changes.append(Change(f"{_shown(key)}: {old} → {new}", not _PACE.fullmatch(key)))
        elif key in prints and key in prints_now:
            changes.append(Change(f"{_shown(key)}: {old} → another content at the same place", needs_consent=True))
    return changes


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
