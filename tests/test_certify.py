from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_rarlhf.certify import __main__ as program
from lightning_rarlhf.certify.claims import CVaRClaim, RateClaim
from lightning_rarlhf.certify.trials import read_trials, split_of
from lightning_rarlhf.errors import DataError, UserError
from lightning_rarlhf.splits import FIRST_INDEX

TEST = FIRST_INDEX["test"]


def rate(**change: float) -> RateClaim:
    return RateClaim(**{"threshold": 0.0, "max_rate": 0.02, "confidence": 0.95} | change)


def cvar(**change: float) -> CVaRClaim:
    return CVaRClaim(**{"min_cvar": 0.5, "alpha": 0.1, "low": 0.0, "high": 1.0, "confidence": 0.95} | change)


def failing(failures: int, n: int) -> np.ndarray:
    return np.repeat([-1.0, 1.0], [failures, n - failures])


def records(scores: list[Any], first: int = TEST, **more: Any) -> list[dict[str, Any]]:
    return [{"index": first + i, "prompt": f"prompt {i}", "score": s, **more} for i, s in enumerate(scores)]


def write(folder: Path, rows: list[dict[str, Any]], name: str = "generations.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(path: Path, *more: str) -> int:
    """Of a file that no results vouch for, unless it is a folder with them."""
    alone = [] if path.is_dir() else ["--without_results"]
    return program.main(["--generations", str(path), *alone, *more])


VALID = {"schema_version": 2, "generations_sha256": "0" * 64, "evaluation": {"confidence": 0.95}, "metrics": {}}
FEW_FAIL = ("--threshold", "0", "--max_rate", "0.05", "--confidence", "0.95")


# The claim on a rate


@given(st.integers(0, 40), st.integers(1, 400), st.sampled_from([0.01, 0.05, 0.2]), st.sampled_from([0.9, 0.95, 0.99]))
def test_the_bound_on_a_rate_is_scipys(failures: int, more: int, p: float, confidence: float) -> None:
    n = failures + more
    found = rate(max_rate=p, confidence=confidence).verdict(failing(failures, n))
    upper = float(stats.beta.ppf(confidence, failures + 1, n - failures))
    assert found.bound == pytest.approx(upper, abs=1e-6)
    assert found.shown == (stats.binom.cdf(failures, n, p) <= 1 - confidence)
    assert (found.n, found.failures, found.estimate) == (n, failures, failures / n)


def test_a_score_at_the_threshold_is_no_failure() -> None:
    assert rate(threshold=1.0).verdict(np.array([0.5, 1.0, 1.5])).failures == 1


@pytest.mark.parametrize("power", range(1, 40))
def test_a_bound_that_is_the_claim_itself_shows_it(power: int) -> None:
    """No failure in k prompts: the rate is at most 1/2 with confidence 1 - 2⁻ᵏ exactly."""
    claim = rate(max_rate=0.5, confidence=1 - 0.5**power)
    found = claim.verdict(failing(0, power))
    assert (claim.needed(), found.needed, found.shown) == (power, power, True)
    assert found.bound <= claim.max_rate
    if power > 1:
        short = claim.verdict(failing(0, power - 1))
        assert not short.shown
        assert short.bound > claim.max_rate


@given(st.integers(0, 3), st.integers(1, 99), st.integers(50, 99))
def test_what_is_needed_and_what_is_shown_never_contradict(failures: int, rates: int, confidences: int) -> None:
    claim = rate(max_rate=rates / 100, confidence=confidences / 100)
    n = claim.needed(failures)
    for more in (-1, 0, 1):
        found = claim.verdict(failing(failures, max(failures + 1, n + more)))
        assert found.shown == (found.n >= n) == (found.bound <= claim.max_rate)


@pytest.mark.parametrize("failures", [0, 1, 7])
def test_the_prompts_needed_show_the_claim_and_one_fewer_do_not(failures: int) -> None:
    claim = rate()
    n = claim.needed(failures)
    assert claim.verdict(failing(failures, n)).shown
    short = claim.verdict(failing(failures, n - 1))
    assert (short.shown, short.needed) == (False, n)
    assert f"{n:,} prompts" in short.sentence
    assert f"{claim.needed():,}" in short.sentence


def test_a_rate_above_the_claim_is_not_helped_by_more_prompts() -> None:
    found = rate().verdict(failing(2, 100))
    assert (found.shown, found.needed) == (False, None)
    assert "more prompts like these would not show it" in found.sentence


def test_a_claim_is_told_to_its_last_digit() -> None:
    """Rounded, it would be another one: a confidence of 99.999 % is not 100 %."""
    assert str(rate(threshold=1234567.25, max_rate=0.0123449, confidence=0.99999)) == (
        "P(score < 1234567.25) ≤ 1.23449 %, with 99.999 % confidence"
    )
    claim = cvar(min_cvar=0.1234567, alpha=0.012345, confidence=0.99999)
    assert str(claim) == "mean of the worst 1.2345 % of scores ≥ 0.1234567, with 99.999 % confidence"
    assert str(cvar(alpha=1.0)) == "mean of all scores ≥ 0.5, with 95 % confidence"


def test_a_rate_too_small_for_any_number_of_prompts_is_refused() -> None:
    with pytest.raises(UserError, match="max_rate: got 1e-30, but no number of prompts"):
        rate(max_rate=1e-30).plan()


def test_what_is_proved_is_rounded_to_the_safe_side() -> None:
    """A sentence neither says more than the bound nor that a claim which is not shown is kept."""
    claim = rate(max_rate=0.01, confidence=0.99)
    assert "so that the rate is at most 1.001 %; with no failure" in claim.verdict(failing(0, 458)).sentence
    assert claim.verdict(failing(0, 459)).sentence.endswith("so that the rate is at most 0.9983 %.")
    tail = cvar(confidence=0.99).verdict(np.ones(921))  # one prompt too few
    assert 0.49999 < tail.bound < 0.5
    assert "so that it is at least 0.4999; with scores" in tail.sentence


@given(st.integers(0, 3), st.integers(1, 9999), st.sampled_from([0.9, 0.99]))
def test_the_bound_in_the_sentence_agrees_with_the_verdict(failures: int, rates: int, confidence: float) -> None:
    claim = rate(max_rate=rates / 100_000, confidence=confidence)
    for n in (max(failures, claim.needed(failures) - 1), claim.needed(failures)):
        found = claim.verdict(failing(failures, n))
        said = float(found.sentence.partition("the rate is at most ")[2].partition(" %")[0]) / 100
        assert found.bound - 1e-12 <= said <= found.bound * 1.002
        assert (said <= claim.max_rate + 1e-12) == found.shown


def test_a_wrong_claim_on_a_rate_is_certified_as_seldom_as_promised() -> None:
    """Scores of which 5 % and a little more fail: the claim "at most 5 %" is then wrong."""
    generator, claim, delta, experiments = np.random.default_rng(0), rate(max_rate=0.05), 0.05, 2000
    wrong = sum(claim.verdict(generator.normal(-stats.norm.ppf(0.0501), size=300)).shown for _ in range(experiments))
    assert wrong / experiments <= delta + 3 * math.sqrt(delta * (1 - delta) / experiments)
    assert wrong / experiments >= delta / 4  # it does not get there by never certifying anything


@pytest.mark.parametrize(("n", "p", "confidence"), [(100, 0.05, 0.95), (459, 0.01, 0.99), (50, 0.3, 0.9)])
def test_the_chance_of_a_wrong_certificate_summed_over_every_outcome(n: int, p: float, confidence: float) -> None:
    claim = rate(max_rate=p, confidence=confidence)
    chance = sum(stats.binom.pmf(k, n, p) for k in range(n + 1) if claim.verdict(failing(k, n)).shown)
    assert 0 < chance <= 1 - confidence + 1e-9


def test_a_true_claim_on_a_rate_is_shown_as_often_as_planned() -> None:
    claim = rate(max_rate=0.05)
    row = next(row for row in claim.plan() if row.failures == 5)
    generator, true_rate = np.random.default_rng(1), 0.025
    shown = np.mean(
        [claim.verdict(generator.normal(-stats.norm.ppf(true_rate), size=row.prompts)).shown for _ in range(500)]
    )
    assert shown == pytest.approx(row.chance["2.5 %"], abs=0.07)
    assert 0.3 < shown < 0.9


# The claim on the mean of a tail


def test_the_bound_on_a_tail_is_the_integral_of_the_shifted_quantile_function() -> None:
    scores = np.random.default_rng(0).beta(5, 2, size=3000)
    reach = math.sqrt(math.log(1 / 0.05) / (2 * 3000))
    p = (np.arange(1_000_000) + 0.5) / 1_000_000 * 0.3
    rank = np.clip(np.ceil((p - reach) * 3000).astype(int), 1, 3000)
    expected = np.where(p <= reach, 0.0, np.sort(scores)[rank - 1]).mean()
    assert cvar(alpha=0.3).verdict(scores).bound == pytest.approx(expected, abs=1e-6)


def test_a_wrong_claim_on_a_tail_is_certified_as_seldom_as_promised() -> None:
    """Two-point scores, for which the bound is nearly tight: CVaR_100 % is their mean, 0.5, which the claim exceeds."""
    generator, experiments, delta = np.random.default_rng(0), 2000, 0.2
    claim = cvar(alpha=1.0, min_cvar=0.5001, confidence=1 - delta)
    wrong = sum(claim.verdict(generator.integers(2, size=400).astype(float)).shown for _ in range(experiments))
    assert 0.02 < wrong / experiments <= delta + 3 * math.sqrt(delta * (1 - delta) / experiments)
    uniform = cvar(alpha=0.5, min_cvar=0.2501)  # CVaR_50 % of uniform scores is 0.25
    wrong = sum(uniform.verdict(generator.uniform(size=400)).shown for _ in range(500))
    assert wrong / 500 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 500)


