from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightning_rarlhf.figures import draw_score_distributions

PNG = b"\x89PNG\r\n\x1a\n"
WIDTH, HEIGHT = slice(16, 20), slice(20, 24)


def scores(count: int = 200, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(0).normal(size=count) + shift


def size_of(picture: Path) -> tuple[int, int]:
    header = picture.read_bytes()[:24]
    return int.from_bytes(header[WIDTH]), int.from_bytes(header[HEIGHT])


@pytest.mark.parametrize("policies", [1, 3, 5])
def test_a_picture_has_a_row_for_each_policy(tmp_path: Path, policies: int) -> None:
    named = {f"policy {number}": scores(shift=number) for number in range(policies)}
    path = draw_score_distributions(named, tmp_path / "new" / "picture.png", title="a title")
    assert path.read_bytes().startswith(PNG)
    assert size_of(path) == (1650, round(150 * (2.3 + 1.2 * max(2, policies))))
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]


def test_the_picture_depends_on_every_score(tmp_path: Path) -> None:
    named = {"before": scores(), "after": scores(shift=1.0)}
    first = draw_score_distributions(named, tmp_path / "first.png", title="t").read_bytes()
    again = draw_score_distributions(named, tmp_path / "again.png", title="t").read_bytes()
    named["after"] = named["after"].copy()
    named["after"][named["after"].argmin()] -= 3.0
    other = draw_score_distributions(named, tmp_path / "other.png", title="t").read_bytes()
    assert first == again
    assert first != other


def test_scores_that_are_all_equal_make_a_picture(tmp_path: Path) -> None:
    path = draw_score_distributions({"one": np.ones(50), "two": np.ones(50)}, tmp_path / "p.png", title="t")
    assert path.read_bytes().startswith(PNG)


def test_the_picture_in_place_stays_when_a_new_one_fails(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="one has 1 that are NaN"):
        draw_score_distributions({"one": [1.0, float("nan"), 2.0]}, path, title="t")
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("count", "policies", "complaint"),
    [
        (50, 0, "got 0 policies, expected 1 to 5"),
        (50, 6, "got 6 policies, expected 1 to 5"),
        (9, 1, "at least 10 values"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path: Path, count: int, policies: int, complaint: str) -> None:
    named = {str(number): scores(count) for number in range(policies)}
    with pytest.raises(ValueError, match=complaint):
        draw_score_distributions(named, tmp_path / "p.png", title="t")
    assert not list(tmp_path.iterdir())
