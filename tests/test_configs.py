"""Every shipped YAML, through the real command line, on tiny local models and data in the publishers' formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

import train
from callbacks import RunCheckpoint
from lightning_rarlhf.decoding.prompted import Prompted
from lightning_rarlhf.decoding.self_debias import SelfDebias
from tests.datamodules.data_files import (
    imdb_rows,
    jigsaw_rows,
    toxicity_rows,
    write_csv,
    write_jsonl,
    write_parquet,
)
from tests.tiny_models import save_classifier, save_policy

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted(path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml"))
CONFIGS = [  # the others have tests of their own
    name
    for name in SHIPPED
    if not name.startswith(("baselines/", "gptj/", "reward/", "trainer/")) or name.startswith("baselines/quark/")
]
TASKS = ("imdb", "jigsaw", "real_toxicity_prompts")
QUIET = [
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.enable_model_summary",
    "false",
    "--trainer.accelerator",
    "cpu",
]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Policy, rewards and data of each task."""
    root = tmp_path_factory.mktemp("world")
    for name in ("imdb", "jigsaw", "real_toxicity_prompts"):
        (root / name).mkdir()
    for split, count, start in (("train", 60, 0), ("test", 20, 1000)):
        write_parquet(root / "imdb" / f"{split}.parquet", imdb_rows(count, count, start=start))
        write_csv(root / "jigsaw" / f"{split}.csv", jigsaw_rows(2 * count, count, start=start))
        write_jsonl(root / "real_toxicity_prompts" / f"{split}.jsonl", toxicity_rows(2 * count, count, start=start))
    return {
        "policy": save_policy(root / "policy", context=128),
        "toxicity": save_classifier(root / "toxicity", labels=("toxic", "insult")),
        "sentiment": save_classifier(root / "sentiment", labels=("NEGATIVE", "POSITIVE")),
        **{task: root / task for task in TASKS},
    }


def base_of(config: str) -> list[str]:
    """The configurations that an overlay is laid over, and the overlay."""
    overlay = [Path(config).name, config]
    names = {"rlhf": overlay, "baselines": overlay}.get(config.partition("/")[0], [config])
    if config == "quickstart/rlhf.yaml":
        names = ["quickstart/rarlhf.yaml", config]
    return [part for name in names for part in ("--config", str(ROOT / "configs" / name))]


def small(world: dict[str, Path], config: str, folder: Path) -> list[str]:
    """Arguments that shrink a shipped configuration to a second's work."""
    task = Path(config).stem
    sizes = [
        "--data.val_size",
        "6",
        "--data.batch_size",
        "8",
        "--data.eval_batch_size",
        "8",
        "--data.progress",
        "false",
    ]
    if task in TASKS:
        sizes += ["--data.path", str(world[task]), "--data.prompt_tokens", "4"]
    elif "sft" not in config:
        sizes += ["--data.prompt_tokens", "4"]
    run = ["--model.policy.pretrained", str(world["policy"]), "--trainer.default_root_dir", str(folder)]
    return [*base_of(config), *sizes, *run, *QUIET]


def rewards(world: dict[str, Path], config: str) -> list[str]:
    task = Path(config).stem
    if task not in TASKS or config.startswith("sft/"):
        return []
    return ["--model.reward.pretrained", str(world["sentiment" if task == "imdb" else "toxicity"])]


def short_schedule(config: str) -> list[str]:
    overlay = config.startswith(("sft/", "rlhf/", "baselines/")) or config in (
        "quickstart/sft.yaml",
        "quickstart/rlhf.yaml",
    )
    return [] if overlay else ["--trainer.callbacks.warmup", "0", "--trainer.callbacks.rho", "0.5"]


@pytest.mark.parametrize("config", CONFIGS)
def test_trains_through_the_command_line(world, config, tmp_path):
    arguments = small(world, config, tmp_path) + rewards(world, config) + short_schedule(config)
    train.main(["fit", *arguments, "--trainer.max_steps", "3"])
    assert (tmp_path / "huggingface" / "model.safetensors").is_file()
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()
    saved = yaml.safe_load(next(tmp_path.rglob("config.yaml")).read_text())
    assert saved["model"]["init_args"]["policy"]["pretrained"] == str(world["policy"])


