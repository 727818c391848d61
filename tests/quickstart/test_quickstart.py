"""The whole quickstart, only shorter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_rarlhf.quickstart.__main__ import PICTURE, main

RUNS = ("sft", "rlhf", "rarlhf")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    import contextlib
    import io

    folder, shown, threads = tmp_path_factory.mktemp("quickstart"), io.StringIO(), torch.get_num_threads()
    with contextlib.redirect_stdout(shown):
        main(["--folder", str(folder), "--trainer.max_steps", "12", "--trainer.enable_progress_bar", "false"])
    torch.set_num_threads(threads)
    return folder, shown.getvalue()


def generations(folder: Path, run: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / run / "generations.jsonl").read_text().splitlines()]


def test_every_step_leaves_its_files(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    assert (folder / PICTURE).read_bytes().startswith(b"\x89PNG")
    for run in RUNS:
        assert (folder / run / "huggingface" / "model.safetensors").is_file()
        assert json.loads((folder / run / "results.json").read_text())["metrics"]["cvar_10"]["n"] == 1000


def test_all_three_are_tested_on_the_same_prompts_against_the_sft_policy(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    tests = {run: generations(folder, run) for run in RUNS}
    prompts = [[row["prompt"] for row in rows] for rows in tests.values()]
    assert prompts[0] == prompts[1] == prompts[2]
    assert len(set(map(str, prompts[0]))) == 1000
    kl = {run: sum(float(str(row["kl"])) for row in rows) / len(rows) for run, rows in tests.items()}
    assert kl["sft"] == pytest.approx(0.0, abs=1e-4)
    assert min(kl["rlhf"], kl["rarlhf"]) > 0.01


def test_the_scores_are_those_of_the_grammar(finished: tuple[Path, str]) -> None:
    from lightning_rarlhf.quickstart.grammar import sentiment

    rows = generations(finished[0], "rarlhf")
    again = sentiment([str(row["prompt"]) for row in rows], [str(row["response"]) for row in rows])
    assert [row["score"] for row in rows] == pytest.approx(again)


def test_the_terminal_shows_commands_table_and_where_things_are(finished: tuple[Path, str]) -> None:
    folder, shown = finished
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