@pytest.mark.parametrize("n", range(200, 260))
def test_a_bound_on_a_tail_that_is_the_claim_itself_shows_it(n: int) -> None:
    claim = cvar(min_cvar=1 - math.sqrt(math.log(1 / (1 - 0.95)) / (2 * n)) / 0.1)
    found = claim.verdict(np.ones(n))
    assert (found.needed, found.shown) == (n, True)
    assert found.bound >= claim.min_cvar
    assert not claim.verdict(np.ones(n - 1)).shown


def test_a_true_claim_on_a_tail_is_shown_once_the_prompts_are_as_many_as_needed() -> None:
    generator, claim = np.random.default_rng(0), cvar(alpha=0.5, min_cvar=0.2)
    pilot = generator.uniform(size=20_000)
    needed = claim.needed(pilot)
    assert needed is not None
    shown = [
        np.mean([claim.verdict(generator.uniform(size=int(share * needed))).shown for _ in range(200)])
        for share in (0.5, 1, 4)
    ]
    assert shown[0] < 0.25
    assert 0.3 < shown[1] < 0.7  # needed is what it takes on average: an even chance
    assert shown[2] > 0.9


def test_the_sentence_on_a_tail_says_how_many_prompts_it_takes() -> None:
    scores = np.full(500, 0.9)
    found = cvar().verdict(scores)
    assert not found.shown
    assert found.needed is not None
    assert f"with scores distributed as these the claim needs {found.needed:,} prompts" in found.sentence
    assert cvar().verdict(np.full(found.needed, 0.9)).shown
    assert not cvar().verdict(np.full(found.needed - 1, 0.9)).shown
    hopeless = cvar().verdict(np.full(500, 0.4))
    assert (hopeless.needed, hopeless.shown) == (None, False)
    assert "more prompts like these would not show it" in hopeless.sentence


