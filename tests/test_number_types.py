"""Settings out of their bounds are refused in Python as on the command line."""

from __future__ import annotations

import pytest

from lightning_rarlhf.config import EvaluationConfig, LoRAConfig, PPOConfig, SamplingConfig
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.number_types import number_words


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SamplingConfig(top_p=1.5),
            r"SamplingConfig\.top_p: got 1\.5, expected a number above 0 and at most 1$",
        ),
        (lambda: SamplingConfig(top_p="high"), r"SamplingConfig\.top_p: got 'high', expected a number above 0 and"),
        (lambda: EvaluationConfig(tail_levels=(0.1, 2.0)), r"EvaluationConfig\.tail_levels\[1\]: got 2\.0"),
        (lambda: PPOConfig(target_kl=-1.0), r"PPOConfig\.target_kl: got -1\.0, expected a number above 0$"),
        (
            lambda: PPOConfig(minibatch_size=2.5),
            r"PPOConfig\.minibatch_size: got 2\.5, expected a whole number above 0$",
        ),
        (lambda: LoRAConfig(r=0), r"LoRAConfig\.r: got 0, expected a whole number above 0$"),
    ],
)
def test_a_number_out_of_its_bounds_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_bounds_are_allowed_and_so_is_none():
    assert SamplingConfig(top_p=1.0).top_p == 1.0
    assert PPOConfig(target_kl=None).target_kl is None
    assert EvaluationConfig(tail_levels=()).tail_levels == ()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("PositiveInt", "a whole number above 0"),
        ("NonNegativeInt", "a whole number from 0 on"),
        ("PositiveFloat", "a number above 0"),
        ("NonNegativeFloat", "a number from 0 on"),
        ("ClosedUnitInterval", "a number from 0 to 1"),
        ("OpenUnitInterval", "a number above 0 and below 1"),
        ("Fraction", "a number above 0 and at most 1"),
        ("Weight", "a finite number from 0 on"),
        ("PositiveWeight", "a finite number above 0"),
        ("NotEmptyStr", None),
        ("Unheard", None),
    ],
)
def test_every_number_type_in_words(name, words):
    assert number_words(name) == words
