from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lightning_rarlhf.errors import UserError
from lightning_rarlhf.functional.statistics import SMALL_NOTE
from lightning_rarlhf.records.results import Run, read_run
from lightning_rarlhf.report.matched_kl import MatchedKL, match_kl
from lightning_rarlhf.report.matched_kl_words import statements
from lightning_rarlhf.report.methods import Method
from tests.report.run_folders import PROMPTS, scores_of, write_run

KLS = (0.0, 1.0, 4.0, 9.0)


def sweep(folder: Path, label: str, frontier, kls=KLS, *, spread: float = 0.0, shift: int = 0) -> Method:
    """Runs whose mean reward is `frontier` of their KL; KL varies over prompts by `spread`."""
    wobble = spread * (np.arange(PROMPTS) % 2 - 0.5)
    runs = [
        read_run(write_run(folder / f"{label}{number}", scores_of(number + shift, gain=frontier(kl)), kl=kl + wobble))
        for number, kl in enumerate(kls)
    ]
    return Method(label=label, runs=tuple(runs))


def matched(*sweeps: Method, resamples: int = 200) -> MatchedKL:
    return match_kl(sweeps, alpha=0.2, resamples=resamples)


def exact(folder: Path, label: str, rewards: list[float], kls: list[float]) -> Method:
    """Every prompt has the same reward and KL: nothing is left to chance."""
    runs = [
        read_run(write_run(folder / f"{label}{n}", np.full(PROMPTS, reward), kl=kl))
        for n, (reward, kl) in enumerate(zip(rewards, kls, strict=True))
    ]
    return Method(label=label, runs=tuple(runs))


def test_between_runs_the_reward_is_linear_in_the_square_root_of_kl(tmp_path: Path) -> None:
    first = exact(tmp_path, "a", [0.0, 1.0, 2.0], [0.0, 1.0, 4.0])
    second = exact(tmp_path, "b", [0.0, 2.0, 4.0], [0.0, 1.0, 4.0])
    match = matched(first, second).matches[0]
    assert (match.kl[0], match.kl[-1]) == (0.0, 4.0)
    for statistic in ("mean", "tail"):
        assert match.curves[statistic][0].estimate == pytest.approx(np.sqrt(match.kl), abs=1e-6)
        assert match.difference[statistic].estimate == pytest.approx(np.sqrt(match.kl), abs=1e-6)


def test_the_interval_holds_the_line_in_kl_as_well(tmp_path: Path) -> None:
    first = exact(tmp_path, "a", [0.0, 1.0, 2.0], [0.0, 1.0, 4.0])
    second = exact(tmp_path, "b", [0.0, 2.0, 4.0], [0.0, 1.0, 4.0])
    band = matched(first, second).matches[0]
    line = np.interp(band.kl, [0.0, 1.0, 4.0], [0.0, 1.0, 2.0])
    assert band.difference["mean"].low == pytest.approx(np.minimum(line, np.sqrt(band.kl)), abs=1e-6)
    assert band.difference["mean"].high == pytest.approx(np.maximum(line, np.sqrt(band.kl)), abs=1e-6)


def test_the_range_is_what_both_reach(tmp_path: Path) -> None:
    first = exact(tmp_path, "a", [0.0, 1.0, 2.0], [0.0, 2.0, 5.0])
    second = exact(tmp_path, "b", [0.0, 1.0, 2.0], [1.0, 4.0, 8.0])
    match = matched(first, second).matches[0]
    assert (match.kl[0], match.kl[-1]) == pytest.approx((1.0, 5.0))
    assert match.first_range == pytest.approx((0.0, 5.0))
    assert match.second_range == pytest.approx((1.0, 8.0))


