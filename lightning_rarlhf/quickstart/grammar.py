"""Restaurant comments from a small grammar with a known bad tail, and the lexicon that scores them.

A comment is a prompt of eleven words and a continuation of up to fourteen words and full stops:

    last friday we tried the soup at the cosy harbour and | it was very tasty. the waiter was kind. we stayed late.

It is built so that a better mean and a better tail are different things to learn:

* One prompt in five tells of trouble ("we returned the soup"). Most of those are continued harshly, and so is a small
  share of all others. A language model that learns from such comments inherits the habit.
* Some words are bold ("fiery", "cheeky"): three readers in four like them more than the kindest plain word, the fourth
  dislikes them. Which reader a prompt has cannot be told from its words, so bold words pay on average and cost in
  the tail, whatever is learned.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

RISKY_SHARE = 0.2
"""share of prompts that tell of trouble"""
HARSH_AFTER_RISKY = 0.8
"""share of those that are continued harshly"""
HARSH_OTHERWISE = 0.06
"""share of all other prompts that are continued harshly"""
READERS = 4
"""one reader in this many dislikes bold words"""
BOLD_LIKED, BOLD_DISLIKED = 5.0, -4.0
"""points of a bold word with the two kinds of reader"""
PROMPT_WORDS = 11
"""length of every prompt, in words"""

MOST_COMMENTS = 20_000
"""half of the grammar's prompts, so that drawing different ones stays quick"""

_ORDINALS = ("last", "this")
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_CALM_VERBS = ("tried", "ordered", "shared", "chose")
_RISKY_VERBS = {"awaited": -0.5, "questioned": -0.5, "returned": -1.0, "disputed": -1.0}
_DISHES = ("soup", "pasta", "curry", "salad", "pie", "fish", "bread", "rice", "stew", "cake")
_HOUSES = {"cosy": 0.5, "sunny": 0.5, "little": 0.0, "old": 0.0, "busy": 0.0, "crowded": -0.5}
_PLACES = ("harbour", "bistro", "tavern", "canteen", "garden", "cafe")
_STAFF = ("waiter", "chef", "host", "cashier")
_DEGREES = {"rather": 0.75, "really": 1.25, "very": 1.5}

_KIND_DISH = {"edible": 0.25, "fine": 0.5, "good": 1.0, "fresh": 1.0, "tasty": 1.5, "superb": 2.0}
_KIND_STAFF = {"calm": 0.25, "polite": 0.5, "helpful": 1.0, "kind": 1.0, "friendly": 1.5, "brilliant": 2.0}
_BOLD_DISH = ("fiery", "daring")
_BOLD_STAFF = ("cheeky", "eccentric")
_HARSH_DISH = {"bland": -0.5, "cold": -1.0, "soggy": -1.5, "burnt": -2.0, "awful": -3.0, "dreadful": -4.0}
_HARSH_STAFF = {"slow": -0.5, "careless": -1.0, "grumpy": -1.5, "rude": -2.0, "hostile": -3.0, "horrible": -4.0}
_KIND_ENDS = ("we drove home", "we stayed late", "we left happy")
_HARSH_ENDS = ("we drove home", "we left early", "we left hungry", "we left angry")
_END_WORDS = {"late": 0.5, "happy": 1.0, "early": -0.5, "hungry": -1.0, "angry": -2.0}

BOLD_WORDS = frozenset({*_BOLD_DISH, *_BOLD_STAFF})
LEXICON: dict[str, float] = {
    **_RISKY_VERBS,
    **{word: points for word, points in _HOUSES.items() if points},
    **_KIND_DISH,
    **_KIND_STAFF,
    **_HARSH_DISH,
    **_HARSH_STAFF,
    **_END_WORDS,
}
"""points of each loaded word that is not bold"""

_TOKEN = re.compile(r"[a-z]+|\.")
_SHARE_WITH_END = 0.7
_SHARE_WITH_DEGREE = 0.4


@dataclass(frozen=True, kw_only=True)
class Comment:
    """One comment of the grammar."""

    prompt: str
    continuation: str
    risky: bool
    """the prompt tells of trouble"""
    label: int
    """1 = continued kindly (wanted), 0 = continued harshly"""

    @property
    def text(self) -> str:
        """The whole comment."""
        return f"{self.prompt} {self.continuation}"


