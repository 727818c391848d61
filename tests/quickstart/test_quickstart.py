"""The whole quickstart, only shorter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_rarlhf.quickstart.__main__ import PICTURE, main
from lightning_rarlhf.quickstart.grammar import sentiment

RUNS = ("sft", "rlhf", "rarlhf")


@pytest.fixture
def _threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
def test_the_quickstart_from_first_weights_to_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One test, because it is the run that takes the time."""
    main(["--folder", str(tmp_path), "--trainer.max_steps", "12", "--trainer.enable_progress_bar", "false"])
    every_step_left_its_files(tmp_path)
    generations = {
        run: [json.loads(line) for line in (tmp_path / run / "generations.jsonl").read_text().splitlines()]
        for run in RUNS
    }
    all_three_were_tested_alike(generations)
    scores_are_those_of_the_grammar(generations["rarlhf"])
    the_terminal_shows_commands_table_and_where_things_are(tmp_path, capsys.readouterr().out)


def every_step_left_its_files(folder: Path) -> None:
    assert (folder / PICTURE).read_bytes().startswith(b"\x89PNG")
    for run in RUNS:
        assert (folder / run / "huggingface" / "model.safetensors").is_file()
        assert json.loads((folder / run / "results.json").read_text())["metrics"]["cvar_10"]["n"] == 1000


def all_three_were_tested_alike(generations: dict[str, list[dict[str, Any]]]) -> None:
    prompts = [[row["prompt"] for row in rows] for rows in generations.values()]
    assert prompts[0] == prompts[1] == prompts[2]
    assert len(set(prompts[0])) == 1000
    kl = {run: sum(row["kl"] for row in rows) / len(rows) for run, rows in generations.items()}
    assert kl["sft"] == pytest.approx(0.0, abs=1e-4)  # KL is measured from the SFT policy
    assert min(kl["rlhf"], kl["rarlhf"]) > 0.01
    assert kl["rlhf"] != kl["rarlhf"]  # the overlay took the risk schedule away


def scores_are_those_of_the_grammar(rows: list[dict[str, Any]]) -> None:
    again = sentiment([row["prompt"] for row in rows], [row["response"] for row in rows])
    assert [row["score"] for row in rows] == pytest.approx(again)


def the_terminal_shows_commands_table_and_where_things_are(folder: Path, shown: str) -> None:
    assert shown.count("$ python train.py fit --config ") == 3
    assert shown.count("$ python train.py test --config ") == 3
    assert "mean of the worst 10 % (points)" in shown
    assert "RA-RLHF against SFT on the same prompts" in shown
    assert str(folder / PICTURE) in shown


def test_help_names_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "--folder" in capsys.readouterr().out
