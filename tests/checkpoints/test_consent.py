from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest

from lightning_rarlhf.checkpoints.consent import differences, fingerprints, settings_of_method
from lightning_rarlhf.checkpoints.going_on import record_of
from lightning_rarlhf.records.method import fingerprint

CONFIG = {
    "seed_everything": 0,
    "model": {
        "class_path": "RiskAversePPOModule",
        "init_args": {
            "policy": {"pretrained": "gpt2", "dtype": "float32", "gradient_checkpointing": False},
            "reward": {
                "class_path": "ClassifierReward",
                "init_args": {"pretrained": "a/b", "sign": 1, "batch_size": 8, "retry": {"attempts": 3}},
            },
            "sampling": {"temperature": 1.0},
            "ppo": {"epochs": 4, "minibatch_size": 16, "max_grad_norm": 1.0, "micro_batch_size": None},
            "guard": {"on_failure": "stop", "max_skips": 10, "crash_bundles": 3},
            "kl": {"target": 6.0},
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-5}},
            "evaluation": {"tail_levels": [0.1], "judges": {}},
        },
    },
    "data": {"class_path": "IMDBDataModule", "init_args": {"path": None, "batch_size": 128, "eval_batch_size": 8}},
    "trainer": {
        "max_steps": 60,
        "precision": "32-true",
        "logger": True,
        "default_root_dir": "runs/a",
        "callbacks": [
            {"class_path": "callbacks.RiskSchedule", "init_args": {"risk_level": 0.4, "rho": 0.9}},
            {"class_path": "HuggingFaceExport", "init_args": {"dirpath": None}},
        ],
    },
    "checkpoint": {"every_n_iterations": 25},
}


def changed(path: str, value: object) -> dict:
    config = copy.deepcopy(CONFIG)
    *parents, leaf = path.split("/")
    place = config
    for part in parents:
        place = place[int(part)] if part.isdigit() else place[part]
    place[leaf] = value
    return config


def compare(config: dict) -> list[str]:
    before, now = record_of(CONFIG), record_of(config)
    changes = differences(before["settings"], now["settings"], before["fingerprints"], now["fingerprints"])
    return [change.line if change.needs_consent else f"said: {change.line}" for change in changes]


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("trainer/callbacks/0/init_args/risk_level", 0.2, "trainer.callbacks.RiskSchedule.risk_level: 0.4 → 0.2"),
        ("model/init_args/kl/target", 3.0, "model.kl.target: 6.0 → 3.0"),
        ("model/init_args/sampling/temperature", 0.7, "model.sampling.temperature: 1.0 → 0.7"),
        ("model/init_args/policy/pretrained", "gpt2-medium", "model.policy.pretrained: gpt2 → gpt2-medium"),
        ("model/init_args/policy/dtype", "bfloat16", "model.policy.dtype: float32 → bfloat16"),
        ("model/init_args/reward/init_args/sign", -1, "model.reward.sign: 1 → -1"),
        ("model/init_args/optimizer/init_args/lr", 2e-5, "said: model.optimizer.lr: 1e-05 → 2e-05"),
        ("model/init_args/ppo/epochs", 2, "model.ppo.epochs: 4 → 2"),
        ("model/init_args/ppo/minibatch_size", 8, "model.ppo.minibatch_size: 16 → 8"),
        ("model/init_args/ppo/max_grad_norm", 2.0, "model.ppo.max_grad_norm: 1.0 → 2.0"),
        ("model/init_args/guard/on_failure", "skip", "model.guard.on_failure: stop → skip"),
        ("trainer/gradient_clip_val", 1.0, "trainer.gradient_clip_val: None → 1.0"),
        ("trainer/limit_train_batches", 5, "trainer.limit_train_batches: None → 5"),
        ("trainer/overfit_batches", 2, "trainer.overfit_batches: None → 2"),
        ("trainer/plugins", ["my.Plugin"], "trainer.plugins: None → ['my.Plugin']"),
        ("data/init_args/batch_size", 64, "data.batch_size: 128 → 64"),
        ("trainer/precision", "bf16-mixed", "trainer.precision: 32-true → bf16-mixed"),
    ],
)
def test_a_setting_of_the_method_is_named_with_its_old_and_its_new_value(path, value, line):
    assert compare(changed(path, value)) == [line]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed_everything", 7),
        ("trainer/max_steps", 120),
        ("trainer/logger", False),
        ("trainer/default_root_dir", "elsewhere"),
        ("trainer/callbacks/1/init_args/dirpath", "out"),
        ("checkpoint/every_n_iterations", 5),
        ("model/init_args/evaluation/tail_levels", [0.2]),
        ("model/init_args/policy/gradient_checkpointing", True),
        ("model/init_args/policy/compile_sampling", True),
        ("model/init_args/ppo/micro_batch_size", 4),
        ("model/init_args/ppo/micro_rollout_batch_size", 4),
        ("model/init_args/reward/init_args/batch_size", 2),
        ("model/init_args/reward/init_args/retry/attempts", 9),
        ("model/init_args/guard/max_skips", 99),
        ("model/init_args/guard/crash_bundles", 0),
        ("trainer/overfit_batches", 0.0),
        ("data/init_args/eval_batch_size", 64),
    ],
)
def test_what_moves_no_number_passes(path, value):
    assert compare(changed(path, value)) == []


