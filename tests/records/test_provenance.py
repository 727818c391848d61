from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_rarlhf.records.provenance import method_settings, read_training, training_record, write_training


def fit(folder: Path, **change: Any) -> dict[str, Any]:
    """A configuration of `fit`, with the changes that a test asks for."""
    model = {
        "class_path": "RiskAversePPOModule",
        "init_args": {
            "policy": {"pretrained": str(folder / "policy")},
            "kl": {"target": change.pop("target", 6.0)},
            "evaluation": {"confidence": change.pop("confidence", 0.95)},
            "hub_token": "hf_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        },
    }
    callbacks = change.pop("callbacks", [{"class_path": "callbacks.RiskSchedule", "init_args": {"alpha": 0.2}}])
    trainer = {"max_steps": 3, "callbacks": callbacks, "default_root_dir": change.pop("root", "runs/a")}
    return {
        "seed_everything": change.pop("seed", 0),
        "model": model,
        "data": {"path": "x"},
        "trainer": trainer,
    } | change


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(200_000))
    return tmp_path


def record(settings: dict[str, Any]) -> Any:
    return training_record("PPO", method_settings(settings), seed=0, steps=1)["method_sha256"]


def test_what_only_looks_on_and_where_it_stands_is_no_part_of_the_method(policy: Path, tmp_path: Path) -> None:
    same = record(fit(policy))
    watcher = {"class_path": "callbacks.PromptPerplexity"}
    schedule = {"class_path": "callbacks.RiskSchedule", "init_args": {"alpha": 0.2}}
    for change in ({"seed": 5}, {"root": "runs/b"}, {"confidence": 0.9}, {"callbacks": [schedule, watcher]}):
        assert record(fit(policy, **change)) == same
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (policy / "policy").rename(moved / "policy")
    assert record(fit(moved)) == same


def test_trainer_settings_that_are_not_set_leave_the_hash_as_it_was(policy: Path) -> None:
    settings = fit(policy)
    settings["trainer"] |= {"limit_train_batches": None, "overfit_batches": 0.0, "plugins": None}
    assert record(settings) == record(fit(policy))
    settings["trainer"]["overfit_batches"] = 2
    assert record(settings) != record(fit(policy))


def test_what_makes_the_method_changes_its_hash(policy: Path) -> None:
    same = record(fit(policy))
    assert record(fit(policy, target=3.0)) != same
    assert record(fit(policy, callbacks=[])) != same
    file = policy / "policy" / "model.safetensors"
    file.write_bytes(bytes(100_000) + b"x" + bytes(99_999))  # another starting policy of equal size
    assert record(fit(policy)) != same


def test_a_policy_that_was_trained_here_is_told_by_its_method_not_its_seed(policy: Path) -> None:
    hashes = set()
    for seed in range(2):
        (policy / "policy" / "model.safetensors").write_bytes(bytes([seed]) * 10)
        write_training(policy / "policy", training_record("SFT", {"model": 1}, seed=seed, steps=9))
        hashes.add(record(fit(policy)))
    assert len(hashes) == 1
    assert read_training(str(policy / "policy"))["seed"] == 1  # type: ignore[index]


def test_no_secret_is_recorded(policy: Path) -> None:
    assert "hf_aaaa" not in str(training_record("PPO", method_settings(fit(policy)), seed=0, steps=1))


def test_a_folder_without_a_record_and_a_damaged_record_are_unknown(tmp_path: Path) -> None:
    assert read_training(str(tmp_path)) is None
    (tmp_path / "training.json").write_text("{broken")
    assert read_training(str(tmp_path)) is None
    assert read_training("a-hub/model") is None
    assert training_record("PPO", None, seed=None, steps=0)["method_sha256"] is None
