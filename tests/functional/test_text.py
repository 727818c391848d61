from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_rarlhf.functional.text import distinct_ngrams, ngrams, repetition_rate

SENTENCES = st.lists(st.lists(st.sampled_from(["a", "b", "c"]), max_size=8).map(" ".join), max_size=4)


def test_hand_numbers():
    texts = ["the cat sat on the mat", "the cat ran"]
    assert distinct_ngrams(texts, 1) == pytest.approx(6 / 9)  # the cat sat on mat ran
    assert distinct_ngrams(texts, 2) == pytest.approx(6 / 9)  # the-cat cat-sat sat-on on-the the-mat cat-ran
    assert distinct_ngrams(texts, 3) == pytest.approx(5 / 9)


@given(SENTENCES, st.integers(1, 4))
def test_distinct_ngrams_against_a_plain_count(texts, n):
    lists = [text.split() for text in texts]
    seen = ["_".join(words[start : start + n]) for words in lists for start in range(len(words) - n + 1)]
    words = sum(map(len, lists))
    expected = len(Counter(seen)) / words if words else math.nan
    assert distinct_ngrams(texts, n) == pytest.approx(expected, nan_ok=True)


def test_an_ngram_does_not_cross_texts():
    assert distinct_ngrams(["a b", "c d"], 2) == pytest.approx(2 / 4)
    assert distinct_ngrams(["a b c d"], 2) == pytest.approx(3 / 4)


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_no_words(text):
    assert math.isnan(distinct_ngrams([text], 1))
    assert repetition_rate(text) == 0


def test_any_whitespace_parts_words_and_their_case_counts():
    assert list(ngrams("one\ttwo\n Two\u00a0three", 1)) == [("one",), ("two",), ("Two",), ("three",)]


@given(SENTENCES.map(" ".join), st.integers(1, 4))
def test_repetition_rate_counts_what_stood_before(text, n):
    grams = list(ngrams(text, n))
    again = sum(gram in grams[:place] for place, gram in enumerate(grams))
    assert repetition_rate(text, n) == pytest.approx(again / len(grams) if grams else 0)


def test_repetition_of_the_usual_four_words():
    assert repetition_rate("no no no no no no") == pytest.approx(2 / 3)
    assert repetition_rate("each word of this is new") == 0
    assert repetition_rate("no no no") == 0  # too short for four words in a row


def test_n_must_be_positive():
    with pytest.raises(ValueError, match="n: got 0, expected at least 1"):
        ngrams("a b", 0)