def test_a_tail_that_is_the_claim_but_for_a_scores_rounding_gets_a_verdict() -> None:
    found = cvar(min_cvar=0.1, low=-3.0).verdict(np.full(500, np.float32(0.1), dtype=np.float64))
    assert not found.shown
    assert found.needed is not None
    assert found.needed > 2**62
    assert f"the claim needs {found.needed:,} prompts" in found.sentence


def test_no_scores_show_a_claim_on_a_tail_with_fewer_prompts_than_planned() -> None:
    least = cvar().needed(np.ones(1))
    assert least is not None
    assert f"at least {least:,} fresh prompts" in cvar().plan_sentence()
    assert cvar().verdict(np.ones(least)).shown
    assert not cvar().verdict(np.ones(least - 1)).shown


def test_every_part_of_a_claim_on_a_tail_matters() -> None:
    scores = np.random.default_rng(0).beta(8, 2, size=5000)
    base = cvar().verdict(scores)
    assert base.method == "Anderson/DKW, lower"
    assert cvar(alpha=0.3).verdict(scores).bound > base.bound
    assert cvar(low=-1.0).verdict(scores).bound < base.bound
    assert cvar(confidence=0.999).verdict(scores).bound < base.bound
    assert base.shown != cvar(min_cvar=0.01).verdict(scores).shown