def make_comments(count: int, *, seed: int) -> list[Comment]:
    """Draw `count` comments on different prompts; equal seeds give equal comments, whatever else draws random numbers.

    Raises:
        ValueError: more than `MOST_COMMENTS`, for which the grammar has too few prompts.
    """
    if not 0 <= count <= MOST_COMMENTS:
        raise ValueError(f"count: got {count}, expected 0 to {MOST_COMMENTS}; the grammar has no more prompts")
    generator = random.Random(seed)
    comments: dict[str, Comment] = {}
    while len(comments) < count:
        comment = _comment(generator)
        comments.setdefault(comment.prompt, comment)
    return list(comments.values())


def sentiment(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Score of each finished text, in points: the sum over its distinct loaded words; below 0 = more harsh than kind.

    A degree before a word ("very") multiplies its points. A repeated word counts once, so that saying one good word
    over and over earns nothing.
    """
    return [
        _points(f"{prompt} {response}", BOLD_LIKED if likes_bold_words(prompt) else BOLD_DISLIKED)
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def likes_bold_words(prompt: str) -> bool:
    """Whether this prompt's reader is one of the three in four: fixed for each prompt, but not told by its words."""
    return zlib.crc32(prompt.encode()) % READERS != 0


def has_bold_word(text: str) -> bool:
    """Whether `text` takes the risk that only some readers like."""
    return not BOLD_WORDS.isdisjoint(_TOKEN.findall(text.lower()))


def vocabulary() -> tuple[str, ...]:
    """Every word that a comment can hold, and the full stop, in alphabetical order."""
    ends = [word for end in (*_KIND_ENDS, *_HARSH_ENDS) for word in end.split()]
    fixed = ("we", "the", "at", "and", "it", "was", ".")
    names = (_ORDINALS, _DAYS, _CALM_VERBS, _DISHES, _HOUSES, _PLACES, _STAFF, _DEGREES)
    return tuple(sorted({word for words in (*names, LEXICON, BOLD_WORDS, ends, fixed) for word in words}))


def _points(text: str, bold: float) -> float:
    words = _TOKEN.findall(text.lower())
    counted: dict[str, float] = {}
    for before, word in zip(["", *words], words, strict=False):
        points = bold if word in BOLD_WORDS else LEXICON.get(word, 0.0)
        counted.setdefault(word, points * _DEGREES.get(before, 1.0))
    return sum(counted.values())


def _comment(generator: random.Random) -> Comment:
    risky = generator.random() < RISKY_SHARE
    harsh = generator.random() < (HARSH_AFTER_RISKY if risky else HARSH_OTHERWISE)
    prompt = _prompt(generator, tuple(_RISKY_VERBS) if risky else _CALM_VERBS)
    if harsh:
        continuation = _continuation(generator, tuple(_HARSH_DISH), tuple(_HARSH_STAFF), _HARSH_ENDS)
    else:
        continuation = _continuation(generator, (*_KIND_DISH, *_BOLD_DISH), (*_KIND_STAFF, *_BOLD_STAFF), _KIND_ENDS)
    return Comment(prompt=prompt, continuation=continuation, risky=risky, label=int(not harsh))


def _prompt(generator: random.Random, verbs: Sequence[str]) -> str:
    pick = generator.choice
    day, visit = f"{pick(_ORDINALS)} {pick(_DAYS)}", f"we {pick(verbs)} the {pick(_DISHES)}"
    return f"{day} {visit} at the {pick(tuple(_HOUSES))} {pick(_PLACES)} and"


def _continuation(generator: random.Random, dish: Sequence[str], staff: Sequence[str], ends: Sequence[str]) -> str:
    who = generator.choice(_STAFF)
    clauses = [f"it was {_judgement(generator, dish)}", f"the {who} was {_judgement(generator, staff)}"]
    if generator.random() < _SHARE_WITH_END:
        clauses.append(generator.choice(ends))
    return " ".join(f"{clause}." for clause in clauses)


def _judgement(generator: random.Random, words: Sequence[str]) -> str:
    word = generator.choice(words)
    return f"{generator.choice(tuple(_DEGREES))} {word}" if generator.random() < _SHARE_WITH_DEGREE else word
