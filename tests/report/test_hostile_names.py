"""Names and texts of strangers in a report: nothing acts on a terminal, a browser, LaTeX or a spreadsheet."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from pathlib import Path

import pytest

from lightning_rarlhf.report.__main__ import main
from tests.report.run_folders import DATA, REWARD, scores_of, write_run

pytestmark = pytest.mark.filterwarnings(r"ignore:Glyph \d+ .* missing from font:UserWarning")

FORMULA = "=cmd|calc'!A0"
NAMES = [
    FORMULA,
    "\t+1+1",
    "\uff1dHYPERLINK('http://x')",
    "<script>alert(1)</script>",
    "[a](javascript:x)",
    "![p](http://x/y.png)",
    r"\input{/etc/passwd} $x_1^{$ # % & ~ {}",
    "a\x1b[2J\x1b]0;title\x07b",
    "\u202egnp.exe\u2066",
    "a | b\n| --- |\r\n# heading",
    "a\u2028b\x85c\ud800d",
    "[bold red]markup[/bold red]",
]
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def cells(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return [cell for row in csv.reader(file) for cell in row]


def starts_a_formula(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell.lstrip()[:1] in tuple("=+-@\uff1d\uff0b\uff0d\uff20")
    return False


def write_hostile_run(folder: Path, number: int) -> Path:
    """A run of which everything that may hold a text holds a bad one."""
    return write_run(
        folder,
        scores_of(number, gain=0.1 * number),
        kl=float(number),
        prompt="".join(NAMES[:10]),
        judges={NAMES[8]: scores_of(0), FORMULA: scores_of(1)},
        policy=NAMES[number],
        module=NAMES[-1],
        reward=REWARD | {"function": NAMES[3]},
        data=DATA | {"name": NAMES[6]},
        reference=f"<b>{NAMES[7]}",
    )


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The report's folder, and what was printed."""
    root = tmp_path_factory.mktemp("hostile")
    arguments = [str(write_hostile_run(root / FORMULA, 0))]  # --name takes no label that begins with an equals sign
    for number, name in enumerate(NAMES[1:], start=1):
        arguments += ["--name", f"{name}={write_hostile_run(root / f'run{number}', number)}"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        status = main([*arguments, "--output", str(root / "out"), "--resamples", "60"])
    assert status == 0, printed.getvalue()
    return root / "out", printed.getvalue()


def test_the_terminal_gets_no_control_character(reported):
    _, printed = reported
    assert CONTROL.findall(printed) == []
    assert "\\x1b[2J" in printed
    assert "[bold red]markup" in printed


def test_files_hold_no_control_character_no_html_and_no_link(reported):
    folder, _ = reported
    for name in ("report.md", "table.csv", "table.tex"):
        text = (folder / name).read_text(encoding="utf-8")
        assert CONTROL.findall(text) == [], name
        assert not re.search(r"<(?!br>)/?\w", text), name
        assert "](javascript" not in text
        assert "](http" not in text


def test_a_name_makes_no_line_of_its_own(reported):
    folder, _ = reported
    lines = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("# ")] == [lines[0]]
    tables = [line for line in lines if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in tables}
    assert len(widths) == 3  # one for each of the three tables: no name makes a column of its own


def test_a_spreadsheet_runs_nothing(reported):
    folder, _ = reported
    assert [cell for cell in cells(folder / "table.csv") if starts_a_formula(cell)] == []
    assert any("cmd" in cell for cell in cells(folder / "table.csv"))


def test_latex_runs_nothing(reported):
    folder, _ = reported
    text = (folder / "table.tex").read_text(encoding="utf-8")
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert r"\input" not in code
    assert "input" in code
    assert set(re.findall(r"\\([A-Za-z]+)", code)) == set(KNOWN_COMMANDS.split())
    escaped = r"\textbackslash{}input\{/etc/passwd\} \$x\_1\textasciicircum{}\{\$ \# \% \& \textasciitilde{} \{\}"
    assert code.count(escaped) == code.count("passwd") == 2


KNOWN_COMMANDS = (
    "Delta begin bottomrule dagger downarrow end leq midrule scriptsize textasciicircum textasciitilde textbackslash "
    "textbf toprule uparrow"
)


def test_pictures_are_drawn(reported):
    folder, _ = reported
    assert {path.suffix for path in (folder / "figures").iterdir()} == {".png", ".pdf"}
