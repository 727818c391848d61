"""What the documentation names is there, and its own-data page runs as it is written, on a tiny policy."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from itertools import product
from pathlib import Path

import pytest

import train
from lightning_rarlhf.quickstart.grammar import vocabulary
from lightning_rarlhf.quickstart.tiny_policy import write_tiny_policy
from tests.test_configs import QUIET, ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
OWN_DATA = ROOT / "docs" / "own-data.md"
PROMPTS = 300

quiet = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?:", target):
            continue
        path, _, name = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if name:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert name in map(anchor, headings), target


@pytest.mark.parametrize(
    "file", [*PAGES, *sorted((ROOT / "configs").rglob("*.yaml"))], ids=lambda file: file.relative_to(ROOT).as_posix()
)
def test_configurations_and_programs_that_are_named_are_there(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for named in re.findall(r"(?<![\w/.-])configs/[\w/]+\.yaml", text):
        assert (ROOT / named).is_file(), named
    for named in re.findall(r"python -m ((?:lightning_rarlhf|benchmarks)[\w.]*\w)", text):
        assert importlib.util.find_spec(named), named


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A folder with what the page takes for granted; gives the page's blocks of code."""
    blocks = re.findall(r"```(?:python|bash)\n(.*?)```", OWN_DATA.read_text(encoding="utf-8"), flags=re.DOTALL)
    words = vocabulary()
    texts = [" ".join(pair) for pair in product(words, words)][:PROMPTS]
    (tmp_path / "prompts.csv").write_text("\n".join(["text", *texts]), encoding="utf-8")
    (tmp_path / "my_reward.py").write_text(blocks[0], encoding="utf-8")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    write_tiny_policy(tmp_path / "gpt2", layers=1, width=16, heads=2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_reward", raising=False)
    return blocks


@quiet
def test_the_command_for_own_prompts_and_an_own_reward(workplace: list[str], tmp_path: Path) -> None:
    _, command, shorter, _ = workplace
    python, program, *words = shlex.split(command.replace("\\\n", " ") + shorter)
    assert (python, program) == ("python", "train.py")
    train.main([*words, "--model.sampling.max_new_tokens", "4", "--model.ppo.epochs", "1", *QUIET])
    training = json.loads((tmp_path / "runs" / "own" / "huggingface" / "training.json").read_text())
    assert training["steps"] == (PROMPTS * 4 // 5 - 64) // 32 * 5


@quiet
def test_the_script(workplace: list[str], tmp_path: Path) -> None:
    script = workplace[-1]
    for long, short in (("max_steps=200", "max_steps=4"), ("warmup=30, rho=0.95", "warmup=0, rho=0.5")):
        assert long in script
        script = script.replace(long, short)
    exec(compile(script, "own_data.py", "exec"), {})
    assert (tmp_path / "runs" / "own" / "huggingface" / "model.safetensors").is_file()
    assert (tmp_path / "runs" / "own" / "checkpoints" / "last.ckpt").is_file()
    results = json.loads((tmp_path / "runs" / "own" / "results.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "runs" / "own" / "generations.jsonl").read_text().splitlines()]
    assert [row["score"] for row in rows] == [len(row["response"]) for row in rows]
    assert results["metrics"]["score_mean"]["n"] == len(rows) == PROMPTS // 5
    assert results["training"] is None or results["training"]["steps"] == 4
