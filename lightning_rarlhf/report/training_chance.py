"""Whether another training seed would change a run: what its results say of the weights that were tested."""

from __future__ import annotations

from enum import Enum

from lightning_rarlhf.records.results import Run
from lightning_rarlhf.report.identity import drawn_by, training_of


class Chance(Enum):
    """What the chance of training has to do with a run."""

    TRAINED = "a training is recorded"
    REFERENCE = "the weights are those of the reference that KL is measured from, and no training of them is recorded"
    UNKNOWN = "no training is recorded: results of version 1, a model from elsewhere, or a method with other networks"


def chance_of_training(run: Run) -> Chance:
    """Of the weights that were tested; a record decides, for a policy that is tested without a reference has KL 0."""
    if training_of(run):
        return Chance.TRAINED
    return Chance.REFERENCE if has_reference_weights(run) else Chance.UNKNOWN


def has_reference_weights(run: Run) -> bool:
    """Whether no weights but the reference's were tested, by their hashes or a KL of 0 everywhere.

    How responses are drawn from them may differ (best of k, a prefix, a filter): KL need not be 0. A decoding-time
    method with networks of its own, which may have been trained, has other weights.
    """
    if drawn_by(run).get("networks_sha256"):
        return False
    policy, reference = (run.identity.get(name) for name in ("policy_sha256", "reference_sha256"))
    return not has_moved(run) or (policy is not None and policy == reference)


def has_moved(run: Run) -> bool:
    """Whether any response has a KL other than 0."""
    return bool((run.columns["kl"] != 0).any())