def test_a_better_frontier_is_found_ahead_over_its_range(tmp_path: Path) -> None:
    first = sweep(tmp_path, "RLHF", lambda kl: 0.2 * kl**0.5, spread=0.4)
    second = sweep(tmp_path, "RA", lambda kl: 1.2 * kl**0.5, spread=0.4, shift=50)
    result = matched(first, second)
    ahead = [stretch for stretch in result.matches[0].stretches("mean") if stretch.ahead]
    assert [stretch.ahead for stretch in ahead] == ["RA"]
    assert ahead[0].low < 1.5
    assert ahead[0].high == pytest.approx(9.0, abs=0.3)
    text = "\n".join(statements(result))
    assert "RA is ahead at" in text
    assert "RLHF is ahead" not in text


def test_frontiers_that_cross_are_ahead_in_turn(tmp_path: Path) -> None:
    kls = tuple(float(kl) for kl in range(0, 11, 2))
    first = sweep(tmp_path, "a", lambda kl: 3.0, kls)
    second = sweep(tmp_path, "b", lambda kl: 0.6 * kl, kls, shift=50)
    said = [each.ahead for each in matched(first, second).matches[0].stretches("mean") if each.ahead]
    assert said == ["a", "b"]


def test_equal_frontiers_are_rarely_told_apart(tmp_path: Path) -> None:
    """The band is simultaneous: of 20 pairs one or so may err anywhere, 4 in one of 60 tries."""
    wrong = 0
    for trial in range(20):
        first = sweep(tmp_path / str(trial), "a", lambda kl: kl**0.5, (0.0, 1.0, 4.0), shift=100 * trial + 1000)
        second = sweep(tmp_path / str(trial), "b", lambda kl: kl**0.5, (0.0, 1.0, 4.0), shift=100 * trial + 1050)
        wrong += any(each.ahead for each in matched(first, second).matches[0].stretches("mean"))
    assert wrong < 4


def test_a_shared_starting_point_is_no_difference(tmp_path: Path) -> None:
    start = read_run(write_run(tmp_path / "start", scores_of(0), kl=0.0))
    first, second = (
        sweep(tmp_path, label, np.sqrt, (1.0, 2.0), shift=shift) for label, shift in (("a", 10), ("b", 20))
    )
    first, second = (Method(label=each.label, runs=(start, *each.runs)) for each in (first, second))
    band = matched(first, second).matches[0].difference["mean"]
    assert (band.low[0], band.estimate[0], band.high[0]) == (0.0, 0.0, 0.0)


def test_seeds_of_one_target_count_as_one_point(tmp_path: Path) -> None:
    first = exact(tmp_path, "a", [0.0, 1.0, 3.0, 2.0], [0.0, 4.0, 4.1, 9.0])
    result = matched(first, exact(tmp_path, "b", [0.0, 1.0, 2.0], [0.0, 4.0, 9.0]))
    assert result.points[0].kl == pytest.approx([0.0, 4.05, 9.0])
    assert result.points[0].reward["mean"] == pytest.approx([0.0, 2.0, 2.0])


def test_points_are_pooled_with_the_least_of_them_not_one_after_the_other(tmp_path: Path) -> None:
    """Three points each 4 % of the range apart: the third is 8 % from the first, so it stands by itself."""
    first = exact(tmp_path, "a", [0.0, 1.0, 3.0, 5.0, 6.0], [0.0, 4.0, 4.4, 4.8, 10.0])
    result = matched(first, exact(tmp_path, "b", [0.0, 1.0, 2.0], [0.0, 4.0, 9.0]))
    assert result.points[0].kl == pytest.approx([0.0, 4.2, 4.8, 10.0])
    assert result.points[0].reward["mean"] == pytest.approx([0.0, 2.0, 5.0, 6.0])


def test_ranges_that_do_not_overlap_are_said(tmp_path: Path) -> None:
    result = matched(sweep(tmp_path, "a", np.sqrt, (0.0, 1.0)), sweep(tmp_path, "b", np.sqrt, (3.0, 5.0), shift=50))
    assert len(result.matches[0].kl) == 0
    assert statements(result) == [
        "a was run at 0 to 1 nats, b at 3 to 5 nats: the ranges do not overlap, nothing can be said at equal KL."
    ]


