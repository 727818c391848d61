"""Silences remarks of the libraries that a user of this project can do nothing about."""

from __future__ import annotations

import logging
import warnings

from lightning_rarlhf.terminal.plain_text import visible

_REMARKS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"Found \d+ module\(s\) in eval mode at the start of training",  # dropout is off on purpose
    r"The '\w+' does not have many workers",  # batches are read from memory
    r"Checkpoint directory .* exists and is not empty",  # a resumed run writes where it wrote
    r"Experiment logs directory .* exists and is not empty",
    r"predict returned None",  # predictions go to a file
    r"FSDP2-wrapped module .* returned a view tensor",  # nothing changes it in place
    r"Trainer will use only 1 of \d+ GPUs",
)


def quiet() -> None:
    """Install the filters; what warns of a real problem still shows."""
    for remark in _REMARKS:
        warnings.filterwarnings("ignore", message=remark)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a line for every multiplication in 8 bits
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_no_tips)
        logging.getLogger(name).addFilter(_visible)


def _visible(record: logging.LogRecord) -> bool:
    """Spell out control characters: a message may name a file or a model of any name."""
    record.msg, record.args = visible(record.getMessage()), None
    return True


def _no_tips(record: logging.LogRecord) -> bool:
    """Drop Lightning's advertisements."""
    return "💡" not in record.getMessage()
