from __future__ import annotations

import dataclasses
import logging
import threading
import time

import pytest
import torch

from lightning_rarlhf.data_types import Samples
from lightning_rarlhf.errors import RewardError, ScoreError
from lightning_rarlhf.reward_models import CallableReward
from lightning_rarlhf.rewards.retries import RetryConfig, call_scorer
from lightning_rarlhf.rollout import score
from tests.test_sampling import batch_of

PROMPTS = [f"prompt {row} " for row in range(11)]
RESPONSES = [f"response {row}" for row in range(11)]


class Scorer:
    """Fails on some responses, or on its first calls; counts calls."""

    def __init__(self, *, fails_on: set[int] = frozenset(), fails_first: int = 0, most_rows: int = 99) -> None:
        self.bad = {RESPONSES[row] for row in fails_on}
        self.fails_first = fails_first
        self.most_rows = most_rows
        self.calls: list[int] = []

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        self.calls.append(len(responses))
        found = self.bad.intersection(responses)
        if found or len(self.calls) <= self.fails_first or len(responses) > self.most_rows:
            raise KeyError(f"cannot read {found}")
        return [float(len(text)) for text in responses]


def call(scorer, **settings):
    settings.setdefault("backoff", 0)
    return call_scorer(scorer, PROMPTS, RESPONSES, name="mine", retry=RetryConfig(**settings))


def test_what_works_is_called_once():
    scorer = Scorer()
    assert call(scorer) == [10.0] * 10 + [11.0]
    assert scorer.calls == [11]


def test_a_passing_failure_is_tried_again_and_told(caplog):
    with caplog.at_level(logging.WARNING):
        assert len(call(Scorer(fails_first=2), attempts=3)) == 11
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [
        "reward mine: attempt 1 of 3 failed",
        "reward mine: attempt 2 of 3 failed",
    ]
    assert "response" not in caplog.text


@pytest.mark.parametrize("rows", [{0}, {10}, {3, 4, 9}, {0, 5, 6, 7}, set(range(11))])
def test_the_rows_at_fault_are_found_and_no_text_is_told(rows):
    message = rf"failed 2 times \(KeyError in test_retries.py:\d+\) on {len(rows)} of 11"
    with pytest.raises(RewardError, match=message) as caught:
        call(Scorer(fails_on=rows), attempts=2)
    assert set(caught.value.rows) == rows
    assert "response 3" not in str(caught.value)


def test_where_only_the_whole_batch_fails_all_rows_are_named():
    scorer = Scorer(most_rows=8)
    with pytest.raises(RewardError, match="on 11 of 11 responses") as caught:
        call(scorer, attempts=1)
    assert caught.value.rows == tuple(range(11))
    assert scorer.calls == [11, 5, 6]


def test_the_search_ends():
    scorer = Scorer(fails_on=set(range(11)))
    many = RESPONSES * 50
    with pytest.raises(RewardError, match="on 550 of 550"):
        call_scorer(scorer, many, many, name="mine", retry=RetryConfig(attempts=1))
    assert len(scorer.calls) <= 65


def test_the_pause_doubles(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(RewardError):
        call(Scorer(fails_on={0}), attempts=4, backoff=0.5)
    assert pauses == [0.5, 1, 2]


def test_a_call_that_hangs_is_left_behind_and_tried_again():
    end, calls = threading.Event(), []

    def hangs_once(prompts, responses):
        calls.append(threading.current_thread())
        if len(calls) == 1:
            end.wait(30)
        return [1.0] * len(responses)

    begin = time.monotonic()
    assert call(hangs_once, timeout=0.2) == [1.0] * 11
    assert time.monotonic() - begin < 10
    assert len(calls) == 2
    end.set()


def test_a_call_that_always_hangs_names_all_rows():
    end = threading.Event()
    with pytest.raises(RewardError, match=r"failed 2 times \(took more than 0.05 s\) on 11 of 11 responses"):
        call(lambda prompts, responses: end.wait(30), timeout=0.05, attempts=2)
    end.set()


def test_a_limit_changes_no_result():
    assert call(Scorer(), timeout=30) == call(Scorer())


def test_ctrl_c_is_no_failure():
    def interrupted(prompts, responses):
        raise KeyboardInterrupt

    for timeout in (None, 30):
        with pytest.raises(KeyboardInterrupt):
            call(interrupted, timeout=timeout)


def one_nan(prompts, responses):
    return [0.0] * (len(responses) - 1) + [float("inf")]


def raises_on_the_last(prompts, responses):
    if "r2" in responses:
        raise ValueError(responses)
    return [0.0] * len(responses)


@pytest.mark.parametrize(("function", "error"), [("one_nan", ScoreError), ("raises_on_the_last", RewardError)])
def test_the_rollout_adds_the_prompts_numbers_in_the_data(function, error):
    batch = batch_of([[3], [4], [5]])
    samples = Samples(
        batch=dataclasses.replace(batch, index=torch.tensor([70, 80, 90])),
        sequences=torch.zeros(3, 3, dtype=torch.int64),
        response_mask=torch.ones(3, 2, dtype=torch.bool),
        responses=("r0", "r1", "r2"),
    )
    reward = CallableReward(f"{__name__}.{function}", retry=RetryConfig(attempts=1))
    with pytest.raises(error, match=r"\((responses )?2\).*; their prompts in the data: 90$") as caught:
        score(reward, samples)
    assert caught.value.rows == (2,)