def test_a_tail_of_less_than_one_prompt_and_scores_out_of_range_are_refused() -> None:
    with pytest.raises(DataError, match=r"alpha: got 0.1 of 9 prompts, a tail of less than one; .*at least 600 fresh"):
        cvar().verdict(np.ones(9))
    with pytest.raises(DataError, match=r"range: got 0 to 1, but 2 of 3 scores are outside; they go from -1 to 2"):
        cvar().verdict(np.array([-1.0, 0.5, 2.0]))


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (rate, {"max_rate": 0.0}, "max_rate: got 0, expected more than 0 and less than 1"),
        (rate, {"confidence": 1.0}, "confidence: got 1, expected"),
        (cvar, {"confidence": 0.4}, "confidence: got 0.4, expected at least 0.5"),
        (cvar, {"alpha": 0.0}, "alpha: got 0, expected more than 0"),
        (cvar, {"low": 2.0}, "range: got 2 to 1, expected the lower end first"),
        (cvar, {"min_cvar": 1.0}, "min_cvar: got 1, expected a value inside the range, 0 to 1"),
    ],
)
def test_claims_that_cannot_be_are_refused(make, change: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**change)


# The program


def test_a_claim_that_holds_is_exit_status_0_and_a_certificate(tmp_path: Path, capsys) -> None:
    path = write(tmp_path, records([1.0] * 99 + [-1.0]))
    output = tmp_path / "gate" / "certificate.json"
    assert run(path, *FEW_FAIL, "--output", str(output)) == 0
    sentence = capsys.readouterr().out.strip()
    upper = float(stats.beta.ppf(0.95, 2, 99))
    assert sentence == (
        "Shown: P(score < 0) ≤ 5 %, with 95 % confidence; "
        f"1 of 100 prompts failed, so that the rate is at most {100 * upper:.4g} %."
    )
    certificate = json.loads(output.read_text())
    assert (certificate["shown"], certificate["sentence"]) == (True, sentence)
    assert certificate["claim"] == {
        "kind": "rate", "threshold": 0.0, "max_rate": 0.05, "confidence": 0.95, "score": "score"
    }  # fmt: skip
    assert certificate["evidence"]["bound"] == pytest.approx(upper, abs=1e-6)
    assert certificate["evidence"]["failures"] == 1
    assert certificate["generations"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert certificate["generations"]["prompts"] == {"test": 100}
    assert certificate["results"] is None
    assert not list(tmp_path.rglob("*.partial"))


def test_a_claim_that_is_not_shown_is_exit_status_1(tmp_path: Path, capsys) -> None:
    path, output = write(tmp_path, records([1.0] * 50)), tmp_path / "certificate.json"
    assert run(path, *FEW_FAIL, "--output", str(output)) == 1
    assert "Not shown" in capsys.readouterr().out
    assert json.loads(output.read_text())["evidence"]["needed"] == 59


def test_the_confidence_and_the_threshold_decide(tmp_path: Path) -> None:
    path = write(tmp_path, records([1.0] * 59))
    assert run(path, *FEW_FAIL) == 0
    assert run(path, *FEW_FAIL[:4]) == 1  # 99 % unless told otherwise
    assert run(path, "--threshold", "2", *FEW_FAIL[2:]) == 1


def test_a_tail_is_certified_too(tmp_path: Path, capsys) -> None:
    path = write(tmp_path, records(np.random.default_rng(0).uniform(0.8, 1, size=3000).tolist()))
    claim = ("--min_cvar", "0.5", "--alpha", "0.1", "--range", "0", "1")
    assert run(path, *claim) == 0
    assert (
        "Shown: mean of the worst 10 % of scores ≥ 0.5, with 99 % confidence; 3,000 prompts" in capsys.readouterr().out
    )
    assert run(path, *claim, "--confidence", "0.9999999999") == 1


def test_the_score_of_any_judge_serves(tmp_path: Path, capsys) -> None:
    path = write(tmp_path, records([-1.0] * 100, judges={"polite": 1.0}))
    assert run(path, *FEW_FAIL) == 1
    assert run(path, *FEW_FAIL, "--score", "judge/polite") == 0
    assert run(path, *FEW_FAIL, "--score", "judge/kind") == 2
    assert "no judge/kind; expected score, judge/polite" in capsys.readouterr().err
    assert run(path, *FEW_FAIL, "--score", "kl") == 2
    assert "score: got 'kl', expected score or judge/<name>" in capsys.readouterr().err


def test_one_completion_of_each_prompt_counts(tmp_path: Path, capsys) -> None:
    rows = [row | {"draw": draw, "score": draw - 0.5} for row in records([0.0] * 100) for draw in range(3)]
    assert run(write(tmp_path, rows), *FEW_FAIL) == 1
    output = capsys.readouterr()
    assert "100 of 100 prompts failed" in output.out
    assert "draw 0 of each prompt counts; 200 further completions were left out" in output.err
    assert run(write(tmp_path, [row for row in rows if row["draw"]]), *FEW_FAIL) == 2
    assert f"100 prompts have no draw 0, {TEST} for one" in capsys.readouterr().err


def test_a_run_folder_stands_for_its_generations_and_results(tmp_path: Path) -> None:
    path = write(tmp_path, records([1.0] * 100))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    results = VALID | {"generations_sha256": sha256, "policy": "gpt2"}
    (tmp_path / "results.json").write_text(json.dumps(results))
    output = tmp_path / "certificate.json"
    assert run(tmp_path, *FEW_FAIL, "--output", str(output)) == 0
    found = json.loads(output.read_text())["results"]
    assert found == {name: value for name, value in results.items() if name != "metrics"}


def test_a_file_that_nothing_vouches_for_is_refused_unless_the_user_does(tmp_path: Path, capsys) -> None:
    path = write(tmp_path, records([1.0] * 100))
    assert program.main(["--generations", str(path), *FEW_FAIL]) == 2
    assert "no results.json beside it tells whether it is whole" in capsys.readouterr().err
    assert program.main(["--generations", str(path), "--without_results", *FEW_FAIL]) == 0
    assert "--without_results: nothing tells whether the file is whole" in capsys.readouterr().err
    own = write(tmp_path, records([1.0] * 100, first=0), "predictions.jsonl")
    assert program.main(["--generations", str(own), *FEW_FAIL]) == 2
    assert "vouch for it yourself with --without_results" in capsys.readouterr().err


def test_prompts_of_the_users_own_are_for_the_user_to_vouch_for(tmp_path: Path, capsys) -> None:
    path = write(tmp_path, records([1.0] * 100, first=0), "predictions.jsonl")
    (tmp_path / "results.json").write_text("{}")  # of a test, not of these predictions
    assert run(path, *FEW_FAIL) == 0
    assert "whether 100 prompts of your own were never trained on is for you to know" in capsys.readouterr().err
    assert run(tmp_path, *FEW_FAIL) == 2
    assert "to certify on your own prompts name the file predictions.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fitted", "tested", "message"),
    [
        (("datamodules.TextFileDataModule", 0), ("TextFileDataModule", 0), None),
        (
            ("datamodules.TextFileDataModule", 1),
            ("TextFileDataModule", 0),
            "TextFileDataModule with data.seed 1, these",
        ),
        (("datamodules.IMDBDataModule", 0), ("TextFileDataModule", 0), "on prompts of IMDBDataModule with data.seed 0"),
        (None, ("TextFileDataModule", 0), "no record tells on which prompts the policy was trained"),
    ],
)
def test_what_leaves_open_whether_prompts_are_fresh_is_told(tmp_path: Path, capsys, fitted, tested, message) -> None:
    """An index names the split of a choice of rows; another choice may have trained on the same row."""
    path = write(tmp_path, records([1.0] * 100))
    training = None
    if fitted is not None:
        data = {"class_path": fitted[0], "init_args": {"seed": fitted[1]}}
        training = {"module": "PPO", "method_sha256": None, "seed": 0, "steps": 1, "settings": {"data": data}}
    content = VALID | {
        "generations_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "data": {"class": tested[0], "seed": tested[1], "name": "mine"},
        "training": training,
    }
    (tmp_path / "results.json").write_text(json.dumps(content))
    certificate = tmp_path / "certificate.json"
    assert run(tmp_path, *FEW_FAIL, "--output", str(certificate)) == 0
    notes = json.loads(certificate.read_text())["notes"]
    assert [message in note for note in notes] == ([True] if message else [])
    assert capsys.readouterr().err == "".join(f"note: {note}\n" for note in notes)


