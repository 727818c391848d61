from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path

import pytest

from lightning_rarlhf.functional.statistics import Interval, MeanSD
from lightning_rarlhf.records.results import read_run
from lightning_rarlhf.report.cell_texts import explanation
from lightning_rarlhf.report.comparison import Comparison, compare
from lightning_rarlhf.report.methods import group
from lightning_rarlhf.report.metric_names import metric_name
from lightning_rarlhf.report.numbers import TOO_FEW, decimals_for, ends, number, spread, verdict
from lightning_rarlhf.report.table_csv import as_csv
from lightning_rarlhf.report.table_latex import as_latex
from lightning_rarlhf.report.table_markdown import as_markdown, as_paper_markdown
from lightning_rarlhf.report.table_terminal import print_comparison
from tests.report.run_folders import scores_of, write_run


def interval(estimate: float, low: float, high: float) -> Interval:
    return Interval(estimate=estimate, low=low, high=high, confidence=0.95, n=100, method="m")


def test_decimals_show_the_narrowest_half_width_with_two_digits() -> None:
    assert decimals_for([interval(5, 4.77, 5.23)]) == 2
    assert decimals_for([interval(5, 4.77, 5.23), interval(5, 4.977, 5.023)]) == 3
    assert decimals_for([interval(500, 400, 600)]) == 0
    assert decimals_for([interval(5, 5, 5), interval(5, -math.inf, math.inf)]) == 3
    assert decimals_for([interval(0, -1e-9, 1e-9)]) == 4


def test_signs() -> None:
    assert number(-1.26, 1) == "−1.3"
    assert number(-0.04, 1) == "0.0"
    assert number(0.04, 1, sign=True) == "0.0"
    assert number(2.0, 1, sign=True) == "+2.0"


def test_ends_that_are_not_known_are_not_made_up() -> None:
    assert ends(interval(1, -0.5, 2), 1) == "−0.5 to 2.0"
    assert ends(interval(1, -math.inf, math.inf), 1) == TOO_FEW
    assert ends(interval(1, -math.inf, 2), 1) == "at most 2.0"
    assert ends(interval(1, 0.5, math.inf), 1) == "at least 0.5"


def test_spread_is_of_seeds_only() -> None:
    assert spread(MeanSD(1.0, math.nan, 1), 2) == ""
    assert spread(MeanSD(1.0, 0.25, 3), 2) == " ± 0.25"


def test_a_difference_is_one_only_when_its_interval_excludes_zero() -> None:
    assert verdict(interval(1, 0.5, 1.5)) == "up"
    assert verdict(interval(-1, -1.5, -0.5)) == "down"
    assert verdict(interval(1, -0.1, 2.1)) == "no clear difference"
    assert verdict(interval(1, -math.inf, math.inf)) == "no clear difference"


@pytest.mark.parametrize(
    ("metric", "heading"),
    [
        ("score_mean", "mean reward ↑"),
        ("score_tail_le_-2.5", "mean reward, prompt score ≤ −2.5 ↑"),
        ("cvar_2.5", "CVaR: mean of the worst 2.5 % ↑"),
        ("judge/other_one/cvar_10", "judge other one: mean of the worst 10 % ↑"),
        ("kl_mean", "KL from the reference (nats)"),
        ("perplexity", "perplexity of human text ↓"),
        ("dist_2", "Dist-2 ↑"),
        ("something_new", "something new"),
    ],
)
def test_headings(metric: str, heading: str) -> None:
    assert metric_name(metric).heading == heading


