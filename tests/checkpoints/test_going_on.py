"""`--ckpt_path` on the real command line: what is found, what is refused, what needs consent."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback

import train
from lightning_rarlhf.checkpoints.going_on import find_checkpoint
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.quickstart.tiny_policy import write_tiny_policy

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_policy(tmp_path_factory.mktemp("going_on") / "policy", layers=1, width=16, heads=2)


def fit(policy: Path, folder: Path, *more: str, steps: int = 2) -> None:
    train.main(
        [
            *("fit", "--config", str(ROOT / "configs" / "quickstart" / "rarlhf.yaml")),
            *("--model.policy.pretrained", str(policy), "--trainer.default_root_dir", str(folder)),
            *("--trainer.max_steps", str(steps), "--trainer.callbacks", "RiskSchedule"),
            *("--trainer.callbacks.risk_level", "0.5", "--trainer.callbacks.warmup", "0"),
            *("--trainer.callbacks.rho", "0.5", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"),
            *("--data.batch_size", "4", "--data.comments", "100", "--data.test_size", "4"),
            *("--model.sampling.max_new_tokens", "4", "--model.ppo.epochs", "1", *more),
        ]
    )


def refused(capfd: pytest.CaptureFixture[str], *arguments, **settings) -> str:
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        fit(*arguments, **settings)
    assert caught.value.code == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def iterations(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["global_step"]


def test_a_changed_method_needs_consent_and_harmless_settings_do_not(policy, tmp_path, capfd):
    fit(policy, tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    changed = ("--ckpt_path", "last", "--trainer.callbacks.risk_level", "0.25", "--model.kl.target", "3")
    line = refused(capfd, policy, tmp_path, *changed, steps=4)
    assert "last.ckpt was written with other settings than this run's: model.kl.target: 6.0 → 3.0; " in line
    assert "trainer.callbacks.RiskSchedule.risk_level: 0.5 → 0.25" in line
    assert line.endswith("or --resume_changed true to go on with the new ones")
    assert last.read_bytes() == content

    harmless = ("--seed_everything", "9", "--checkpoint.every_n_iterations", "1", "--data.eval_batch_size", "2")
    fit(policy, tmp_path, "--ckpt_path", "last", *harmless, steps=4)
    assert iterations(last) == 4
    fit(policy, tmp_path, *changed, "--resume_changed", "true", steps=6)
    assert iterations(last) == 6
    fit(policy, tmp_path, *changed, steps=8)  # the checkpoint knows the new settings now
    assert iterations(last) == 8


def test_auto_starts_and_goes_on_and_a_requeued_job_needs_no_option(policy, tmp_path, capfd, monkeypatch):
    for steps in (2, 4):
        fit(policy, tmp_path, "--ckpt_path", "auto", steps=steps)
        assert iterations(tmp_path / "checkpoints" / "last.ckpt") == steps
    assert "holds another run's last.ckpt" in refused(capfd, policy, tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    fit(policy, tmp_path, steps=6)
    assert iterations(tmp_path / "checkpoints" / "last.ckpt") == 6


@pytest.mark.parametrize("damage", ["truncated", "foreign"])
def test_a_broken_checkpoint_is_refused_by_name_and_left_alone(policy, tmp_path, capfd, damage):
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir()
    torch.save({"state_dict": {"weight": torch.zeros(1000)}}, checkpoint)
    if damage == "truncated":
        checkpoint.write_bytes(checkpoint.read_bytes()[:2000])
    content = checkpoint.read_bytes()
    line = refused(capfd, policy, tmp_path, "--ckpt_path", "last")
    assert re.search(r"last\.ckpt (cannot be read: truncated|was not written by a run of this project)", line)
    assert checkpoint.read_bytes() == content


def train_reward(policy: Path, folder: Path, *more: str, steps: int) -> None:
    """A reward model with dropout from labelled texts."""
    table = policy.parent / "labels.csv"
    rows = [f'"the film {n} was {"good" if n % 3 else "bad"}",{n % 2}' for n in range(60)]
    table.write_text("text,label\n" + "\n".join(rows) + "\n")
    train.main(
        [
            *("fit", "--config", str(ROOT / "configs" / "reward" / "labels.yaml"), "--data.path", str(table)),
            *("--data.text_column", "text", "--data.label_columns", "[label]", "--data.text_tokens", "8"),
            *("--data.batch_size", "8", "--data.val_fraction", "0.2", "--trainer.accelerator", "cpu"),
            *("--model.backbone.pretrained", str(policy), "--trainer.default_root_dir", str(folder)),
            *("--trainer.max_steps", str(steps), "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"),
            *more,
        ]
    )


LORA = ("--model.policy.lora.r", "2", "--model.policy.lora.target_modules", "[c_attn]")
SFT = ("--model", "SFTModule", "--data.purpose", "sft", "--trainer.callbacks", "[]")


QUARK = ("--model", "QuarkModule", "--trainer.callbacks", "[]", "--model.quark.batch_size", "4")
VALIDATING = ("--trainer.limit_val_batches", "1", "--trainer.val_check_interval", "2")
METHODS = {
    "PPO": (fit, ("--data.val_size", "4")),
    "LoRA": (fit, ("--data.val_size", "4", *LORA)),
    "SFT": (fit, ("--data.val_size", "4", *SFT)),
    "Quark": (fit, ("--data.val_size", "4", *QUARK)),
    "reward": (train_reward, ()),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_ends_in_the_very_state_of_an_undisturbed_one(policy, tmp_path, method):
    """With validations between, in the middle of an epoch, with another seed on the command line."""
    start, more = METHODS[method]
    start(policy, tmp_path / "whole", *more, *VALIDATING, steps=5)
    stopping = ('--trainer.callbacks+={"class_path": "tests.checkpoints.test_going_on.Stops"}', *VALIDATING)
    with pytest.raises(SystemExit) as caught:
        start(policy, tmp_path / "stopped", *more, *stopping, steps=5)
    assert caught.value.code == 143
    seed = ("--ckpt_path", "last", "--seed_everything", "9")
    start(policy, tmp_path / "stopped", *more, *stopping, *seed, steps=5)
    whole, stopped = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "stopped")
    )
    assert whole["global_step"] == 5
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "kl_controller", "sampling_seed", "quark_pool"):
        torch.testing.assert_close(stopped.get(part), whole.get(part), rtol=0, atol=0)


class Stops(Callback):
    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_step == 2:  # which the resumed run is beyond
            os.kill(os.getpid(), signal.SIGTERM)


def save(path: Path, best: str | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    state = {"RunCheckpoint": {"best_model_path": f"/elsewhere/{best}" if best else ""}}
    torch.save({"pytorch-lightning_version": "2", "loops": {}, "callbacks": state}, path)
    return path


def test_the_best_is_the_one_that_the_last_knows_of(tmp_path):
    folder = tmp_path / "checkpoints"
    better = save(folder / "best-step=50.ckpt")
    assert find_checkpoint("best", folder) == str(better)
    save(folder / "best-step=75.ckpt")
    with pytest.raises(UserError, match="ckpt_path best: 2 such checkpoints in "):
        find_checkpoint("best", folder)
    save(folder / "last.ckpt", best=better.name)
    assert find_checkpoint("best", folder) == str(better)


def test_a_sharded_checkpoint_whose_successor_was_moving_in_is_put_back(tmp_path):
    (tmp_path / "last.ckpt.replaced").mkdir()
    assert find_checkpoint("last", tmp_path) == str(tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").is_dir()
