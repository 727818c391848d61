"""What of a run's configuration makes its method: everything that the trained policy depends on.

One list for the two that ask: a resumed run, which must go on as it began (`lightning_rarlhf.checkpoints.consent`), and
the record of a training, which tells whether two runs are seeds of one method (`lightning_rarlhf.records.provenance`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TRAINER = (
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "precision",
)
"""what of the trainer's settings moves the policy, besides the length of the run"""
_TRAINER_IF_SET = ("limit_train_batches", "overfit_batches", "plugins")
"""the same of settings that few runs have; unset they are no part of the method"""
_HOW_IT_RAN = re.compile(
    r"model\.evaluation"  # never trains
    r"|model\.policy\.(gradient_checkpointing|attn_implementation|compile_sampling)"  # equal up to rounding
    r"|model\.reward(\..*)?\.(batch_size|retry)"
    r"|model\.guard\.(crash_bundles|max_skips)"  # what is kept of a failure, and when the run ends of them
    r"|model\.ppo\.micro_(rollout_)?batch_size"  # the same gradient, the same episodes in smaller parts
    r"|data\.(progress|eval_batch_size)"
    r"|data\.order_seed"  # a resumed run's order goes on by the checkpoint's own
    r"|data\.tokenizer(_revision)?"  # the policy's
    r"|(.*\.)?(device|num_workers)"
)
"""dotted settings of the model and the data that move no number of it, at most the last digits"""
_LIGHTNINGS = ("lightning.pytorch.callbacks.", "pytorch_lightning.callbacks.")
_INTERFERING = (
    "GradientAccumulationScheduler",
    "StochasticWeightAveraging",
    "WeightAveraging",
    "EMAWeightAveraging",
    "LambdaCallback",
)
"""of Lightning's own callbacks those that can change what is learned"""
_WATCHERS = ("HuggingFaceExport", "PromptPerplexity", "DriftAlarm", "TQDMProgressBar", "RichProgressBar")
"""callbacks that only look on; one of the user's own may do anything, so it is part of the method"""
_WHOLE = 2**28
"""bytes up to which a fingerprint reads a file whole (256 MiB, a fraction of a second)"""
_WINDOW = 65_536
"""bytes that it reads at the beginning, middle and end of a larger file"""


def method_of(fit: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a `fit` configuration that makes the method: no seed, length or folder, nothing that only looks on.

    Returns:
        ``model`` and ``data`` nested as in `fit`, ``trainer`` with the settings that matter, and ``callbacks``,
        a list.
    """
    trainer = fit.get("trainer") or {}
    callbacks = trainer.get("callbacks") or []
    return {
        "model": _without_how(fit.get("model"), "model"),
        "data": _without_how(fit.get("data"), "data"),
        "trainer": {name: trainer[name] for name in _TRAINER if name in trainer}
        | {name: trainer[name] for name in _TRAINER_IF_SET if trainer.get(name)},
        "callbacks": [each for each in _as_list(callbacks) if not _only_looks_on(each)],
    }


def name_of(callback: Any) -> str:
    """A callback's class without its module."""
    return _class_path(callback).rpartition(".")[2]


def fingerprint(path: Path) -> str:
    """Hash of names, sizes and contents of a file, or of all files below a folder.

    Of files above 256 MiB beginning, middle and end are read, not every byte: that takes no time for large models.
    """
    digest = hashlib.sha256()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path)}\0{size}\0".encode())
        with file.open("rb") as content:
            if size <= _WHOLE:
                digest.update(hashlib.file_digest(content, "sha256").digest())
                continue
            for start in (0, size // 2, size - _WINDOW):
                content.seek(start)
                digest.update(content.read(_WINDOW))
    return digest.hexdigest()


def _without_how(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        # init_args says nothing of its own: model.init_args.kl.target is model.kl.target to the user
        keys = {name: key if name == "init_args" else f"{key}.{name}" for name in value}
        return {name: _without_how(value[name], keys[name]) for name in value if not _HOW_IT_RAN.fullmatch(keys[name])}
    if isinstance(value, list | tuple):
        return [_without_how(each, key) for each in value]
    return value


def _only_looks_on(callback: Any) -> bool:
    name = name_of(callback)
    return name in _WATCHERS or (_class_path(callback).startswith(_LIGHTNINGS) and name not in _INTERFERING)


def _class_path(callback: Any) -> str:
    return str(callback.get("class_path", "") if isinstance(callback, Mapping) else callback)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