@pytest.fixture(scope="module")
def side_by_side(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A baseline, one clearly better, two seeds that are not."""
    folder = tmp_path_factory.mktemp("runs")
    scores = {"base": scores_of(1), "up_100%": scores_of(2, gain=3.0), "x": scores_of(3)}
    runs = [read_run(write_run(folder / str(k), values)) for k, values in enumerate(scores.values())]
    runs.append(read_run(write_run(folder / "x2", scores_of(4), kl=2.0)))
    return compare(group(runs, [*scores, "x"]), resamples=200)


def test_csv_holds_every_number_at_full_precision(side_by_side: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(side_by_side))))
    one = next(r for r in rows if (r["metric"], r["method"], r["quantity"]) == ("score_mean", "up_100%", "estimate"))
    cell = side_by_side.cells["score_mean"]["up_100%"]
    assert float(one["estimate"]) == cell.estimate.estimate
    assert (float(one["low"]), float(one["high"])) == (cell.estimate.low, cell.estimate.high)
    assert one["n"] == "120"
    change = next(
        r for r in rows if (r["metric"], r["method"]) == ("score_mean", "up_100%") and "diff" in r["quantity"]
    )
    assert cell.difference is not None
    assert float(change["low"]) == cell.difference.low
    assert (change["quantity"], change["verdict"]) == ("difference to base", "up")
    seeds = next(r for r in rows if (r["metric"], r["method"], r["quantity"]) == ("score_mean", "x", "estimate"))
    assert seeds["seeds"] == "2"
    assert float(seeds["sd_over_seeds"]) == side_by_side.cells["score_mean"]["x"].seeds.sd
    assert len({(r["metric"], r["method"], r["quantity"]) for r in rows}) == len(rows)


def test_markdown_is_a_table_of_metrics_by_methods(side_by_side: Comparison) -> None:
    lines = as_markdown(side_by_side).splitlines()
    assert lines[0] == "| metric | base | up_100% | x (2 seeds) |"
    assert len(lines) == 2 + len(side_by_side.cells)
    assert {line.count("|") for line in lines} == {5}
    mean = lines[2]
    assert mean.startswith("| mean reward ↑ |")
    assert mean.count("**") == 2
    assert "± " in mean


def test_the_papers_form_has_methods_as_rows(side_by_side: Comparison) -> None:
    lines = as_paper_markdown(side_by_side).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| base", "| up_100%", "| x (2 seeds)"]
    assert lines[0].startswith(
        "| method | mean reward ↑ | mean reward, prompt score ≤ 0 ↑ | CVaR: mean of the worst 10 %"
    )


def test_latex_is_balanced_and_escaped(side_by_side: Comparison) -> None:
    text = as_latex(side_by_side)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert r"up\_100\%" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    tables = re.findall(r"\\begin\{tabular\}\{(l r*|lr*)\}(.*?)\\end\{tabular\}", text, flags=re.DOTALL)
    for align, rows in tables:
        columns = {len(re.split(r"(?<!\\)&", row)) for row in rows.splitlines() if row.endswith(r"\\")}
        assert columns == {len(align)}
    assert body
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert code.count("{") == code.count("}")
    assert code.isascii()


def test_the_explanation_counts_what_chance_alone_would_do(side_by_side: Comparison) -> None:
    lines = "\n".join(explanation(side_by_side))
    differences = [cell.difference for row in side_by_side.cells.values() for cell in row.values() if cell.difference]
    tested = sum(math.isfinite(each.high) for each in differences)
    assert 0 < tested < len(differences)  # of tails of few prompts there is no interval
    assert "120 prompts" in lines
    assert f"Of {tested} differences with an interval about {0.05 * tested:.1f} would exclude 0" in lines
    assert "± standard deviation across training seeds" in lines


def test_differences_without_an_interval_are_neither_counted_nor_marked(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / str(k), scores_of(k, n=6), prompt_scores=scores_of(9, n=6))) for k in (1, 2)]
    comparison = compare(group(runs, ["a", "b"]), resamples=100)
    lines = explanation(comparison)
    assert lines[1].endswith("excludes 0. No difference has an interval: the prompts are too few.")
    assert "differences" not in lines[1]
    cells = [cell for row in as_markdown(comparison).splitlines() for cell in re.split(r"\||<br>", row)]
    assert sum(TOO_FEW in cell for cell in cells) > 9
    assert not any(TOO_FEW in cell and "†" in cell for cell in cells)
    rows = list(csv.DictReader(io.StringIO(as_csv(comparison))))
    assert {row["few_prompts"] for row in rows if row["low"] == "-inf"} == {""}


def test_the_terminal_shows_methods_and_stars_clear_differences(
    side_by_side: Comparison, capsys: pytest.CaptureFixture[str]
) -> None:
    print_comparison(side_by_side)
    shown = capsys.readouterr().out
    assert "up_100%" in shown
    assert "* Δ +" in shown
    assert "[bold]" not in shown


def test_intervals_of_few_prompts_carry_a_dagger_in_every_form(
    side_by_side: Comparison, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_comparison(side_by_side)
    shown, markdown, latex = capsys.readouterr().out, as_markdown(side_by_side), as_latex(side_by_side)
    mean = next(line for line in markdown.splitlines() if "mean reward ↑" in line)
    assert mean.count("†") == 5  # three estimates, two differences
    assert "†" in shown
    assert r"$\dagger$" in latex
    assert "fewer than 200 prompts" in "\n".join(explanation(side_by_side))
    rows = list(csv.DictReader(io.StringIO(as_csv(side_by_side))))
    assert {row["few_prompts"] for row in rows if row["metric"] == "score_mean"} == {"†"}
    large = read_run(write_run(tmp_path, scores_of(1, n=200), prompt_scores=scores_of(2, n=200)))
    many = compare(group([large], ["a"]), resamples=100)
    assert "†" not in next(line for line in as_markdown(many).splitlines() if line.startswith("| mean reward ↑"))


def test_many_methods_make_several_tables_in_a_narrow_terminal_and_lose_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [read_run(write_run(tmp_path / str(k), scores_of(k, gain=0.5 * k))) for k in range(6)]
    comparison = compare(group(runs, [f"method-{k}" for k in range(6)]), resamples=60)
    print_comparison(comparison)
    piped = capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "90")
    print_comparison(comparison)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    tables = [line for line in shown.splitlines() if line[:1] in "┏┃┡│├└"]
    assert max(map(len, tables)) <= 90
    assert "…" not in shown + piped
    assert sum(line.startswith("┏") for line in tables) > 1
    assert sum(line.startswith("┏") for line in piped.splitlines()) == 1
    assert all(figure in shown for figure in re.findall(r"[−+]?\d+\.\d+", piped))


def test_labels_cannot_be_mistaken_for_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = read_run(write_run(tmp_path, scores_of(1)))
    print_comparison(compare(group([run], ["[red]x[/red]"]), resamples=100))
    assert "[red]x[/red]" in capsys.readouterr().out