def test_repeated_texts_are_told(tmp_path: Path, capsys) -> None:
    rows = [row | {"prompt": "the same"} for row in records([1.0] * 60)]
    assert run(write(tmp_path, rows), *FEW_FAIL) == 0
    assert "59 prompts repeat the text of another" in capsys.readouterr().err


@pytest.mark.parametrize(("split", "message"), [("train", "trained on"), ("val", "validated on")])
def test_prompts_that_the_run_has_seen_are_refused(tmp_path: Path, capsys, split: str, message: str) -> None:
    rows = records([1.0] * 100) + records([1.0] * 3, first=FIRST_INDEX[split])
    assert run(write(tmp_path, rows), *FEW_FAIL) == 2
    assert f"3 prompts are of the {split} split, those the run {message}" in capsys.readouterr().err


def test_the_split_follows_from_the_number() -> None:
    firsts = {split: split_of(first, FIRST_INDEX) for split, first in FIRST_INDEX.items()}
    assert firsts == {"train": "train", "val": "val", "test": "test"}
    lasts = [split_of(first - 1, FIRST_INDEX) for first in FIRST_INDEX.values()]
    assert lasts == ["predict", "train", "val"]


GOOD = json.dumps({"index": TEST, "prompt": "a", "score": 1.0}) + "\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty; run"),
        (GOOD + GOOD, f"generations.jsonl:2: prompt {TEST}, draw 0 is there twice"),
        (GOOD + '{"index": 30', "generations.jsonl:2: not a JSON object; the file is damaged"),
        ("[1]\n", "generations.jsonl:1: not a JSON object"),
        (GOOD.replace("1.0", "null"), "score is null, expected a finite number"),
        (GOOD.replace("1.0", "NaN"), "score is NaN, expected a finite number"),
        (GOOD.replace("1.0", "true"), "score is true, expected a finite number"),
        (GOOD.replace("index", "number"), "index is null, expected a number from 0"),
        (GOOD.replace(str(TEST), "-1"), "index is -1, expected a number from 0"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, capsys, content: str, message: str) -> None:
    path = tmp_path / "generations.jsonl"
    path.write_text(content)
    output = tmp_path / "certificate.json"
    assert run(path, *FEW_FAIL, "--output", str(output)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not output.exists()


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (VALID, "expected 000000000000; run `python train.py test` again\n"),  # nobody can vouch for it
        ({}, "schema_version is null, expected 1 to 3"),
        (VALID | {"data": "jigsaw"}, 'data is "jigsaw", expected an object or null'),
        ('{"generations_sha', "results.json cannot be read"),
    ],
)
def test_results_that_do_not_fit_are_refused(tmp_path: Path, capsys, results: Any, message: str) -> None:
    write(tmp_path, records([1.0] * 100))
    (tmp_path / "results.json").write_text(results if isinstance(results, str) else json.dumps(results))
    assert run(tmp_path, *FEW_FAIL) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_not_there_or_not_finished_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; run `python train.py test` first"):
        read_trials(tmp_path, "score", FIRST_INDEX)
    (tmp_path / "generations.jsonl.partial").touch()
    with pytest.raises(DataError, match="not finished, only its .partial is there"):
        read_trials(tmp_path, "score", FIRST_INDEX)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_rate", "0.1"], "--max_rate needs --threshold"),
        (["--max_rate", "0.1", "--threshold", "0", "--alpha", "0.1"], "--alpha is no part of a claim with --max_rate"),
        (["--min_cvar", "0.1", "--alpha", "0.1"], "--min_cvar needs --range"),
        (["--min_cvar", "0.1", "--range", "0", "1", "--alpha", "0.1", "--threshold", "0"], "--threshold is no part of"),
        (["--max_rate", "1.5", "--threshold", "0"], "max_rate: got 1.5, expected more than 0 and less than 1"),
    ],
)
def test_arguments_that_make_no_claim_are_refused(capsys, arguments: list[str], message: str) -> None:
    assert program.main(["--plan", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--plan"],
        ["--max_rate", "0.1", "--threshold", "0"],
        ["--plan", "--max_rate", "0.1", "--min_cvar", "0.1"],
        ["--plan", "--max_rate", "nan", "--threshold", "0"],
        ["--plan", "--max_rate", "0.1", "--thresh", "0"],
    ],
)
def test_other_arguments_are_refused_by_status_2_as_well(capsys, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        program.main(arguments)
    assert end.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_a_plan_needs_no_data(tmp_path: Path, capsys) -> None:
    output = tmp_path / "plan.json"
    assert program.main(["--plan", *FEW_FAIL, "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert "needs 59 fresh prompts if none fails, 93 if one does" in text
    rows = json.loads(output.read_text())["plan"]
    assert [(row["failures"], row["prompts"]) for row in rows[:2]] == [(0, 59), (1, 93)]
    assert rows[1]["chance"]["0.5 %"] == pytest.approx(stats.binom.cdf(1, 93, 0.005))
    assert program.main(["--plan", "--min_cvar", "0.5", "--alpha", "0.1", "--range", "0", "1"]) == 0
    assert "at least 922 fresh prompts, if all of them score 1" in capsys.readouterr().out


def test_an_output_that_cannot_be_written_is_bad_input(tmp_path: Path, capsys) -> None:
    path = write(tmp_path, records([1.0] * 100))
    assert run(path, *FEW_FAIL, "--output", str(path / "certificate.json")) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_score_at_the_threshold_is_no_failure_whatever_its_decimals():
    scores = np.full(400, np.float32(0.7), dtype=np.float64)
    assert rate(threshold=0.7).verdict(scores).failures == 0
    assert rate(threshold=0.7001).verdict(scores).failures == 400
