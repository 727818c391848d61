from __future__ import annotations

import pytest

from lightning_rarlhf.records.provenance import training_record
from lightning_rarlhf.records.results import Run, read_run
from lightning_rarlhf.report.methods import Method
from lightning_rarlhf.report.variance_words import variance_lines
from tests.report.run_folders import scores_of, write_run

NONE_KNOWN = "no training of the method is recorded, hence nothing for another seed of it"
TWO, THREE = "2 training seeds, sd²/2", "3 training seeds, sd²/3"


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Method]:
    folder = tmp_path_factory.mktemp("runs")
    kls = {"start": (0.0,), "once": (1.0,), "also once": (2.0,), "twice": (1.0, 1.1), "thrice": (2.0, 2.1, 2.2)}
    kls |= {"own reference": (0.0,), "best of 4": (0.64,), "best of 4 of start": (0.64,), "experts": (0.0,)}
    trained = training_record("PPOModule", None, seed=0, steps=9)
    of_start = {"policy_sha256": "a" * 64, "reference_sha256": "a" * 64, "method": {"class_path": "BestOfK"}}
    known = {
        "start": {},
        "best of 4": {"method": {"class_path": "BestOfK"}},
        "best of 4 of start": of_start,
        "experts": of_start | {"method": {"class_path": "DExperts", "networks_sha256": ["b" * 64]}},
    }

    def run(label: str, kl: float) -> Run:
        identity = known.get(label, {"training": trained})
        return read_run(write_run(folder / f"{label}{kl}", scores_of(int(9 * kl)), kl=kl, **identity))

    return {label: Method(label=label, runs=tuple(run(label, kl) for kl in values)) for label, values in kls.items()}


def test_estimates_of_one_run_of_several_and_of_the_reference_are_told_apart(methods: dict[str, Method]) -> None:
    reference, once, twice, thrice, unknown = variance_lines(list(methods.values()))[:5]
    between = "variance between prompts"
    same = "its weights are the reference's, which no training seed changes."
    assert reference == f"Intervals of start, best of 4 of start: {between}; {same}"
    trained = "once, also once, own reference"  # tested without a reference, a trained policy has KL 0
    assert once.startswith(f"Intervals of {trained}: {between} alone; one run each, so what another training")
    nothing = "no training of its weights is recorded, and what another training seed would change is not in them."
    assert unknown == f"Intervals of best of 4, experts: {between} alone; {nothing}"
    assert twice == f"Intervals of twice: {between}, plus that between 2 training seeds, sd²/2."
    assert thrice == f"Intervals of thrice: {between}, plus that between 3 training seeds, sd²/3."


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("once, also once", "alone; nothing for another training of the method or once"),
        ("once, twice", f"plus that between {TWO} (the method's own); nothing for another training of once"),
        ("twice, once", f"plus that between {TWO} (twice); nothing for another training of the method"),
        ("twice, thrice", f"plus that between {THREE} (the method's own) and that between {TWO} (twice)"),
        ("start, twice", f"plus that between {TWO} (the method's own)"),  # no training to repeat
        ("start, once", "alone; nothing for another training of the method"),
        ("start, own reference", "alone; nothing for another training of the method"),
        ("start, best of 4 of start", "alone"),
        ("start, best of 4", f"alone; {NONE_KNOWN}"),
        (
            "once, best of 4",
            f"alone; nothing for another training of once, of which there is one run; {NONE_KNOWN}",
        ),
    ],
)
def test_a_difference_names_the_side_whose_training_it_does_not_cover(
    methods: dict[str, Method], labels: str, expected: str
) -> None:
    baseline, other = labels.split(", ")
    (line,) = (line for line in variance_lines([methods[baseline], methods[other]]) if "Δ" in line)
    if "nothing" in expected and "recorded" not in expected:
        expected += ", of which there is one run"
    prompts = "variance between prompts, each drawn once for both sides"
    assert line == f"Intervals of Δ of {other} to {baseline}: {prompts}, {expected}."