def test_runs_too_far_apart_make_no_claim(tmp_path: Path) -> None:
    """Two runs each: what lies between them is anybody's guess."""
    result = matched(exact(tmp_path, "a", [0.0, 1.0], [0.0, 9.0]), exact(tmp_path, "b", [5.0, 9.0], [0.0, 9.0]))
    assert not result.matches[0].supported.any()
    assert [each.ahead for each in result.matches[0].stretches("mean")] == [""]
    said = statements(result)
    assert "nothing is claimed at 0 to 9 nats" in said[1]
    assert len(said) == 3, "no band, hence nothing of its errors, of what it covers and of few prompts"


def test_a_gap_in_one_method_silences_only_the_gap(tmp_path: Path) -> None:
    first = exact(tmp_path, "a", [0.0] * 4, [0.0, 1.0, 4.0, 9.0])
    second = exact(tmp_path, "b", [1.0] * 4, [0.0, 0.49, 4.41, 9.0])  # 0.7 to 2.1 in √KL, less than half of 3
    third = exact(tmp_path, "c", [1.0] * 3, [0.0, 1.0, 9.0])  # 1 to 3, more than half
    near, far = matched(first, second, third).matches
    assert near.supported.all()
    assert [(each.ahead, each.supported) for each in far.stretches("mean")] == [("c", True), ("", False)]


def test_a_method_whose_runs_are_all_too_far_apart_has_no_band(tmp_path: Path) -> None:
    near = [exact(tmp_path, name, [float(n)] * 3, [0.0, 1.0, 4.0]) for n, name in enumerate("ab")]
    far = exact(tmp_path, "c", [1.0] * 2, [0.0, 4.0])
    assert "These are 2 bands, each of which errs somewhere with chance 5 %." in statements(matched(*near, far))


def test_a_tail_of_few_prompts_makes_no_claim(tmp_path: Path) -> None:
    sweeps = [exact(tmp_path, "a", [0.0] * 3, [0.0, 1.0, 4.0]), exact(tmp_path, "b", [1.0] * 3, [0.0, 1.0, 4.0])]
    said = statements(match_kl(sweeps, alpha=0.05, resamples=60))
    assert "b is ahead" in said[1]
    assert "nothing is claimed, as a run has fewer than 10 prompts in the tail" in said[2]
    assert "This band errs with chance 5 %." in said
    assert said[-1].startswith("† fewer than 200 prompts")  # 120 prompts


def test_how_many_bands_err_by_themselves_is_said(tmp_path: Path) -> None:
    """A band is simultaneous over KL, not over methods and statistics."""
    names = ("a", "b", "c")
    sweeps = [exact(tmp_path, name, [float(n)] * 3, [0.0, 1.0, 4.0]) for n, name in enumerate(names)]
    sentence = "These are 4 bands, each of which errs somewhere with chance 5 %."
    assert sentence in statements(match_kl(sweeps, alpha=0.2, resamples=60))


def test_completions_are_not_taken_for_prompts_of_a_tail(tmp_path: Path) -> None:
    """25 completions of 40 prompts: the worst tenth is 100 responses, of what could be 4 prompts."""

    def sweep_of_many(label: str, gain: float) -> Method:
        noise = np.random.default_rng(len(label)).normal(size=(40, 25)) * 0.1
        runs = [read_run(write_run(tmp_path / f"{label}{kl}", noise + gain * kl, kl=kl)) for kl in (0.0, 1.0, 4.0)]
        return Method(label=label, runs=tuple(runs))

    result = match_kl([sweep_of_many("a", 0.0), sweep_of_many("RA", 1.0)], alpha=0.1, resamples=60)
    said = statements(result)
    assert "Mean reward: RA is ahead" in said[1]
    assert said[2] == (
        "Mean of the worst 10 %: nothing is claimed, as a run has fewer than 10 prompts in the tail: too few for an "
        "interval."
    )
    match = result.matches[0]
    assert not any(each.ahead for each in match.stretches("tail"))
    for curve in (*match.curves["tail"], match.difference["tail"]):
        assert np.isfinite(curve.estimate).all()
        assert np.isneginf(curve.low).all()
        assert np.isposinf(curve.high).all()


