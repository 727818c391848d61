"""How varied a generated text is, whatever it says: distinct n-grams and repetition. Whitespace parts words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence


def ngrams(text: str, n: int) -> Iterator[tuple[str, ...]]:
    """Every run of `n` words of `text`, in order; none where it has fewer.

    Raises:
        ValueError: `n` is below 1.

    >>> list(ngrams("the food was cold", 3))
    [('the', 'food', 'was'), ('food', 'was', 'cold')]
    """
    if n < 1:
        raise ValueError(f"n: got {n}, expected at least 1")
    words = text.split()
    return zip(*(words[start:] for start in range(n)), strict=False)


def distinct_ngrams(texts: Sequence[str], n: int) -> float:
    """Dist-n: distinct n-grams of all `texts` together, divided by their words (Li et al., 2016).

    The texts of one prompt are its completions; the mean over prompts is then the figure of DExperts (Liu et al.,
    2021). An n-gram does not cross from one text to the next. NaN where there is no word.

    >>> distinct_ngrams(["good food", "good film"], 1)
    0.75
    """
    found = {gram for text in texts for gram in ngrams(text, n)}
    words = sum(len(text.split()) for text in texts)
    return len(found) / words if words else math.nan


def repetition_rate(text: str, n: int = 4) -> float:
    """Share of a text's n-grams that stood in it before: 1 − distinct / all (seq-rep-n of Welleck et al., 2020).

    0 where the text has no n-gram: nothing was said twice.

    >>> repetition_rate("so good so good so good", n=2)
    0.6
    """
    grams = list(ngrams(text, n))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
