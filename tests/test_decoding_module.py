"""`test` of decoding methods by the command line: the same files as for any method, and what each one costs."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from lightning_rarlhf.functional.decoding import best_of_k_kl
from tests.decoding.hosts import run, save_world
from tests.tiny_models import save_classifier, save_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_world(tmp_path_factory.mktemp("decoding"))


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]


def test_what_a_filter_takes_from_the_policy_counts_as_kl_and_texts_that_are_cut_are_counted(world, tmp_path):
    save_tokenizer(save_classifier(tmp_path / "short"), pad="<pad>", context=10)
    run(world, tmp_path, "--model.sampling.top_p", "0.5", "--model.reward.pretrained", str(tmp_path / "short"))
    rows = rows_of(tmp_path)
    words = [len(text.split()) for row in rows for text in (row["prompt"], row["prompt"] + row["response"])]
    assert 0 < sum(count > 10 for count in words) < len(rows)
    assert results_of(tmp_path)["texts_cut"] == {"reward": sum(count > 10 for count in words)}
    assert all(row["kl"] > 0 for row in rows)  # against the policy itself, unfiltered
    assert all(row["kl"] <= row["tokens"] * math.log(2) + 1e-4 for row in rows)  # at least half of the mass is kept


def test_every_method_fills_the_same_files(world, tmp_path, capsys):
    methods = {
        "plain": [],
        "prompted": ["--model.method", "Prompted", "--model.method.instruction", "a very kind film"],
        "dexperts": [
            *("--model.method", "DExperts", "--model.method.expert", str(world / "expert")),
            *("--model.method.anti_expert", str(world / "anti")),
        ],
        "best": ["--model.method", "BestOfK", "--model.method.k", "4"],
    }
    for name, arguments in methods.items():
        run(world, tmp_path / name, *arguments)
    results = {name: results_of(tmp_path / name) for name in methods}
    rows = {name: rows_of(tmp_path / name) for name in methods}
    for name in methods:
        assert list(results[name]) == list(results["plain"])
        assert results[name]["metrics"].keys() == results["plain"]["metrics"].keys()
        assert rows[name][0].keys() == rows["plain"][0].keys()
        assert [row["prompt"] for row in rows[name]] == [row["prompt"] for row in rows["plain"]]
        method = results[name]["method"]
        assert method["forward_passes_per_token"] == method["measured_forward_passes_per_token"]
    assert results["dexperts"]["method"]["name"] == "DExperts"
    assert results["dexperts"]["method"]["forward_passes_per_token"] == 3
    assert len(results["dexperts"]["method"]["networks_sha256"]) == 2
    kl = {name: result["metrics"]["kl_mean"]["estimate"] for name, result in results.items()}
    assert kl["plain"] == pytest.approx(0, abs=1e-5)  # the reference is the policy
    assert kl["dexperts"] > 0.1
    assert kl["best"] == pytest.approx(best_of_k_kl(4), abs=1e-5)
    score = {name: result["metrics"]["score_mean"]["estimate"] for name, result in results.items()}
    assert score["best"] > score["plain"]
    assert "the most that choosing can add" in results["best"]["method"]["kl"]


def test_a_configuration_that_cannot_be_written_is_one_line(world, tmp_path, capsys):
    (tmp_path / "config.yaml").mkdir()
    with pytest.raises(SystemExit) as end:
        run(world, tmp_path, "--trainer.logger", "false")
    assert end.value.code == 2
    assert re.search(r"error: .*config\.yaml: it could not be written \(Is a directory\)", capsys.readouterr().err)


def test_predict_and_validate_draw_by_the_method(world, tmp_path):
    run(world, tmp_path, "--model.method", "BestOfK", command="predict")
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 40
    run(world, tmp_path, "--data.val_size", "8", command="validate")


@pytest.mark.parametrize(
    ("method", "complaint"),
    [
        (
            ["DExperts", "--model.method.anti_expert", "{world}/nowhere"],
            r"model\.method\.anti_expert: .*no such folder",
        ),
        (
            [
                *("GeDi", "--model.method.class_lm", "{world}/nowhere"),
                *("--model.method.wanted_code", "kind", "--model.method.unwanted_code", "rude"),
            ],
            r"model\.method\.class_lm: .*no such folder",
        ),
        (["Rect", "--model.method.head", "{world}/nowhere"], r"nowhere: no such file; fit RectModule"),
    ],
)
def test_networks_that_are_not_there_are_told_before_any_other_is_loaded(
    world, tmp_path, capsys, monkeypatch, method, complaint
):
    monkeypatch.setattr(
        "lightning_rarlhf.reward_models.ClassifierReward.load", lambda *_: pytest.fail("loads a reward")
    )
    with pytest.raises(SystemExit) as end:
        run(world, tmp_path / "run", "--model.method", *(part.format(world=world) for part in method))
    assert end.value.code == 2
    assert re.search(complaint, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "command", "complaint"),
    [
        ([], "fit", r"DecodingModule changes how responses are drawn and has nothing to fit; use test"),
        (["--model.method", "BestOfK", "--model.method.k", "0"], "test", r"model\.method\.k: .*0"),
        (["--model.policy.compile_sampling", "true"], "test", r"compile_sampling .* would be ignored; set it to false"),
        (["--model.method", "DExperts"], "test", r"neither model\.method\.expert nor model\.method\.anti_expert"),
        (
            ["--model.method", "DExperts", "--model.method.expert", "{world}/other"],
            "test",
            r"expert .*other: its tokenizer has 18 tokens, that of the policy .*policy 17",
        ),
        (
            ["--model.method", "DExperts", "--model.method.expert", "{world}/nowhere"],
            "test",
            r"model\.method\.expert: .*nowhere: no such folder",
        ),
        (
            ["--model.method", "Prompted", "--model.method.instruction", "film " * 60],
            "test",
            r"Prompted: 61 tokens before the prompt \+ 8 prompt tokens \+ max_new_tokens=6 do not fit .* 64 tokens",
        ),
        (
            ["--model.method", "Prompted", "--model.method.instruction", "film", "--model.method.chat", "always"],
            "test",
            r"policy: its tokenizer has no chat template; set model\.method\.chat",
        ),
        (
            ["--model.method", "Prompted", "--model.method.instruction", "film", "--model.method.chat", "chatml"],
            "test",
            r"model\.method\.chat: got chatml, expected one of 'auto', 'always', 'never'$",
        ),
        (["--model.method", "Promptd"], "test", r"Promptd"),
        (
            ["--model.method", "SelfDebias", "--model.method.instructions", "[rude]", "--model.method.decay", "inf"],
            "test",
            r"model\.method\.decay: got inf, expected a finite number from 0 on$",
        ),
    ],
)
def test_mistakes_are_one_line(world, tmp_path, capsys, arguments, command, complaint):
    with pytest.raises(SystemExit) as end:
        run(world, tmp_path / "run", *(part.format(world=world) for part in arguments), command=command)
    assert end.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(complaint, errors[0]), errors[0]
    assert not (tmp_path / "run").exists()