def test_another_class_is_one_line_not_one_for_each_of_its_settings():
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e-5, "momentum": 0.9, "nesterov": True}}
    assert compare(changed("model/init_args/optimizer", sgd)) == ["model.optimizer: torch.optim.Adam → torch.optim.SGD"]


def test_a_schedule_that_is_gone_is_a_change():
    lines = compare(changed("trainer/callbacks", [CONFIG["trainer"]["callbacks"][1]]))
    assert "trainer.callbacks.RiskSchedule.risk_level: 0.4 → None" in lines


@pytest.mark.parametrize(
    ("path", "lines"),
    [
        ("my.Callback", ["trainer.callbacks.Callback: None → used"]),
        ("lightning.pytorch.callbacks.EMAWeightAveraging", ["trainer.callbacks.EMAWeightAveraging: None → used"]),
        ("lightning.pytorch.callbacks.LearningRateMonitor", []),
        ("callbacks.DriftAlarm", []),
    ],
)
def test_a_callback_that_may_change_what_is_learned_is_a_change(path, lines):
    assert compare(changed("trainer/callbacks", [*CONFIG["trainer"]["callbacks"], {"class_path": path}])) == lines


def test_equal_settings_differ_in_nothing():
    assert compare(copy.deepcopy(CONFIG)) == []


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "weights").write_bytes(bytes(300_000))
    return tmp_path / "model"


def of_model(folder: Path) -> tuple[dict, dict]:
    settings = settings_of_method(changed("model/init_args/policy/pretrained", str(folder)))
    return settings, fingerprints(settings)


def test_a_model_that_has_moved_is_the_same_one(model, tmp_path):
    before, prints = of_model(model)
    now, prints_now = of_model(Path(shutil.move(model, tmp_path / "moved")))
    assert before != now
    assert differences(before, now, prints, prints_now) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [("weights", bytes(299_999) + b"1"), ("weights", bytes(99_999) + b"1" + bytes(200_000)), ("config.json", b"{ }")],
)
def test_a_model_that_was_replaced_in_its_place_is_another(model, name, content):
    before, prints = of_model(model)
    (model / name).write_bytes(content)
    now, prints_now = of_model(model)
    (change,) = differences(before, now, prints, prints_now)
    assert change.line == f"model.policy.pretrained: {model} → another content at the same place"
    assert change.needs_consent


def test_of_very_large_files_the_size_and_three_places_tell(model, monkeypatch):
    monkeypatch.setattr("lightning_rarlhf.records.method._WHOLE", 200_000)
    prints = {fingerprint(model)}
    for place in (0, 150_000, 299_999):
        content = bytearray(300_000)
        content[place] = 1
        (model / "weights").write_bytes(content)
        prints.add(fingerprint(model))
    (model / "weights").write_bytes(bytes(300_001))
    assert len({*prints, fingerprint(model)}) == 5


def test_only_settings_that_name_files_are_looked_up(tmp_path, monkeypatch):
    (tmp_path / "float32").mkdir()
    monkeypatch.chdir(tmp_path)
    assert fingerprints(settings_of_method(CONFIG)) == {}


def test_a_file_that_a_callback_writes_may_grow(tmp_path):
    callback = {"class_path": "my.Journal", "init_args": {"path": str(tmp_path / "journal")}}
    (tmp_path / "journal").write_text("1")
    settings = settings_of_method(changed("trainer/callbacks", [callback]))
    assert settings["trainer.callbacks.Journal.path"] == str(tmp_path / "journal")
    assert fingerprints(settings) == {}
