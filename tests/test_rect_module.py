"""The head learns which tokens foretell a bad end, is written, and makes the policy avoid them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import train
from lightning_rarlhf.config import LoRAConfig, PolicyConfig
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.rect_module import RectModule
from lightning_rarlhf.reward_models import CallableReward
from lightning_rarlhf.trainer.strategies import FSDP2Strategy
from tests.decoding.hosts import run, save_world
from tests.test_configs import QUIET, ROOT

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_world(tmp_path_factory.mktemp("rect"))


def no_films(prompts: list[str], responses: list[str]) -> list[float]:
    """Bad = the response speaks of films."""
    return [-1.0 if "film" in response else 1.0 for response in responses]


def arguments(world: Path, folder: Path) -> list[str]:
    return [
        *("--config", str(ROOT / "configs" / "jigsaw.yaml"), *QUIET, "--model", "RectModule"),
        *("--model.policy.pretrained", str(world / "policy"), "--model.bad_below", "0"),
        *("--model.reward", "CallableReward", "--model.reward.function", "tests.test_rect_module.no_films"),
        *("--data.path", str(world / "data"), "--data.progress", "false", "--data.val_size", "8"),
        *("--data.batch_size", "32", "--model.sampling.max_new_tokens", "6", "--trainer.callbacks", "[]"),
        *("--checkpoint.monitor", "null", "--trainer.default_root_dir", str(folder)),
    ]


def test_a_fitted_head_makes_the_bad_end_rarer_for_its_own_policy_alone(world, tmp_path, capsys):
    more = ["--trainer.max_epochs", "40", "--trainer.limit_val_batches", "0", "--model.optimizer.lr", "0.02"]
    train.main(["fit", *arguments(world, tmp_path / "head"), *more, "--trainer.max_steps", "60"])
    assert (tmp_path / "head" / "risk_head.safetensors").is_file()
    weights = torch.load(tmp_path / "head" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    loaded = load_file(world / "policy" / "model.safetensors")["transformer.h.0.mlp.c_fc.weight"]
    assert torch.equal(weights["actor.lm.transformer.h.0.mlp.c_fc.weight"], loaded)  # the policy did not move
    means = {}
    reward = ["--model.reward", "CallableReward", "--model.reward.function", "tests.test_rect_module.no_films"]
    for name, method in {
        "plain": ["--model.method", "Plain"],
        "rect": ["--model.method", "Rect", "--model.method.head", str(tmp_path / "head"), "--model.method.power", "4"],
    }.items():
        run(world, tmp_path / name, *reward, *method)
        means[name] = json.loads((tmp_path / name / "results.json").read_text())["metrics"]["score_mean"]["estimate"]
    assert means["rect"] > means["plain"] + 0.1
    results = json.loads((tmp_path / "rect" / "results.json").read_text())
    assert results["method"]["head_policy_sha256"] == results["policy_sha256"]
    assert len(results["method"]["head_sha256"]) == 64
    method = ["--model.method", "Rect", "--model.method.head", str(tmp_path / "head")]
    with pytest.raises(SystemExit):
        run(world, tmp_path / "expert", *method, "--model.policy.pretrained", str(world / "expert"))
    assert "head: not known to be fitted on this policy, " in capsys.readouterr().err
    assert not list((tmp_path / "expert").glob("*.json*"))


@pytest.mark.parametrize("together", [1, 2])
def test_every_batch_draws_numbers_of_its_own_also_within_an_accumulated_step(world, tmp_path, monkeypatch, together):
    seeds, generate = [], RectModule.generate
    monkeypatch.setattr(RectModule, "generate", lambda *given: (seeds.append(given[2]), generate(*given))[1])
    more = ["--trainer.accumulate_grad_batches", str(together), "--trainer.limit_val_batches", "0"]
    train.main(["fit", *arguments(world, tmp_path), *more, "--trainer.max_epochs", "3", "--trainer.max_steps", "2"])
    assert [seed.iteration for seed in seeds] == list(range(2 * together))


def test_validation_says_how_well_the_head_foresees(world, tmp_path, capsys):
    train.main(["validate", *arguments(world, tmp_path)])
    shown = capsys.readouterr().out
    assert "val/auroc" in shown
    assert "0.693" in shown  # log 2: a new head says 1/2 of every token


@pytest.mark.parametrize(("bad_below", "count"), [("-2", "0"), ("2", "64")])
def test_texts_that_all_end_alike_teach_nothing_and_leave_no_head(world, tmp_path, capsys, bad_below, count):
    more = ["--model.bad_below", bad_below, "--trainer.max_steps", "2", "--trainer.val_check_interval", "1"]
    more += ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", str(tmp_path)]
    with pytest.raises(SystemExit) as end:
        train.main(["fit", *arguments(world, tmp_path), *more])
    assert end.value.code == 2
    assert f"{count} of 64 texts scored below model.bad_below={bad_below}, so a head" in capsys.readouterr().err
    assert not list(tmp_path.rglob("risk_head*"))
    (path,) = tmp_path.rglob("metrics.csv")
    header = path.read_text().splitlines()[0]
    assert "val/bad_rate" in header
    assert "val/auroc" not in header  # of one class there is none


def test_the_head_alone_cannot_be_tested(world, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        train.main(["test", *arguments(world, tmp_path)])
    assert end.value.code == 2
    assert "use --model DecodingModule --model.method Rect" in capsys.readouterr().err


def test_a_divided_policy_is_refused():
    module = RectModule(CallableReward("tests.test_rect_module.no_films"), bad_below=0.0)
    module.trainer = SimpleNamespace(strategy=FSDP2Strategy())
    with pytest.raises(UserError, match=r"RectModule's policy is not divided .*; give --trainer\.strategy ddp"):
        module.setup("fit")


@pytest.mark.parametrize("part", [{"lora": LoRAConfig(r=2)}, {"frozen_layers": 1}])
def test_a_policy_that_is_trained_in_part_is_refused(part):
    policy = PolicyConfig(pretrained="policy", **part)
    module = RectModule(CallableReward("tests.test_rect_module.no_films"), bad_below=0.0, policy=policy)
    module.trainer = SimpleNamespace(strategy=None)
    with pytest.raises(
        UserError, match=r"RectModule trains no policy.*: leave model\.policy\.lora and frozen_layers out"
    ):
        module.setup("fit")
