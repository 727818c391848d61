from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from lightning_rarlhf.records.results import Run, read_run
from lightning_rarlhf.report import (
    figure_distribution,
    figure_frontier,
    figure_matched,
    figure_quantile,
    figure_score_quantile,
)
from lightning_rarlhf.report.figure_distribution import draw_distribution_shift
from lightning_rarlhf.report.figure_frontier import draw_frontier, has_kl
from lightning_rarlhf.report.figure_matched import draw_matched_kl
from lightning_rarlhf.report.figure_quantile import draw_quantile_curves, seed_rewards
from lightning_rarlhf.report.figure_score_quantile import LEVELS, draw_score_quantiles, score_quantiles
from lightning_rarlhf.report.figure_style import legend_below, looks, new_figure
from lightning_rarlhf.report.figure_training import draw_training_curves
from lightning_rarlhf.report.matched_kl import match_kl
from lightning_rarlhf.report.methods import Method
from lightning_rarlhf.report.quantile_curve import quantile_curve
from lightning_rarlhf.report.training_curves import TrainingCurve
from tests.report.run_folders import PROMPTS, scores_of, write_run

PNG, PDF = b"\x89PNG\r\n\x1a\n", b"%PDF-"


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory) -> list[Method]:
    folder = tmp_path_factory.mktemp("runs")
    kls = {"sft": (0.0,), "rlhf": (1.0, 4.0), "rarlhf": (2.0, 5.0)}
    return [
        Method(
            label=label,
            runs=tuple(
                read_run(write_run(folder / f"{label}{kl}", scores_of(int(kl), gain=kl), kl=kl)) for kl in values
            ),
        )
        for label, values in kls.items()
    ]


def require_pair(written: list[Path], stem: Path) -> None:
    assert written == [stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".pdf")]
    assert written[0].read_bytes().startswith(PNG)
    assert written[1].read_bytes().startswith(PDF)
    assert sorted(path.name for path in stem.parent.iterdir()) == sorted(path.name for path in written)


def test_each_picture_is_a_png_and_a_pdf(tmp_path: Path, methods: list[Method]) -> None:
    curves = {"rlhf": [{"risk/level": TrainingCurve(np.arange(5.0), np.ones(5))}]}
    draws = {
        "quantile": lambda stem: draw_quantile_curves(methods, stem, resamples=60),
        "one": lambda stem: draw_quantile_curves(methods[:1], stem, resamples=60),
        "quantiles": lambda stem: draw_score_quantiles(methods, stem),
        "shift": lambda stem: draw_distribution_shift(methods, stem),
        "frontier": lambda stem: draw_frontier(methods, stem, alpha=0.2, resamples=60),
        "matched": lambda stem: draw_matched_kl(match_kl(methods[1:], alpha=0.2, resamples=60), stem),
        "training": lambda stem: draw_training_curves(curves, stem, among=["sft", "rlhf"]),
    }
    for name, draw in draws.items():
        stem = tmp_path / name / "new" / "picture"
        require_pair(draw(stem), stem)


