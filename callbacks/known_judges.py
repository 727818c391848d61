"""Whether the judge that a metric is of is there: known before a validation, as other metrics' names are not."""

from __future__ import annotations

import lightning.pytorch as pl

from lightning_rarlhf.errors import UserError

_OF_JUDGES = "val/judge/"


def require_judge(module: pl.LightningModule, metric: str, who: str) -> None:
    """Refuse a metric of a judge that the module does not ask; any other may be logged by whatever runs.

    Args:
        module: with its judges in `evaluation.judges`, if it has any.
        metric: its name, val/judge/<name>/<figure>.
        who: watches it, for the message.

    Raises:
        UserError: with the judges that there are.
    """
    judges = getattr(getattr(module, "evaluation", None), "judges", None)
    name = metric.removeprefix(_OF_JUDGES).rpartition("/")[0]
    if judges is None or not metric.startswith(_OF_JUDGES) or name in judges:
        return
    known = ", ".join(sorted(judges)) or "none"
    raise UserError(f"{who}: {metric!r} is of no judge; judges: {known}; add it to model.evaluation.judges")
