from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lightning_rarlhf.quickstart.findings import (
    Outcome,
    change_of_mean,
    change_of_tail,
    comparison,
    headline,
    print_outcomes,
    read_outcome,
)

N = 400
BEFORE = np.random.default_rng(0).normal(size=N)


def outcome(name: str, scores: np.ndarray, bold: int = 0) -> Outcome:
    return Outcome(name=name, index=np.arange(len(scores)), scores=scores, kl=np.zeros(len(scores)), bold=bold)


def lifted_tail() -> np.ndarray:
    """Only the worst fifth moved, and by 2."""
    scores = BEFORE.copy()
    scores[np.argsort(BEFORE)[: N // 5]] += 2.0
    return scores


def test_numbers_of_an_outcome_by_hand() -> None:
    found = outcome("a", np.array([-3.0, -1.0, *np.arange(18.0)]), bold=5)
    assert found.mean.estimate == pytest.approx((17 * 9 - 4) / 20)
    assert found.tail.estimate == -2.0
    assert found.bad.estimate == 0.1  # 0 is not below 0
    assert found.bold_share.estimate == 0.25


def test_reads_what_test_wrote(tmp_path: Path) -> None:
    rows = [
        {"index": 7, "score": 1.5, "kl": 0.25, "response": "it was fiery."},
        {"index": 9, "score": -2.0, "kl": 0.5, "response": "it was tasty."},
    ]
    path = tmp_path / "generations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_outcome("SFT", path)
    assert (found.name, found.bold) == ("SFT", 1)
    assert (found.index.tolist(), found.scores.tolist(), found.kl.tolist()) == ([7, 9], [1.5, -2.0], [0.25, 0.5])


def test_changes_are_after_minus_before_on_the_same_prompts() -> None:
    before, after = outcome("SFT", BEFORE), outcome("RLHF", BEFORE + 3.0)
    for change in (change_of_mean(before, after), change_of_tail(before, after)):
        assert change.estimate == pytest.approx(3.0)
        assert change.low == pytest.approx(3.0)  # paired: what the prompts share cancels out
    assert change_of_tail(after, before).estimate == pytest.approx(-3.0)


def test_the_tail_can_move_where_the_mean_hardly_does() -> None:
    before, after = outcome("SFT", BEFORE), outcome("RA-RLHF", lifted_tail())
    assert change_of_mean(before, after).estimate == pytest.approx(0.4)
    expected = np.sort(lifted_tail())[: N // 10].mean() - np.sort(BEFORE)[: N // 10].mean()
    assert change_of_tail(before, after).estimate == pytest.approx(expected)


def test_the_headline_says_what_moved_and_what_did_not() -> None:
    noise = np.random.default_rng(1).permutation(BEFORE)
    others = [outcome("RLHF", BEFORE - 1.26), outcome("RA-RLHF", BEFORE + 2.0), outcome("other", noise)]
    assert headline(outcome("SFT", BEFORE), others) == (
        "The worst 10 % of outputs: down 1.3 points with RLHF, up 2.0 points with RA-RLHF, not clearly moved with other"
    )


def test_a_comparison_claims_no_change_that_its_interval_does_not() -> None:
    noise = np.random.default_rng(1).permutation(BEFORE)
    line = comparison(outcome("SFT", BEFORE), outcome("RA-RLHF", noise))
    assert line.count("not clearly moved (") == 2
    assert " up " not in line
    assert " down " not in line


def test_prints_every_policy_with_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    print_outcomes([outcome("SFT", BEFORE), outcome("RA-RLHF", BEFORE + 2.0, bold=100)])
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("│┃").split("│")] for line in shown.splitlines() if "│" in line]
    estimates = {row[0]: row[1:] for row in rows if row[0]}
    assert estimates["risks a bold word (%)"] == ["0.0", "25.0"]
    assert [float(cell.replace("−", "-")) for cell in estimates["mean score (points)"]] == pytest.approx(
        [BEFORE.mean(), BEFORE.mean() + 2], abs=0.051
    )
    assert sum("to" in row[1].split() for row in rows) == 5
    assert "RA-RLHF against SFT on the same prompts: the mean is up 2.0 points (2.0 to 2.0)" in shown


def test_different_prompts_cannot_be_compared() -> None:
    other = Outcome(name="RLHF", index=np.arange(N) + 1.0, scores=BEFORE, kl=BEFORE, bold=0)
    for compare in (change_of_mean, change_of_tail):
        with pytest.raises(ValueError, match="RLHF and SFT were tested on different prompts"):
            compare(outcome("SFT", BEFORE), other)