def test_both_classes_of_a_row_have_room_for_their_highest_bar(
    tmp_path: Path, methods: list[Method], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(figure_distribution, "save", lambda draw, stem: figures.append(draw()))
    draw_distribution_shift(methods, tmp_path)
    for axes in figures[0].axes:
        heights = [patch.get_data().values.max() for patch in axes.patches]
        assert 0 < max(heights) < axes.get_ylim()[1]
        assert axes.get_ylim()[0] == 0


def test_a_tail_of_few_prompts_is_drawn_without_its_band(
    tmp_path: Path, methods: list[Method], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(figure_matched, "save", lambda draw, stem: figures.append(draw()))
    sweeps = [Method(label=each.label, runs=(*methods[0].runs, *each.runs)) for each in methods[1:]]
    for alpha in (0.1, 0.05):  # 12 and 6 of 120 prompts
        draw_matched_kl(match_kl(sweeps, alpha=alpha, resamples=60), tmp_path)
    bands = [[len(axes.collections) for axes in figure.axes] for figure in figures]
    assert bands == [[2, 1, 2, 1], [2, 1, 0, 0]]
    words = [" ".join(text.get_text() for text in figure.texts) for figure in figures]
    assert ["< 10 prompts in the tail" in each for each in words] == [False, True]


def test_a_point_without_an_interval_has_no_bar(
    tmp_path: Path, methods: list[Method], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bar of no length would say that the estimate is exact."""
    figures: list[Figure] = []
    monkeypatch.setattr(figure_frontier, "save", lambda draw, stem: figures.append(draw()))
    for alpha in (0.1, 0.05):  # 12 and 6 of 120 prompts
        draw_frontier(methods[1:], tmp_path, alpha=alpha, resamples=60)
    bars = [figure.axes[1].containers[0].lines[2][1].get_segments() for figure in figures]
    assert [{len(bar) for bar in of_figure} for of_figure in bars] == [{2}, {0}]  # ends of each bar


def test_equal_input_gives_equal_files(tmp_path: Path, methods: list[Method]) -> None:
    first, again = (draw_distribution_shift(methods, tmp_path / name / "p") for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_pictures_show_their_data(tmp_path: Path, methods: list[Method]) -> None:
    other = [methods[0], Method(label="rlhf", runs=methods[2].runs)]
    base = [methods[0], Method(label="rlhf", runs=methods[1].runs)]
    for name, draw in (
        ("quantile", lambda given, stem: draw_quantile_curves(given, stem, resamples=60)),
        ("quantiles", draw_score_quantiles),
        ("shift", draw_distribution_shift),
        ("frontier", lambda given, stem: draw_frontier(given, stem, alpha=0.2, resamples=60)),
    ):
        before, after = draw(base, tmp_path / name / "a"), draw(other, tmp_path / name / "b")
        assert before[0].read_bytes() != after[0].read_bytes()


def test_prompts_of_one_class_or_none_make_a_picture(tmp_path: Path, methods: list[Method]) -> None:
    for number, label in enumerate((1.0, -1.0)):
        column = np.full((PROMPTS, 1), label)
        runs = [Run(**{**vars(run), "columns": {**run.columns, "label": column}}) for run in methods[0].runs]
        stem = tmp_path / str(number) / "p"
        require_pair(draw_distribution_shift([Method(label="a", runs=tuple(runs))], stem), stem)


def test_every_method_has_a_look_of_its_own() -> None:
    found = looks([str(number) for number in range(32)])
    assert len({(look.colour, look.dash) for look in found.values()}) == 32
    assert len({(look.colour, look.marker) for look in found.values()}) == 32
    first = list(found.values())[:8]
    assert len({look.colour for look in first}) == len({look.marker for look in first}) == 8


def test_a_legend_of_many_methods_makes_the_figure_higher_and_nothing_smaller() -> None:
    figure = new_figure(10, 4.9, "title", "subtitle")
    figure.subplots_adjust(top=0.79, bottom=0.2)
    axes = figure.add_subplot()
    for number in range(12):
        axes.plot([0, 1], label=f"method {number} of a long name")
    title, box = figure.texts[0].get_position()[1], axes.get_position()
    legend_below(figure, axes, columns=5)
    height, now = figure.get_figheight(), axes.get_position()
    assert height == pytest.approx(4.9 + 0.21 * 3)  # three columns fit
    assert now.height * height == pytest.approx(box.height * 4.9)
    assert height * (1 - figure.texts[0].get_position()[1]) == pytest.approx(4.9 * (1 - title))


def test_quantiles_of_rewards_are_of_all_seeds_with_a_band_for_their_number(methods: list[Method]) -> None:
    one, two = (score_quantiles(Method(label="a", runs=methods[1].runs[:count])) for count in (1, 2))
    pooled = np.concatenate([run.columns["score"].ravel() for run in methods[1].runs])
    assert two.estimate.tolist() == np.quantile(pooled, LEVELS, method="inverted_cdf").tolist()
    for count, found in ((1, one), (2, two)):
        reach = np.sqrt(np.log(2 * count / 0.05) / (2 * PROMPTS))
        assert np.isinf(found.low).tolist() == (reach >= LEVELS).tolist()
        assert np.isinf(found.high).tolist() == (1 - reach < LEVELS).tolist()


@pytest.mark.parametrize(("count", "bands"), [(6, 6), (7, 1)])
def test_of_many_methods_only_the_first_has_a_band(methods: list[Method], count: int, bands: int) -> None:
    found = {str(number): score_quantiles(methods[0]) for number in range(count)}
    axes = Figure().add_subplot()
    figure_score_quantile._draw(axes, found, 100)
    assert len(axes.collections) == bands
    assert len([line for line in axes.lines if not line.get_label().startswith("_")]) == count

    scores, reward = np.arange(50.0), np.arange(50.0) % 7
    curves = {
        str(number): quantile_curve(scores, reward, confidence=0.95, resamples=100, seed=0) for number in range(2)
    }
    axes = Figure().add_subplot()
    figure_quantile._draw(axes, curves, among=[str(number) for number in range(count)])
    assert len(axes.collections) == min(bands, 2)


def test_looks_do_not_depend_on_what_else_is_drawn() -> None:
    assert looks(["a", "b", "c"])["b"] == looks(["a", "b"])["b"]


def test_rewards_are_per_seed_and_mean_over_completions(tmp_path: Path) -> None:
    scores = np.stack([scores_of(1), scores_of(2)], axis=1)
    run = read_run(write_run(tmp_path, scores))
    assert seed_rewards(Method(label="a", runs=(run,)))[:, 0] == pytest.approx(scores.mean(axis=1), abs=1e-6)


def test_a_method_without_kl_is_noticed(methods: list[Method]) -> None:
    assert has_kl(methods[1])
    nothing = np.full((PROMPTS, 1), np.nan)
    run = methods[0].runs[0]
    assert not has_kl(Method(label="a", runs=(Run(**{**vars(run), "columns": {**run.columns, "kl": nothing}}),)))


def test_a_failed_picture_leaves_the_old_one(
    tmp_path: Path, methods: list[Method], monkeypatch: pytest.MonkeyPatch
) -> None:
    stem = tmp_path / "p"
    before = [path.read_bytes() for path in draw_distribution_shift(methods, stem)]

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_distribution_shift(methods[:1], stem)
    assert [stem.with_name(f"p.{kind}").read_bytes() for kind in ("png", "pdf")] == before
