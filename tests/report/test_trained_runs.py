"""From training to report through the command lines: the record of a training tells methods and seeds apart."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import yaml

import train
from lightning_rarlhf.quickstart.tiny_policy import write_tiny_policy
from lightning_rarlhf.report.__main__ import main

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of one method (a, b) and a run of another (c), fitted, exported and tested; names tell nothing."""
    root = tmp_path_factory.mktemp("trained")
    start = write_tiny_policy(root / "start", layers=1, width=16, heads=2)
    sentiment = "lightning_rarlhf.quickstart.grammar.sentiment"
    base = {
        "model": {
            "class_path": "RiskAversePPOModule",
            "init_args": {
                "policy": {"pretrained": str(start)},
                "reward": {"class_path": "CallableReward", "init_args": {"function": sentiment}},
                "sampling": {"max_new_tokens": 4},
                "ppo": {"epochs": 3, "minibatch_size": 8},
                "optimizer": {"lr": 0.01},
                "evaluation": {"resamples": 100},
            },
        },
        "data": {
            "class_path": "SyntheticDataModule",
            "init_args": {"prompt_tokens": 4, "val_size": 0, "batch_size": 8, "progress": False},
        },
        "trainer": {
            "max_steps": 1,
            "limit_val_batches": 0,
            "limit_test_batches": 4,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "HuggingFaceExport"}],
        },
    }
    (root / "base.yaml").write_text(yaml.safe_dump(base))
    for name, options in (("a", []), ("b", ["--seed_everything", "7"]), ("c", ["--model.kl.init_kl_coef", "0.9"])):
        common = ["--config", str(root / "base.yaml"), "--trainer.default_root_dir", str(root / name)]
        train.main(["fit", *common, *options])
        exported = ["--model.policy.pretrained", str(root / name / "huggingface"), "--model.reference", str(start)]
        train.main(["test", *common, *exported])
    return root


def report(root: Path, *arguments: str) -> int:
    return main([*arguments, "--output", str(root / "report"), "--no-figures", "--resamples", "60"])


def test_a_tested_export_says_what_trained_it(trained: Path) -> None:
    a, b, c = (json.loads((trained / name / "results.json").read_text())["training"] for name in "abc")
    assert a["method_sha256"] == b["method_sha256"] != c["method_sha256"]
    assert (a["steps"], a["module"]) == (1, "RiskAversePPOModule")  # an iteration, of three optimizer steps
    assert a["seed"] != b["seed"] == 7
    assert c["settings"]["model"]["init_args"]["kl"]["init_kl_coef"] == 0.9


def test_a_trained_policy_that_is_its_own_reference_is_told(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lightning.pytorch")
    base = ["--config", str(trained / "base.yaml"), "--trainer.default_root_dir", str(trained / "own")]
    train.main(["test", *base, "--model.policy.pretrained", str(trained / "a" / "huggingface")])
    said = "KL is measured from the tested policy itself, which RiskAversePPOModule trained"
    assert said in caplog.text
    caplog.clear()
    train.main(["test", *base])  # the start, which nothing here trained
    assert said not in caplog.text


def test_seeds_are_grouped_and_methods_are_not(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, c = (str(trained / name) for name in "abc")
    assert report(trained, "--name", f"low={a},{b}", "--name", f"high={c}") == 0
    shown = capsys.readouterr().out
    assert "low (2 seeds)" in shown
    assert "not recorded" not in shown
    assert "plus that between 2 training seeds, sd²/2 (low); nothing for another training of the method" in shown
    before = (trained / "report" / "report.md").read_bytes()
    assert report(trained, "--name", f"low={a},{c}") == 2
    refused = capsys.readouterr().err
    assert "training.settings.model.init_args.kl.init_kl_coef is 0.2" in refused
    assert "0.9 in" in refused
    assert (trained / "report" / "report.md").read_bytes() == before