@pytest.mark.parametrize(("others", "silenced"), [(0, ()), (3, ("mean", "tail")), (9, ("mean",)), (12, ())])
def test_scores_of_which_few_differ_make_no_claim(tmp_path: Path, others: int, silenced: tuple[str, ...]) -> None:
    """A rate: `others` prompts of 120 failed in all runs but one. A handful tells too little of how rare that is."""
    failed = np.where(np.arange(PROMPTS) < others, -1.0, 0.0)
    runs = [
        read_run(write_run(tmp_path / f"a{kl}", failed if kl else np.zeros(PROMPTS), kl=kl)) for kl in (0.0, 0.25, 1.0)
    ]
    other = exact(tmp_path, "b", [1.0] * 3, [0.0, 0.25, 1.0])
    result = matched(Method(label="a", runs=tuple(runs)), other)
    assert tuple(result.few) == silenced
    for statistic in ("mean", "tail"):
        assert np.isposinf(result.matches[0].difference[statistic].high).all() == (statistic in silenced)
        assert np.isfinite(result.matches[0].difference[statistic].estimate).all()
    said = "\n".join(statements(result))
    assert said.count("nothing is claimed, as a run has fewer than 10 prompts") == len(silenced)
    assert ("bands" in said or "band" in said) == (len(silenced) < 2)


def test_many_prompts_carry_no_dagger(tmp_path: Path) -> None:
    some = matched(sweep(tmp_path, "a", np.sqrt), sweep(tmp_path, "b", np.sqrt, shift=50))
    assert SMALL_NOTE in statements(some)
    assert SMALL_NOTE not in statements(replace(some, prompts=200))


def test_the_same_seed_gives_the_same_result(tmp_path: Path) -> None:
    sweeps = [sweep(tmp_path, "a", np.sqrt), sweep(tmp_path, "b", np.sqrt, shift=50)]
    bands = [match_kl(sweeps, alpha=0.2, resamples=100, seed=seed).matches[0].difference["mean"] for seed in (1, 1, 2)]
    assert (bands[0].low == bands[1].low).all()
    assert (bands[0].low != bands[2].low).any()


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda a, b: [a], "got 1 method, expected at least 2"),
        (lambda a, b: [a, Method(label="b", runs=b.runs[:1])], "--sweep b: got a single run, .*b0"),
        (lambda a, b: [a, Method(label="b", runs=(b.runs[0], b.runs[0]))], "one and the same KL, 0 nats"),
        (
            lambda a, b: [a, with_identity(b, reference="another")],
            "references differ: .*a0 .* start, .*b0 from another",
        ),
        (lambda a, b: [a, without_kl(b)], "b0: KL is missing"),
    ],
)
def test_what_cannot_be_matched_is_refused(tmp_path: Path, make, complaint: str) -> None:
    first, second = (exact(tmp_path, label, [0.0, 1.0, 2.0], [0.0, 1.0, 4.0]) for label in ("a", "b"))
    with pytest.raises(UserError, match=complaint) as caught:
        matched(*make(first, second))
    assert "\n" not in str(caught.value)


def test_a_tail_that_no_prompt_represents_is_refused(tmp_path: Path) -> None:
    sweeps = [exact(tmp_path, label, [0.0, 1.0], [0.0, 1.0]) for label in ("a", "b")]
    with pytest.raises(UserError, match="--alpha: got 0.001 of 120 prompts .*at least 1000 prompts"):
        match_kl(sweeps, alpha=0.001, resamples=60)


def with_identity(method: Method, **changes: str) -> Method:
    runs = [Run(**{**vars(run), "identity": {**run.identity, **changes}}) for run in method.runs]
    return Method(label=method.label, runs=tuple(runs))


def without_kl(method: Method) -> Method:
    nothing = np.full((PROMPTS, 1), np.nan)
    runs = [Run(**{**vars(run), "columns": {**run.columns, "kl": nothing}}) for run in method.runs]
    return Method(label=method.label, runs=tuple(runs))