@pytest.mark.parametrize("task", TASKS)
def test_test_writes_the_two_files_and_a_table(world, task, tmp_path, capsys):
    config = f"{task}.yaml"
    train.main(["test", *small(world, config, tmp_path), *rewards(world, config)])
    results = json.loads((tmp_path / "results.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "generations.jsonl").read_text().splitlines()]
    assert results["metrics"]["score_mean"]["n"] == len(lines) > 0
    assert results["data"]["class"] == yaml.safe_load((ROOT / "configs" / config).read_text())["data"]["class_path"]
    assert results["config_sha256"]
    assert "score_mean" in capsys.readouterr().out
    assert {"prompt", "label", "prompt_score", "response", "score", "kl", "tokens", "finish_reason"} <= lines[0].keys()
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("imdb", {"max_new_tokens": 48, "prompt_tokens": 64, "risk_level": 0.4, "thresholds": [-2.5]}),
        ("jigsaw", {"max_new_tokens": 32, "prompt_tokens": 8, "risk_level": 0.2, "thresholds": [5.0, -2.5]}),
        (
            "real_toxicity_prompts",
            {"max_new_tokens": 32, "prompt_tokens": 32, "risk_level": 0.2, "thresholds": [5.0, -2.5]},
        ),
    ],
)
def test_the_papers_numbers_stand_in_the_configuration(task, settings):
    """Kept apart from the files on purpose: the published figures, typed in again."""
    config = yaml.safe_load((ROOT / "configs" / f"{task}.yaml").read_text())
    model = config["model"]["init_args"]
    assert model["policy"]["pretrained"] == "gpt2"
    assert model["sampling"] == {"max_new_tokens": settings["max_new_tokens"]}
    assert model["optimizer"] == {"class_path": "torch.optim.Adam", "init_args": {"lr": 1.41e-5, "fused": True}}
    assert model["ppo"] == {
        "epochs": 4,
        "minibatch_size": 128,
        "cliprange": 0.2,
        "cliprange_value": 0.2,
        "vf_coef": 0.1,
        "gamma": 1.0,
        "lam": 0.95,
    }
    assert model["kl"] == {"init_kl_coef": 0.2, "target": 6.0, "horizon": 10_000}
    assert model["evaluation"]["tail_thresholds"] == settings["thresholds"]
    assert config["data"]["init_args"] == {"prompt_tokens": settings["prompt_tokens"], "batch_size": 128}
    schedule = config["trainer"]["callbacks"][-1]
    assert schedule["class_path"] == "RiskSchedule"
    assert schedule["init_args"] == {"risk_level": settings["risk_level"], "warmup": 30, "rho": 0.95}
    assert config["trainer"]["max_epochs"] == 1
    sft = yaml.safe_load((ROOT / "configs" / "sft" / f"{task}.yaml").read_text())
    assert sft["trainer"]["max_epochs"] == 10
    assert sft["data"]["init_args"]["batch_size"] * sft["trainer"]["accumulate_grad_batches"] == 1024
    assert sft["model"]["init_args"]["optimizer"] == {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-5}}
    assert sft["data"]["init_args"]["text_tokens"] == 64


