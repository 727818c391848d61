"""The results file: what it says and how it is put in place.

``results.json`` holds the hash of the ``generations.jsonl`` that it was computed from; the two are put in place so that
neither ever stands beside an older other. Documented in docs/results.md.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_rarlhf import __version__
from lightning_rarlhf.config import EvaluationConfig
from lightning_rarlhf.functional.statistics import Interval
from lightning_rarlhf.one_move import or_say_why
from lightning_rarlhf.records.results_schema import SCHEMA_VERSION
from lightning_rarlhf.terminal.plain_text import escaped_json
from lightning_rarlhf.terminal.redaction import redacted, redacted_text

GENERATIONS = "generations.jsonl"
RESULTS = "results.json"
PREDICTIONS = "predictions.jsonl"


def results_of(
    generations: Path, metrics: Mapping[str, Interval], identity: Mapping[str, Any], config: EvaluationConfig
) -> dict[str, Any]:
    """Content of ``results.json`` for finished generations; `identity` may hold the configuration's text, `config`."""
    config_text = str(identity.get("config") or "")
    return {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "code_version": __version__,
        "code_sha256": code_sha256(),
        "torch_version": torch.__version__,
        "config_sha256": hashlib.sha256(config_text.encode()).hexdigest() if config_text else None,
        "generations_sha256": file_sha256(generations),
        "evaluation": _evaluation(config),
        **{name: value for name, value in identity.items() if name != "config"},
        "metrics": {name: _as_json(interval) for name, interval in metrics.items()},
    }


def publish(finished: Path, results: Mapping[str, Any]) -> None:
    """Put finished generations and their results in place of the former ones.

    The former results go first and the new ones come last: whenever the process is killed, ``results.json`` is either
    missing or belongs to the ``generations.jsonl`` beside it.

    Raises:
        WriteError: the disk is full, ...; the former files are as they were.
    """
    target = finished.with_name(RESULTS)
    written = target.with_name(target.name + ".partial")
    text = json.dumps(redacted(results), indent=2, ensure_ascii=False, allow_nan=False, default=str)
    try:
        with or_say_why(target), written.open("w", encoding="utf-8") as file:
            file.write(escaped_json(redacted_text(text)) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        written.unlink(missing_ok=True)
        raise
    target.unlink(missing_ok=True)
    os.replace(finished, finished.with_name(GENERATIONS))
    os.replace(written, target)


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes, whatever its size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def texts_identity(texts: Sequence[str]) -> dict[str, Any] | None:
    """Number and hash of the human texts whose perplexity is reported; None without texts."""
    if not texts:
        return None
    return {"n": len(texts), "sha256": _sha256_of(text.encode(errors="surrogatepass") for text in texts)}


def code_sha256() -> str:
    """Hash of this library's source files: tells apart two states of a checkout that has one version number."""
    root = Path(__file__).parents[1]
    files = sorted((path.relative_to(root).as_posix(), path) for path in root.rglob("*.py"))
    return _sha256_of(part for name, path in files for part in (name.encode(), path.read_bytes()))


def weights_sha256(model: nn.Module) -> str:
    """Hash of a network's parameters, by name: the same for a checkpoint and the model folder that was made of it."""
    named = sorted(model.named_parameters(), key=lambda pair: pair[0])
    return _sha256_of(part for name, weight in named for part in (name.encode(), _bytes_of(weight)))


def _bytes_of(weight: torch.Tensor) -> bytes:
    # a copy: numpy would keep FSDP2 from freeing the gathered weight that it looks at
    return (
        weight.detach()
        .cpu()
        .clone(memory_format=torch.contiguous_format)
        .reshape(-1)
        .view(torch.uint8)
        .numpy()
        .tobytes()
    )


def _sha256_of(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
        digest.update(b"\0")
    return digest.hexdigest()


def _evaluation(config: EvaluationConfig) -> dict[str, Any]:
    """The settings, with what identifies each judge in place of the judge."""
    settings = {field.name: getattr(config, field.name) for field in fields(config)}
    return settings | {"judges": {name: judge.identity() for name, judge in config.judges.items()}}


def _as_json(interval: Interval) -> dict[str, Any]:
    """An end that the data cannot tell (±inf) is null."""
    ends = {name: end if math.isfinite(end) else None for name, end in (("low", interval.low), ("high", interval.high))}
    return {**asdict(interval), **ends}
