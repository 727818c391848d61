from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lightning_rarlhf.report.__main__ import main
from tests.report.run_folders import DATA, difficulty, scores_of, write_run
from tests.report.test_training_curves import log

FEW = ["--resamples", "60"]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """sft, two seeds of rlhf, one rarlhf; the working directory."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "sft", scores_of(0), kl=0.0)
    write_run(tmp_path / "rlhf" / "seed_0", scores_of(1, gain=1.0), kl=1.0)
    write_run(tmp_path / "rlhf" / "seed_1", scores_of(2, gain=1.2), kl=1.01)
    write_run(tmp_path / "rarlhf", scores_of(3, gain=1.5), kl=4.0)
    return tmp_path


def test_a_report_from_first_to_last(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log(runs / "rarlhf", 0, {"objective/score_mean": [1.0, 2.0], "risk/level": [1.0, 0.5]})
    log(runs / "rlhf" / "seed_0", 0, {"objective/score_mean": [1.0, 1.5]})
    arguments = ["sft", "rlhf/seed_0", "rlhf/seed_1", "--name", "RA-RLHF=rarlhf", "--output", "out", *FEW]
    assert main(arguments) == 0
    names = {path.relative_to(runs / "out").as_posix() for path in (runs / "out").rglob("*") if path.is_file()}
    pictures = ("quantile_curve", "score_quantiles", "distribution_shift", "frontier", "training_curves")
    assert names == {"report.md", "table.csv", "table.tex"} | {
        f"figures/{name}.{kind}" for name in pictures for kind in ("png", "pdf")
    }
    text = (runs / "out" / "report.md").read_text()
    assert text.startswith("# synthetic: sft, rlhf, RA-RLHF\n")
    for name in pictures:
        assert f"](figures/{name}.png)" in text
    assert "Dvoretzky-Kiefer-Wolfowitz over prompts, for a method's whole curve at once" in text
    assert "bootstrap over prompts, at each share of prompts by itself" in text
    for folder in ("sft", "rlhf/seed_0", "rlhf/seed_1", "rarlhf"):
        assert f"`{folder}`" in text
    shown = capsys.readouterr()
    assert "RA-RLHF" in shown.out
    assert "± " in shown.out
    assert "KL from the reference is not equal: rlhf" in shown.out
    assert shown.err == ""


def test_one_run_is_a_table_without_differences(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sft", "--output", "out", "--no-figures", *FEW]) == 0
    assert "Δ" not in capsys.readouterr().out
    assert not (runs / "out" / "figures").exists()


def test_a_sweep_alone_compares_at_equal_kl(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, kl in enumerate((2.0, 5.0)):
        write_run(runs / f"ra{number}", scores_of(10 + number, gain=3 * kl**0.5), kl=kl)
    sweeps = ["--sweep", "RLHF=sft,rlhf/seed_1,rarlhf", "--sweep", "RA=sft, ra0, ra1"]
    assert main([*sweeps, "--output", "out", "--alpha", "0.2", *FEW]) == 0
    assert "RA is ahead at" in capsys.readouterr().out
    names = {path.name for path in (runs / "out").rglob("*") if path.is_file()}
    assert names == {"report.md", "matched_kl.csv", "matched_kl.png", "matched_kl.pdf", "frontier.png", "frontier.pdf"}
    lines = (runs / "out" / "matched_kl.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 3 * 41
    assert "## At equal KL" in (runs / "out" / "report.md").read_text()


def test_nothing_of_a_former_report_is_left_beside_the_new_one(runs: Path) -> None:
    assert main(["sft", "rarlhf", "--output", "out", *FEW]) == 0
    (runs / "out" / "mine.txt").write_text("kept")
    assert (
        main(["--sweep", "A=sft,rarlhf", "--sweep", "B=sft,rlhf/seed_0", "--output", "out", "--no-figures", *FEW]) == 0
    )
    names = {path.name for path in (runs / "out").rglob("*") if path.is_file()}
    assert names == {"report.md", "matched_kl.csv", "mine.txt"}


def test_unequal_sampling_and_references_are_said(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(runs / "dexperts", scores_of(9), reference="another", sampling={"temperature": 1.0, "top_p": 0.9})
    assert main(["sft", "dexperts", "--output", "out", *FEW]) == 0
    shown = capsys.readouterr().out
    assert "top_p is 1.0 in sft; 0.9 in dexperts" in shown
    assert "different references" in shown
    assert not (runs / "out" / "figures" / "frontier.png").exists()


def test_a_kl_that_is_a_bound_is_said_of_runs_and_of_sweeps(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(runs / "best", scores_of(9), kl=2.0, method={"name": "BestOfK", "kl_bound": 0.6})
    sentence = "KL of best is an upper bound"
    assert main(["sft", "rarlhf", "--output", "out", "--no-figures", *FEW]) == 0
    assert sentence not in capsys.readouterr().out
    sweep = ["--sweep", "RLHF=sft,rlhf/seed_0", "--sweep", "best=sft,best"]
    for arguments in (["sft", "best"], sweep):
        assert main([*arguments, "--output", "out", "--no-figures", *FEW]) == 0
        assert sentence in capsys.readouterr().out
        assert sentence in (runs / "out" / "report.md").read_text()


def test_the_same_folder_in_two_spellings_is_one(runs: Path) -> None:
    assert main(["./sft", "--name", "SFT=sft/results.json", "--output", "out", "--no-figures", *FEW]) == 0
    assert (runs / "out" / "report.md").read_text().startswith("# synthetic: SFT\n")


def test_a_tail_of_less_than_one_prompt_is_refused_whatever_the_completions(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("few", "few too")):
        scores = np.random.default_rng(number).normal(size=(6, 25))
        write_run(runs / name, scores, kl=number, prompt_scores=difficulty(6))
    assert main(["few", "few too", "--output", "out", *FEW]) == 2
    shown = capsys.readouterr()
    expected = "error: --alpha: got 0.1 of 6 prompts in few, less than one; expected at least 10 prompts"
    assert shown.err.startswith(expected)
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert not (runs / "out").exists()
    assert main(["few", "few too", "--alpha", "0.5", "--output", "out", *FEW]) == 0
    assert (runs / "out" / "report.md").is_file()


def rows_at_equal_kl(runs: Path, alpha: str) -> list[dict[str, str]]:
    """Of the report in `out` on two sweeps; √KL of the second's runs is 0, 1.41 and 2.24."""
    for number, kl in enumerate((2.0, 5.0)):
        write_run(runs / f"ra{number}", scores_of(10 + number, gain=3 * kl**0.5), kl=kl)
    sweeps = ["--sweep", "RLHF=sft,rlhf/seed_1,rarlhf", "--sweep", "RA=sft,ra0,ra1"]
    assert main([*sweeps, "--output", "out", "--alpha", alpha, "--no-figures", *FEW]) == 0
    with (runs / "out" / "matched_kl.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_tail_of_few_prompts_is_written_without_its_band(runs: Path) -> None:
    rows = rows_at_equal_kl(runs, alpha="0.05")
    ends = {row["statistic"]: (row["low"], row["high"], row["interval"]) for row in rows}
    assert ends["mean of the worst 5 %"] == ("-inf", "inf", "none: fewer than 10 prompts in the tail")
    assert "-inf" not in ends["mean"]
    table = (runs / "out" / "report.md").read_text().split("## At equal KL")[1].split("## Runs")[0]
    assert "[" in table
    assert all("[" not in cell for row in table.splitlines() if row.count("|") == 8 for cell in row.split("|")[5:])


def test_where_runs_are_too_far_apart_no_interval_is_written(runs: Path) -> None:
    """RA's first gap is more than half of its range of √KL, so nothing is claimed up to 2."""
    rows = rows_at_equal_kl(runs, alpha="0.2")
    for row in rows:
        none = (row["low"], row["high"], row["interval"]) == ("-inf", "inf", "none: runs too far apart to interpolate")
        assert none == (float(row["kl"]) <= 2), row
    table = (runs / "out" / "report.md").read_text().split("| KL (nats) |")[1].splitlines()[2:7]
    assert [(float(line.split("|")[1]), "[" in line) for line in table] == [
        (0.0, False),
        (1.0, False),
        (2.0, False),
        (3.0, True),
        (4.0, True),
    ]


def spoil(runs: Path, how: str) -> None:
    match how:
        case "imdb":
            write_run(runs / "other", scores_of(5), data=DATA | {"name": "imdb"})
        case "seed":
            from lightning_rarlhf.config import EvaluationConfig

            write_run(runs / "other", scores_of(5), config=EvaluationConfig(seed=4, resamples=100))
        case "reward":
            write_run(runs / "other", scores_of(5), prompt_scores=difficulty() + 2)
        case "corrupt":
            (write_run(runs / "other", scores_of(5)) / "results.json").write_text('{"metrics": ')
        case "foreign":
            folder = write_run(runs / "other", scores_of(5))
            content = json.loads((folder / "results.json").read_text())
            (folder / "results.json").write_text(json.dumps(content | {"generations_sha256": "0" * 64}))
        case "far":
            write_run(runs / "other", scores_of(5), kl=np.float64(3.0), reference="another")


@pytest.mark.parametrize(
    ("how", "arguments", "complaint"),
    [
        ("", [], "no run given"),
        ("", ["nowhere"], "nowhere/results.json is missing"),
        ("", ["sft", "./sft"], "sft is given twice"),
        ("", ["sft", "--name", "SFT"], "--name: got 'SFT', expected LABEL=RUN"),
        ("", ["--name", "X=sft,rarlhf", "--sweep", "=sft"], "--sweep: got '=sft'"),
        ("", ["sft", "--alpha", "0"], "--alpha: got 0, expected more than 0"),
        ("", ["sft", "--alpha", "0.001"], "--alpha: got 0.001 of 120 prompts"),
        ("", ["sft", "--alpha", "x"], "argument --alpha: invalid float value"),
        ("", ["sft", "--resamples", "5"], "--resamples: got 5, expected at least 40"),
        ("", ["sft", "--nonsense"], "unrecognized arguments: --nonsense"),
        ("", ["--sweep", "A=sft,rarlhf"], "--sweep: got 1 method"),
        ("", ["--sweep", "A=sft,rarlhf", "--sweep", "B=sft"], "--sweep B: got a single run, sft"),
        ("", ["--sweep", "A=sft,sft", "--sweep", "B=sft,rarlhf"], "A: sft and sft have the same responses"),
        ("imdb", ["sft", "other"], "datasets differ: sft has synthetic, other has imdb"),
        ("seed", ["sft", "other"], "evaluation seeds differ: sft has 0, other has 4"),
        ("reward", ["sft", "other"], "reward models differ"),
        ("corrupt", ["sft", "other"], "other/results.json cannot be read"),
        ("foreign", ["sft", "other"], "other/generations.jsonl does not belong to other/results.json"),
        ("far", ["--sweep", "A=sft,rarlhf", "--sweep", "B=sft,other"], "references differ: sft measures KL from start"),
        ("imdb", ["sft", "--sweep", "A=sft,rarlhf", "--sweep", "B=sft,other"], "datasets differ"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    runs: Path, capsys: pytest.CaptureFixture[str], how: str, arguments: list[str], complaint: str
) -> None:
    spoil(runs, how)
    try:
        status = main([*arguments, "--output", "out"])
    except SystemExit as end:
        status = int(str(end.code))
    error = capsys.readouterr().err
    assert status == 2
    assert complaint in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (runs / "out").exists()


def test_a_folder_that_cannot_be_written_is_said_in_one_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "file").write_text("")
    assert main(["sft", "--output", "file/out", "--no-figures", *FEW]) == 2
    assert capsys.readouterr().err.startswith("error: file")


def test_help_is_quick_and_names_the_options() -> None:
    script = (
        "import sys; sys.argv=['report','--help']\nfrom lightning_rarlhf.report.__main__ import main\ntry: main()\n"
    )
    script += "except SystemExit: assert 'torch' not in sys.modules, 'help loads torch'"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for option in ("RUN", "--name", "--sweep", "--output", "--alpha", "--no-figures"):
        assert option in done.stdout


def test_a_late_error_leaves_the_former_report_whole(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["sft", "--output", "out"]) == 0
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning_rarlhf.report.assemble.write_report", full)
    assert main(["rarlhf", "--output", "out"]) == 2
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before
    assert not list(Path("out").glob(".report-*"))


def test_a_kill_between_two_files_leaves_no_report_of_mixed_ones(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    assert main(["sft", "--no-figures", "--output", "out"]) == 0
    inner, moved = os.replace, []

    def killed(source: Path, target: Path) -> None:
        if ".report-" in str(source) and ".report-" not in str(target):
            if len(moved) == 1:
                raise KeyboardInterrupt
            moved.append(target)
        inner(source, target)

    monkeypatch.setattr("lightning_rarlhf.report.assemble.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        main(["rarlhf", "--no-figures", "--output", "out"])
    assert not Path("out/report.md").exists()


def test_a_sweep_of_several_configurations_is_no_set_of_seeds(runs: Path) -> None:
    from lightning_rarlhf.records.provenance import training_record

    for number, kl in enumerate((1.0, 2.0, 4.0)):
        training = training_record("PPO", {"target": kl}, seed=0, steps=3)
        write_run(Path(f"t{number}"), scores_of(20 + number), kl=kl, training=training)
    assert main(["--sweep", "A=t0,t1,t2", "--sweep", "B=t0,t2", "--no-figures", "--output", "out"]) == 0