def test_null_unsets_what_a_configuration_sets(capsys):
    unset = ("evaluation.toxicity_of", "ppo.target_kl", "reward.device", "policy.revision")
    options = [word for name in unset for word in (f"--model.{name}", "null")] + ["--data.path", "runs/seed=None"]
    with pytest.raises(SystemExit, match="0"):
        train.main(["fit", "--config", str(ROOT / "configs/jigsaw.yaml"), *options, "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["data"]["init_args"]["path"] == "runs/seed=None"
    model = config["model"]["init_args"]
    reward = model["reward"]["init_args"]
    found = (
        model["evaluation"]["toxicity_of"],
        model["ppo"]["target_kl"],
        reward["device"],
        model["policy"]["revision"],
    )
    assert found == (None, None, None, None)


@pytest.mark.parametrize("task", TASKS)
def test_rlhf_is_the_same_configuration_without_the_schedule(task):
    overlay = yaml.safe_load((ROOT / "configs" / "rlhf" / f"{task}.yaml").read_text())
    risk_averse = yaml.safe_load((ROOT / "configs" / f"{task}.yaml").read_text())["trainer"]["callbacks"]
    assert overlay["trainer"].keys() == {"default_root_dir", "callbacks"}
    assert overlay["trainer"]["callbacks"] == [c for c in risk_averse if c["class_path"] != "RiskSchedule"]


def test_an_instructed_policy_is_tuned_to_exactly_what_prompted_and_self_debias_put_before_a_prompt():
    settings = {
        name: yaml.safe_load((ROOT / "configs" / "baselines" / name / "jigsaw.yaml").read_text())
        for name in ("instructed", "prompted", "self_debias")
    }
    prompted = Prompted(**settings["prompted"]["model"]["init_args"]["method"]["init_args"])
    biased = SelfDebias(**settings["self_debias"]["model"]["init_args"]["method"]["init_args"])
    assert settings["instructed"]["data"]["init_args"]["sft_codes"] == [
        prompted.instruction + prompted.separator,
        *(instruction + biased.separator for instruction in biased.instructions),
    ]


def test_predict_writes_generations_for_the_users_own_prompts(world, tmp_path):
    prompts = write_jsonl(tmp_path / "mine.jsonl", [{"text": f"the film {n}"} for n in range(5)])
    arguments = small(world, "jigsaw.yaml", tmp_path) + rewards(world, "jigsaw.yaml")
    train.main(
        [
            "predict",
            *arguments,
            "--data",
            "TextFileDataModule",
            "--data.path",
            str(prompts),
            "--data.text_column",
            "text",
        ]
    )
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == [0, 1, 2, 3, 4]
    assert not (tmp_path / "results.json").exists()


def test_validate_logs_mean_and_tail(world, tmp_path, capsys):
    train.main(["validate", *small(world, "jigsaw.yaml", tmp_path), *rewards(world, "jigsaw.yaml")])
    assert "val/cvar_10" in capsys.readouterr().out


def test_a_run_resumes_and_its_checkpoint_does_not_override_what_the_user_says(world, tmp_path):
    """Two iterations, then two more with other settings, consented to: the new ones count."""
    arguments = small(world, "jigsaw.yaml", tmp_path) + rewards(world, "jigsaw.yaml") + short_schedule("jigsaw.yaml")
    train.main(["fit", *arguments, "--trainer.max_steps", "2"])
    steps = optimizer_steps(tmp_path)
    more = ["--model.ppo.epochs", "2", "--trainer.max_steps", "4", "--resume_changed", "true"]
    train.main(["fit", *arguments, *more, "--ckpt_path", str(tmp_path / "checkpoints" / "last.ckpt")])
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert steps == 2 * 4
    assert optimizer_steps(tmp_path) == steps + 2 * 2


@pytest.mark.parametrize("config", [config for config in CONFIGS if config in ("jigsaw.yaml", "sft/jigsaw.yaml")])
def test_last_finds_the_runs_own_checkpoint(world, config, tmp_path):
    arguments = small(world, config, tmp_path) + rewards(world, config) + short_schedule(config)
    train.main(["fit", *arguments, "--trainer.max_steps", "2"])
    train.main(["fit", *arguments, "--trainer.max_steps", "3", "--ckpt_path", "last"])
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3


@pytest.mark.parametrize("config", ["jigsaw.yaml", "sft/jigsaw.yaml"])
def test_the_users_optimizer_settings_count_in_a_resumed_run(world, config, tmp_path, caplog):
    arguments = small(world, config, tmp_path) + rewards(world, config) + short_schedule(config)
    train.main(["fit", *arguments, "--trainer.accumulate_grad_batches", "1", "--trainer.max_steps", "2"])
    caplog.set_level("INFO")
    more = ["--trainer.accumulate_grad_batches", "1", "--trainer.max_steps", "4", "--ckpt_path", "last"]
    train.main(["fit", *arguments, *more, "--model.optimizer.lr", "0.125", "--seed_everything", "9"])
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    (group,) = state["optimizer_states"][0]["param_groups"]
    assert group.get("initial_lr", group["lr"]) == 0.125
    assert "lr is now 0.125; the checkpoint's was" in caplog.text
    assert state["sampling_seed"] == 0
    assert "goes on with its own seed, 0, not 9" in caplog.text


def test_nothing_is_written_in_the_middle_of_an_accumulated_step(world, tmp_path):
    arguments = small(world, "sft/jigsaw.yaml", tmp_path)
    short = [
        "--trainer.accumulate_grad_batches",
        "4",
        "--trainer.limit_train_batches",
        "3",
        "--trainer.max_epochs",
        "1",
    ]
    written = []
    original = RunCheckpoint._save_last_checkpoint

    def note(self, trainer, candidates):
        written.append(trainer.global_step)
        original(self, trainer, candidates)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunCheckpoint, "_save_last_checkpoint", note)
        train.main(["fit", *arguments, *short, "--trainer.limit_val_batches", "0"])
    assert written == [1]  # after the epoch's only step, not before it


def optimizer_steps(folder: Path) -> int:
    """Steps that the optimizer of the folder's last checkpoint has made."""
    (state,) = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"]
    return int(next(iter(state["state"].values()))["step"])
