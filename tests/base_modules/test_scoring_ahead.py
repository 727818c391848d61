from __future__ import annotations

import threading
import time
from functools import partial

import pytest
import torch

from lightning_rarlhf.base_modules import scoring_ahead
from lightning_rarlhf.base_modules.scoring_ahead import ScoringAhead
from lightning_rarlhf.errors import NumericalError, RewardError, ScoreError
from lightning_rarlhf.reward_models import CallableReward
from lightning_rarlhf.rollout import score
from lightning_rarlhf.stepping.batch_parts import parts_of
from tests.stepping.test_batch_parts import samples_of
from tests.test_ppo_module import prompt_batch

PATIENCE = 20.0
"""seconds, for what takes none"""
BATCH = prompt_batch(7, first=40)
PARTS = parts_of(BATCH, 3)


def sample(part):
    return samples_of(part, 2)


def number_of(samples):
    return samples.batch.index.float()


def scores_of(sample, score, beside=True):
    with ScoringAhead(PARTS, sample, score, beside=beside) as ahead:
        ahead.samples()
        return ahead.scores()


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not reward_threads()


def reward_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "reward"]


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_samples_and_scores_come_in_the_order_of_the_batch(beside, size):
    with ScoringAhead(parts_of(BATCH, size), sample, number_of, beside=beside) as ahead:
        drawn, scores = ahead.samples(), ahead.scores()
    assert [row for part in drawn for row in part.responses] == [f"r{number}" for number in range(40, 47)]
    assert scores.tolist() == list(range(40, 47))


def test_a_part_is_scored_while_the_next_is_drawn_by_one_call_at_a_time():
    """Each side waits for the other: it ends only if they do overlap."""
    drawing, scoring = [threading.Event() for _ in PARTS], [threading.Event() for _ in PARTS]
    calling = threading.Lock()

    def drawn(part):
        number = [part is each for each in PARTS].index(True)
        drawing[number].set()
        if number:
            assert scoring[number - 1].wait(PATIENCE)
        return sample(part)

    def scored(samples):
        assert calling.acquire(blocking=False)
        number = int(samples.batch.index[0] - 40) // 3
        scoring[number].set()
        if number + 1 < len(PARTS):
            assert drawing[number + 1].wait(PATIENCE)
        calling.release()
        return number_of(samples)

    assert scores_of(drawn, scored).tolist() == list(range(40, 47))


@pytest.mark.parametrize(("parts", "beside"), [([BATCH], True), (PARTS, False)])
def test_one_part_or_a_reward_on_the_same_cores_is_scored_after_sampling_without_a_thread(parts, beside):
    seen = []
    scored = lambda samples: seen.append(threading.current_thread()) or number_of(samples)  # noqa: E731
    with ScoringAhead(parts, sample, scored, beside=beside) as ahead:
        ahead.samples()
        assert not seen
        assert not reward_threads()
        ahead.scores()
    assert seen == [threading.current_thread()] * len(parts)


def broken(prompts, responses):
    return [float("nan") if response in ("r44", "r45") else 1.0 for response in responses]


def refusing(prompts, responses):
    if "r44" in responses:
        raise KeyError
    return [1.0] * len(responses)


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize(
    ("function", "kind", "rows", "said"),
    [
        (
            "broken",
            ScoreError,
            (4, 5),
            r"2 of 3 scores .*\(responses 1, 2\).* in the data: 44, 45; rows 4, 5 of",
        ),
        ("refusing", RewardError, (4,), r"failed 3 times .*prompts in the data: 44; rows 4 of the iteration's batch$"),
    ],
)
def test_a_rewards_error_names_rows_of_the_whole_batch(beside, function, kind, rows, said):
    reward = CallableReward(f"{__name__}.{function}")
    object.__setattr__(reward.retry, "backoff", 0)
    with pytest.raises(kind, match=said) as caught:
        scores_of(sample, partial(score, reward), beside)
    assert caught.value.rows == rows


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize(("fails", "rows", "said"), [(0, (1,), "not finite$"), (2, (7,), "not finite; rows 7 of")])
def test_an_error_of_sampling_names_rows_of_the_whole_batch(beside, fails, rows, said):
    def drawn(part):
        if part is PARTS[fails]:
            raise NumericalError("not finite", rows=[1], evidence={"logits": 1})
        return sample(part)

    with pytest.raises(NumericalError, match=said) as caught:
        scores_of(drawn, number_of, beside)
    assert (caught.value.rows, caught.value.evidence) == (rows, {"logits": 1})


def test_when_the_reward_has_failed_no_further_part_is_drawn():
    drawn = []

    def slowly(part):
        drawn.append(part)
        if len(drawn) == 2:
            assert failed.wait(PATIENCE)
            time.sleep(0.05)
        return sample(part)

    def fails(samples):
        failed.set()
        raise RewardError("no")

    failed = threading.Event()
    with pytest.raises(RewardError):
        scores_of(slowly, fails)
    assert len(drawn) == 2


def failing_at(broken, begun, error):
    """Draws the parts, and at this one fails, once scoring has begun."""

    def drawn(part):
        if part is broken:
            assert begun.wait(PATIENCE)
            raise error
        return sample(part)

    return drawn


def test_an_error_waits_for_the_call_under_way_and_makes_no_other(caplog):
    begun, calls = threading.Event(), []

    def slowly(samples):
        begun.set()
        time.sleep(0.1)
        calls.append(samples)
        return number_of(samples)

    with pytest.raises(NumericalError):
        scores_of(failing_at(PARTS[2], begun, NumericalError("not finite")), slowly)
    assert len(calls) == 1
    assert not reward_threads()
    assert not caplog.records


@pytest.mark.parametrize(
    ("kind", "seconds"), [(KeyboardInterrupt, "_GRACE"), (NumericalError, "_PATIENCE"), (KeyError, "_PATIENCE")]
)
def test_a_reward_that_hangs_hides_neither_an_interrupt_nor_an_error(monkeypatch, caplog, kind, seconds):
    assert scoring_ahead._GRACE < scoring_ahead._PATIENCE
    monkeypatch.setattr(scoring_ahead, seconds, 0.01)
    begun, go_on = threading.Event(), threading.Event()

    def hanging(samples):
        begun.set()
        go_on.wait(PATIENCE)
        return number_of(samples)

    with pytest.raises(kind, match="broken"):
        scores_of(failing_at(PARTS[1], begun, kind("broken")), hanging)
    (said,) = caplog.messages
    assert said == (
        f"{kind.__name__} while the reward was scoring; its call has not ended within 0.01 s and is left running"
    )
    (left,) = [thread for thread in threading.enumerate() if thread.name == "reward"]
    assert left.daemon
    go_on.set()
    left.join(PATIENCE)


def test_scores_do_not_hold_what_no_reward_reads():
    seen = []
    with ScoringAhead(PARTS, sample, lambda s: seen.append(s) or number_of(s), beside=True) as ahead:
        drawn = ahead.samples()
        ahead.scores()
    assert all(part.hidden is not None and part.frozen_states is not None for part in drawn)
    assert all(part.hidden is None and part.frozen_states is None for part in seen)


def test_scores_are_those_of_the_callers_precision():
    """A reward of the user's own runs under the policy's autocast, in a thread as without one."""
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))

    def product(samples):
        return (samples.batch.index.float()[:, None].expand(-1, 8) / 7 @ weight).float().sum(dim=1)

    with torch.autocast("cpu", torch.bfloat16):
        alone, beside = scores_of(sample, product, False), scores_of(sample, product, True)
    assert torch.equal(alone, beside)
    assert not torch.equal(scores_of(sample, product), beside)
