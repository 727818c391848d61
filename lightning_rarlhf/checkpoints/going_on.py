"""Which checkpoint a run goes on from, and whether it goes on as the method that it began as."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_rarlhf.checkpoints.checkpoint_file import read_checkpoint
from lightning_rarlhf.checkpoints.consent import CHECKPOINT_KEY, Change, differences, fingerprints, settings_of_method
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.one_move import recover_folder

LAST = "last.ckpt"
_MODULE = "model.class_path"


def is_requeued() -> bool:
    """Whether this is a SLURM job that has been back in the queue."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or "0") > 0


def find_checkpoint(asked: str | None, checkpoints: Path, *, requeued: bool = False) -> str | None:
    """Path of the checkpoint to go on from; None = start afresh.

    Args:
        asked: a file; ``last`` or ``best``, those of the run's folder; ``auto``, its last one if there is one; none =
            start afresh, but for a SLURM job that was requeued: the same command then goes on.
        checkpoints: the run's folder of checkpoints.
        requeued: see `asked`.

    Raises:
        UserError: there is none. (Lightning would start afresh from ``last``.)
    """
    last = checkpoints / LAST
    recover_folder(last)
    if asked == "auto" or (asked is None and requeued):
        return str(last) if last.exists() else None
    if asked is None:
        return None
    named = {"last": [last], "best": _best(checkpoints)}
    found = [path for path in named.get(asked, [Path(asked)]) if path.exists()]
    if len(found) == 1:
        return str(found[0])
    where = f"in {checkpoints}" if asked in named else "there"
    count = "no such checkpoint" if not found else f"{len(found)} such checkpoints"
    raise UserError(f"ckpt_path {asked}: {count} {where}; give a file, or leave ckpt_path out to start afresh")


def record_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint remembers of the run's settings: plain values.

    Args:
        config: the configuration of `fit`, as plain values.
    """
    settings = settings_of_method(config)
    return {"settings": settings, "fingerprints": fingerprints(settings)}


def changes_of_method(checkpoint: Path, record: Mapping[str, Any]) -> list[Change]:
    """Each setting of the method that is not the checkpoint's.

    Args:
        checkpoint: to go on from; one that was not written by the command line remembers nothing, so nothing differs.
        record: this run's own.

    Raises:
        CheckpointError: the checkpoint cannot be read.
    """
    before = read_checkpoint(checkpoint, header=True).get(CHECKPOINT_KEY)
    if not before or before["settings"].get(_MODULE) != record["settings"].get(_MODULE):
        return []  # another module's checkpoint is refused by the module, with consent or without
    return differences(before["settings"], record["settings"], before["fingerprints"], record["fingerprints"])


def require_consent(checkpoint: str, changes: list[Change]) -> None:
    """Refuse to go on as another method.

    Raises:
        UserError: settings that need consent differ; it names them all.
    """
    lines = [change.line for change in changes if change.needs_consent]
    if lines:
        raise UserError(
            f"{checkpoint} was written with other settings than this run's: {'; '.join(lines)}. Give the "
            "checkpoint's, or --resume_changed true to go on with the new ones"
        )


def _best(checkpoints: Path) -> list[Path]:
    """The best checkpoint that ``last.ckpt`` knows of, for a killed run may have left others; else every one."""
    every = sorted(checkpoints.glob("best-*.ckpt"))
    last = checkpoints / LAST
    if len(every) < 2 or not last.exists():
        return every
    state = read_checkpoint(last, header=True)["callbacks"].get("RunCheckpoint", {})
    name = Path(state.get("best_model_path") or "").name
    return [path for path in every if path.name == name] or every
