"""Which variance each interval of the table holds, a sentence per kind of comparison."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from lightning_rarlhf.report.methods import Method
from lightning_rarlhf.report.training_chance import Chance, chance_of_training


def variance_lines(methods: Sequence[Method]) -> list[str]:
    """Of the estimates, then of the differences to the first method; methods of which the same holds share a line."""
    estimates = ((method.label, _of_estimate(method)) for method in methods)
    differences = ((method.label, _of_difference(method, methods[0])) for method in methods[1:])
    return [
        *(f"Intervals of {labels}: {what}." for labels, what in _shared(estimates)),
        *(f"Intervals of Δ of {labels} to {methods[0].label}: {what}." for labels, what in _shared(differences)),
    ]


def _shared(said: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    labels: dict[str, list[str]] = {}
    for label, what in said:
        labels.setdefault(what, []).append(label)
    return ((", ".join(each), what) for what, each in labels.items())


def _of_estimate(method: Method) -> str:
    if len(method.runs) > 1:
        return f"variance between prompts, plus that between {_seeds(method)}"
    return {
        Chance.TRAINED: "variance between prompts alone; one run each, so what another training seed changes is not "
        "in them",
        Chance.REFERENCE: "variance between prompts; its weights are the reference's, which no training seed changes",
        Chance.UNKNOWN: "variance between prompts alone; no training of its weights is recorded, and what another "
        "training seed would change is not in them",
    }[chance_of_training(method.runs[0])]


def _of_difference(method: Method, baseline: Method) -> str:
    sides = ((method, "the method's own" if len(method.runs) > 1 else "the method"), (baseline, baseline.label))
    held = [f"{_seeds(side)} ({name})" for side, name in sides if len(side.runs) > 1]
    single = [(name, chance_of_training(side.runs[0])) for side, name in sides if len(side.runs) == 1]
    lacking, unknown = (
        " or ".join(name for name, chance in single if chance is which) for which in (Chance.TRAINED, Chance.UNKNOWN)
    )
    what = "variance between prompts, each drawn once for both sides"
    what += f", plus that between {' and that between '.join(held)}" if held else ", alone"
    if lacking:
        what += f"; nothing for another training of {lacking}, of which there is one run"
    if unknown:
        what += f"; no training of {unknown} is recorded, hence nothing for another seed of it"
    return what


def _seeds(method: Method) -> str:
    return f"{len(method.runs)} training seeds, sd²/{len(method.runs)}"
