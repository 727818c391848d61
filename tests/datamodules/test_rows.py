from __future__ import annotations

import math
from typing import Any

import pytest
from datasets import Dataset

from datamodules.rows import (
    RowSchema,
    ThresholdRule,
    ValueRule,
    fingerprint,
    flatten,
    keep_usable,
    to_rows,
    values_found,
)
from lightning_rarlhf.errors import DataError

NAN = math.nan


@pytest.mark.parametrize(
    ("value", "label"),
    [(1, 1), (1.0, 1), ("1", 1), (" 1.0 ", 1), (True, 0), (0, 0), ("pos", 0), (None, -1), ("", -1), (NAN, -1)],
)
def test_value_rule(value: Any, label: int) -> None:
    assert ValueRule(column="c", wanted="1").label(value) == label


def test_value_rule_with_both_classes_named() -> None:
    rule = ValueRule(column="c", wanted="0", unwanted="1")
    assert [rule.label(value) for value in (0, "1", -1, "2")] == [1, 0, -1, -1]


@pytest.mark.parametrize(("wanted", "value"), [("Positive", "positive"), ("True", True), ("false", "False")])
def test_words_compare_without_case(wanted: str, value: Any) -> None:
    assert ValueRule(column="c", wanted=wanted).label(value) == 1


@pytest.mark.parametrize(
    ("value", "label"), [(0.5, 1), (0.5001, 0), ("0.2", 1), (0, 1), (None, -1), (NAN, -1), ("n/a", -1)]
)
def test_threshold_rule(value: Any, label: int) -> None:
    assert ThresholdRule(column="c", at_most=0.5).label(value) == label


def test_a_column_of_texts_makes_a_short_error() -> None:
    """Texts of the toxicity datasets are no reading matter, and one of them may be pages long."""
    texts = [f"comment {n:02d}\n\n{'goes on and on ' * 99}" for n in range(30)]
    shown = values_found(texts)
    assert shown.startswith("comment 00 goes on and …, comment 01 goes on and …, ")
    assert shown.count("comment") == 10
    assert shown.endswith(", …")
    assert "\n" not in shown


def test_columns_of_a_publisher_become_ours() -> None:
    raw = Dataset.from_list(
        [
            {"id": 7, "in": {"text": "one", "t": 0.25}, "kind": "good"},
            {"id": 8, "in": {"text": None, "t": None}, "kind": "bad"},
            {"id": 9, "in": None, "kind": None},
        ]
    )
    schema = RowSchema(text="in.text", rule=ValueRule(column="kind", wanted="good"), score="in.t")
    rows = to_rows(flatten(raw), schema, "here")
    assert rows.column_names == ["text", "label", "score", "row"]
    assert rows["text"][:] == ["one", "", ""]
    assert rows["label"][:] == [1, 0, -1]
    assert rows["row"][:] == [0, 1, 2]
    assert rows["score"][0] == 0.25
    assert all(math.isnan(score) for score in rows["score"][1:])


def test_one_column_can_mean_two_things() -> None:
    raw = Dataset.from_dict({"text": ["a", "b"], "t": [0.1, 0.9]})
    rows = to_rows(raw, RowSchema(text="text", rule=ThresholdRule(column="t", at_most=0.5), score="t"), "here")
    assert rows["label"][:] == [1, 0]
    assert rows["score"][:] == pytest.approx([0.1, 0.9])


def test_without_rule_and_score_nothing_is_known() -> None:
    rows = to_rows(Dataset.from_dict({"text": ["a"]}), RowSchema(text="text"), "here")
    assert rows["label"][:] == [-1]
    assert math.isnan(rows["score"][0])


def test_numbers_as_texts() -> None:
    rows = to_rows(Dataset.from_dict({"text": [7, None]}), RowSchema(text="text"), "here")
    assert rows["text"][:] == ["7", ""]


def test_missing_column_lists_those_found() -> None:
    raw = Dataset.from_dict({"body": ["a"], "toxic": [1]})
    with pytest.raises(DataError, match="here: no column 'text'; columns found: body, toxic"):
        to_rows(raw, RowSchema(text="text"), "here")


def test_a_column_that_is_no_text() -> None:
    raw = Dataset.from_dict({"text": [["a", "b"]]})
    with pytest.raises(DataError, match="column 'text' holds list values; expected text"):
        to_rows(raw, RowSchema(text="text"), "here")


def usable(texts: list[str], labels: list[int], **options: Any) -> list[str]:
    rows = Dataset.from_dict({"text": texts, "label": labels})
    kept: list[str] = keep_usable(rows, source="here", **options)["text"][:]
    return kept


def test_length_filter_is_strict_and_counts_characters() -> None:
    texts = ["12345", "123456", "😀😀😀😀😀", "😀😀😀😀😀😀"]
    assert usable(texts, [1] * 4, min_characters=5, label_required=False) == [texts[1], texts[3]]


def test_blank_texts_are_never_kept() -> None:
    assert usable(["", "  \n ", "\u3000", "x"], [1] * 4, min_characters=0, label_required=False) == ["x"]
    assert usable([" " * 9, "x" * 9], [1] * 2, min_characters=5, label_required=False) == ["x" * 9]


def test_unknown_classes_can_be_left_out() -> None:
    assert usable(["a", "b", "c"], [1, -1, 0], min_characters=0, label_required=True) == ["a", "c"]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"min_characters": 200, "label_required": False}, "text of more than 200 characters"),
        ({"min_characters": 0, "label_required": True}, "known class"),
    ],
)
def test_filter_that_leaves_nothing_is_named(options: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=f"here: no row left of 2 after the filter '{what}'"):
        usable(["a", "b"], [-1, -1], **options)


def test_rows_that_are_left_out_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    rows = to_rows(
        Dataset.from_dict({"t": ["good text", "x", " ", "fair text"], "c": [1, 1, 0, None]}),
        RowSchema(text="t", rule=ValueRule(column="c", wanted="1")),
        "here",
    )
    with caplog.at_level("INFO"):
        keep_usable(rows, min_characters=1, label_required=True, source="here (train)")
    assert (
        "here (train): left out of 4 rows: 2 without a text of more than 1 characters, 1 without a known class"
        in caplog.text
    )
    caplog.clear()
    with caplog.at_level("INFO"):
        keep_usable(rows.select([0]), min_characters=1, label_required=True, source="here")
    assert not caplog.text


def test_fingerprint_depends_on_input_step_and_parameters() -> None:
    one, two = Dataset.from_dict({"text": ["a"]}), Dataset.from_dict({"text": ["b"]})
    schema = RowSchema(text="text")
    names = [
        fingerprint(one, "step", schema),
        fingerprint(two, "step", schema),
        fingerprint(one, "other", schema),
        fingerprint(one, "step", RowSchema(text="text", score="s")),
    ]
    assert len(set(names)) == 4
    assert fingerprint(Dataset.from_dict({"text": ["a"]}), "step", RowSchema(text="text")) == names[0]
