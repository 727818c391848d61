from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_rarlhf.errors import UserError
from lightning_rarlhf.records.provenance import CHOSEN, training_record
from lightning_rarlhf.records.results import Run, read_run
from lightning_rarlhf.report.comparison import compare
from lightning_rarlhf.report.document import Report, write_report
from lightning_rarlhf.report.methods import group
from lightning_rarlhf.report.notes import kl_bounds, notes
from lightning_rarlhf.report.seed_noise import seed_groups
from tests.report.run_folders import difficulty, scores_of, write_run


@pytest.mark.parametrize(
    ("kls", "said"),
    [
        ({"RLHF": 6.0, "RA-RLHF": 14.0}, ["RLHF 6.0", "RA-RLHF 14.0"]),
        ({"SFT": 0.0, "RLHF": 6.0, "RA-RLHF": 14.0}, ["RLHF 6.0", "RA-RLHF 14.0"]),
        ({"SFT": 0.0, "RLHF": 6.0}, []),  # that the reference has another KL needs no saying
        ({"RLHF": 6.0, "RA-RLHF": 6.01}, []),
        ({"RLHF": 6.0}, []),
    ],
)
def test_unequal_kl_is_said_of_every_method_but_the_reference(
    tmp_path: Path, kls: dict[str, float], said: list[str]
) -> None:
    wobble = (difficulty() - difficulty().mean()) * 0.4
    runs = [
        read_run(write_run(tmp_path / name, scores_of(number), kl=kl + wobble if kl else 0.0))
        for number, (name, kl) in enumerate(kls.items())
    ]
    found = "\n".join(notes(compare(group(runs, list(kls)), resamples=200)))
    sentence = r"KL from the reference is not equal: (.*) nats\. Compare rewards at equal KL with --sweep\."
    named = re.fullmatch(sentence, found)
    assert bool(named) == bool(found) == bool(said)
    for each, start in zip(named[1].split(", ") if named else [], said, strict=True):
        assert each.startswith(start)


def test_kl_that_is_a_bound_is_named(tmp_path: Path) -> None:
    best = {"method": {"name": "BestOfK", "k": 4, "kl_bound": 0.6363, "kl": "upper bound: ..."}}
    runs = [
        read_run(write_run(tmp_path / name, scores_of(seed), **identity))
        for seed, (name, identity) in enumerate({"SFT": {}, "best of 4": best}.items())
    ]
    (line,) = kl_bounds(group(runs, ["SFT", "best of 4"]))
    assert line.startswith("KL of best of 4 is an upper bound")
    assert kl_bounds(group(runs[:1], ["SFT"])) == []


@pytest.mark.parametrize(("steps", "said"), [((50, 50), False), ((50, 100), True)])
def test_seeds_of_unequal_length_are_named(tmp_path: Path, steps: tuple[int, ...], said: bool) -> None:
    runs = []
    for seed, length in enumerate(steps):
        training = training_record("PPO", {"lr": 1}, seed=seed, steps=length)
        runs.append(read_run(write_run(tmp_path / str(seed), scores_of(seed), training=training)))
    sentence = (
        "RLHF: its runs were trained for 50, 100 steps; unless validation chose that (early stopping), they are not "
        "seeds of one method."
    )
    assert notes(compare(group(runs, ["RLHF", "RLHF"]), resamples=60)) == ([sentence] if said else [])


def trained(folder: Path, seed: int, steps: int, *, method: str = "RLHF", best: bool = False) -> Run:
    training = training_record("PPO", {"method": method}, seed=seed, steps=steps) | (CHOSEN if best else {})
    return read_run(write_run(folder / f"{method}-{seed}-{steps}", scores_of(seed + steps), training=training))


def test_states_that_validation_chose_are_told_from_others(tmp_path: Path) -> None:
    runs = [
        *(trained(tmp_path, seed, 40 + seed, best=True) for seed in (0, 1)),
        trained(tmp_path, 0, 264, method="RA-RLHF"),
    ]
    comparison = compare(group(runs, ["RLHF", "RLHF", "RA-RLHF"]), resamples=60)
    chosen, choice = notes(comparison)
    assert chosen == "RLHF: validation chose the states of its runs, after 40, 41 steps."
    assert choice.startswith("Validation chose the tested state of RLHF among its fit's, not that of RA-RLHF: part of")
    report = Report(runs=comparison.methods, comparison=comparison, matched=None, notes=[], pictures=[])
    write_report(report, tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    for run, said in zip(
        runs, ("40 steps, seed 0, chosen by validation", "41 steps", "264 steps, seed 0"), strict=True
    ):
        (line,) = (line for line in lines if f"`{run.folder}`" in line)
        assert f"PPO, {said}" in line


def test_a_chosen_and_a_last_state_are_no_seeds_of_one_method(tmp_path: Path) -> None:
    runs = [trained(tmp_path, 0, 40), trained(tmp_path, 1, 40, best=True)]
    with pytest.raises(UserError, match="RLHF: training.chosen is not set in .*, best in .*; seeds of one method"):
        group(runs, ["RLHF", "RLHF"])
    assert seed_groups(runs) == [[0], [1]]
