from __future__ import annotations

import random
import statistics

import pytest

from lightning_rarlhf.quickstart.grammar import (
    BOLD_DISLIKED,
    BOLD_LIKED,
    BOLD_WORDS,
    HARSH_AFTER_RISKY,
    HARSH_OTHERWISE,
    LEXICON,
    MOST_COMMENTS,
    PROMPT_WORDS,
    RISKY_SHARE,
    has_bold_word,
    likes_bold_words,
    make_comments,
    sentiment,
    vocabulary,
)

COMMENTS = make_comments(4000, seed=0)


def score(response: str, prompt: str = "") -> float:
    return sentiment([prompt], [response])[0]


def prompt_of(*, fond_of_bold_words: bool) -> str:
    return next(c.prompt for c in COMMENTS if likes_bold_words(c.prompt) == fond_of_bold_words)


def test_equal_seeds_give_equal_comments_whatever_else_draws() -> None:
    random.seed(5)
    first = make_comments(20, seed=3)
    random.random()
    assert make_comments(20, seed=3) == first
    assert make_comments(20, seed=4) != first
    assert make_comments(10, seed=3) == first[:10]


def test_no_prompt_occurs_twice_and_all_have_one_length() -> None:
    prompts = [comment.prompt for comment in COMMENTS]
    assert len(set(prompts)) == len(prompts) == 4000
    assert {len(prompt.split()) for prompt in prompts} == {PROMPT_WORDS}


def test_every_word_is_in_the_vocabulary() -> None:
    used = {word for comment in COMMENTS for word in comment.text.replace(".", " .").split()}
    assert used <= set(vocabulary())
    assert set(LEXICON) | BOLD_WORDS <= set(vocabulary())
    assert list(vocabulary()) == sorted(set(vocabulary()))


def test_a_continuation_fits_the_response_length_of_the_quickstart() -> None:
    lengths = {len(comment.continuation.replace(".", " .").split()) for comment in COMMENTS}
    assert max(lengths) < 16  # 16 tokens, the last of which ends the text


@pytest.mark.parametrize(("risky", "harsh_share"), [(True, HARSH_AFTER_RISKY), (False, HARSH_OTHERWISE)])
def test_trouble_is_continued_harshly_as_often_as_is_said(risky: bool, harsh_share: float) -> None:
    labels = [comment.label for comment in COMMENTS if comment.risky == risky]
    expected = RISKY_SHARE if risky else 1 - RISKY_SHARE
    assert len(labels) / len(COMMENTS) == pytest.approx(expected, abs=0.03)
    assert 1 - statistics.mean(labels) == pytest.approx(harsh_share, abs=0.05)


def test_harsh_comments_are_the_bad_tail() -> None:
    scores = sentiment([c.prompt for c in COMMENTS], [c.continuation for c in COMMENTS])
    ordered = sorted(zip(scores, COMMENTS, strict=True), key=lambda pair: pair[0])
    tail = ordered[: len(ordered) // 10]
    assert statistics.mean(1 - comment.label for _, comment in tail) > 0.7
    assert statistics.mean(points for points, _ in tail) < -6 < 1 < statistics.mean(scores)
    assert len(set(scores)) > 100  # graded: a distribution, not two values


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("", 0.0),
        ("it was on the table", 0.0),
        ("it was tasty.", 1.5),
        ("it was very tasty.", 2.25),
        ("it was rather burnt. the waiter was rude.", -1.5 - 2.0),
        ("It was TASTY.", 1.5),
        ("tasty tasty tasty", 1.5),
        ("tasty. really tasty.", 1.5),
        ("very", 0.0),
        ("tastyish", 0.0),
    ],
)
def test_the_lexicon_scores_by_hand(text: str, points: float) -> None:
    assert score(text) == pytest.approx(points)


def test_the_prompt_counts_too() -> None:
    assert score("tasty", prompt="we returned the soup") == pytest.approx(-1.0 + 1.5)


def test_a_bold_word_divides_the_readers() -> None:
    for fond, points in ((True, BOLD_LIKED), (False, BOLD_DISLIKED)):
        prompt = prompt_of(fond_of_bold_words=fond)
        assert score("it was fiery.", prompt) - score("", prompt) == pytest.approx(points)
        assert score("it was really fiery.", prompt) - score("", prompt) == pytest.approx(1.25 * points)


def test_bold_words_pay_on_average_and_cost_in_the_tail() -> None:
    fond = [likes_bold_words(comment.prompt) for comment in COMMENTS]
    assert statistics.mean(fond) == pytest.approx(0.75, abs=0.03)
    kindest = max(LEXICON.values())
    gain = statistics.mean(BOLD_LIKED if likes else BOLD_DISLIKED for likes in fond)
    assert BOLD_DISLIKED < 0 < kindest < gain


@pytest.mark.parametrize("word", ["crowded", "returned", "awaited", "tried", "soup", "harbour", "last", "monday"])
def test_no_word_of_the_prompt_tells_the_reader(word: str) -> None:
    fond = [likes_bold_words(comment.prompt) for comment in COMMENTS if word in comment.prompt.split()]
    assert statistics.mean(fond) == pytest.approx(0.75, abs=0.1)


def test_bold_words_are_found() -> None:
    assert has_bold_word("the host was Cheeky.")
    assert not has_bold_word("the host was friendly.")


def test_more_comments_than_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match=f"got {MOST_COMMENTS + 1}, expected 0 to {MOST_COMMENTS}"):
        make_comments(MOST_COMMENTS + 1, seed=0)


def test_prompts_and_responses_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="shorter"):
        sentiment(["a", "b"], ["a"])
