"""What a resumed run takes from its checkpoint, and what it takes from the user: the user's own settings count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

Settings = list[dict[str, Any]]
"""Hyperparameters of each parameter group."""


def settings_of(optimizer: Optimizer) -> Settings:
    """The hyperparameters that an optimizer was made with, a dictionary a parameter group."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def reapply_settings(optimizer: Optimizer, configured: Settings, schedulers: list[LRScheduler]) -> list[str]:
    """Give a restored optimizer the configured hyperparameters back, which the checkpoint's had replaced.

    A scheduled learning rate keeps its place in the schedule and is scaled.

    Returns:
        A line for each hyperparameter that differed.
    """
    changed: dict[str, str] = {}
    for group, wanted in zip(optimizer.param_groups, configured, strict=True):
        for name, value in wanted.items():
            key = "initial_lr" if name == "lr" and "initial_lr" in group else name
            if _listed(group[key]) == _listed(value):
                group[key] = value
                continue
            changed[name] = f"{name} is now {value}; the checkpoint's was {group[key]}"
            if key == "initial_lr":
                group["lr"] *= value / group["initial_lr"]
            group[key] = value
    if "lr" in changed:
        for scheduler in schedulers:
            scheduler.base_lrs = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    return list(changed.values())


def _listed(value: Any) -> Any:
    """Pairs come back from some checkpoints as lists."""
    return list(value) if isinstance(value, tuple) else value
