from __future__ import annotations

import pytest

from lightning_rarlhf.report.methods import Method
from lightning_rarlhf.report.variance_words import variance_lines
from lightning_rarlhf.results import read_run
from tests.report.run_folders import scores_of, write_run

TWO, THREE = "2 training seeds, sd²/2", "3 training seeds, sd²/3"


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Method]:
    folder = tmp_path_factory.mktemp("runs")
    kls = {"start": (0.0,), "once": (1.0,), "also once": (2.0,), "twice": (1.0, 1.1), "thrice": (2.0, 2.1, 2.2)}
    return {
        label: Method(
            label=label,
            runs=tuple(read_run(write_run(folder / f"{label}{kl}", scores_of(int(9 * kl)), kl=kl)) for kl in values),
        )
        for label, values in kls.items()
    }


def test_estimates_of_one_run_of_several_and_of_the_reference_are_told_apart(methods: dict[str, Method]) -> None:
    reference, once, twice, thrice = variance_lines(list(methods.values()))[:4]
    between = "variance between prompts"
    assert reference == f"Intervals of start: {between}; it is the reference itself, which no training seed changes."
    assert once.startswith(f"Intervals of once, also once: {between} alone; one run each, so what another training")
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
    ],
)
def test_a_difference_names_the_side_whose_training_it_does_not_cover(
    methods: dict[str, Method], labels: str, expected: str
) -> None:
    baseline, other = labels.split(", ")
    (line,) = (line for line in variance_lines([methods[baseline], methods[other]]) if "Δ" in line)
    if "nothing" in expected:
        expected += ", of which there is one run"
    prompts = "variance between prompts, each drawn once for both sides"
    assert line == f"Intervals of Δ of {other} to {baseline}: {prompts}, {expected}."
