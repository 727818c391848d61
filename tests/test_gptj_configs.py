"""configs/gptj on tiny models of every family, through the real command line, as their users run them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

import train
from lightning_rarlhf.config import LoRAConfig, PolicyConfig
from lightning_rarlhf.export.__main__ import main as export
from lightning_rarlhf.loading.policy_loading import load_actor_critic
from lightning_rarlhf.loading.tokenizer import load_tokenizer
from tests.damage import flip_a_bit_of_a_weight
from tests.test_configs import QUIET, ROOT, world
from tests.tiny_models import FAMILIES

__all__ = ["world"]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

FEW = ["--trainer.limit_val_batches", "0"]
ONE_PROCESS = ("lora_bf16", "lora_8bit")


def arguments(world, policy, config, folder, task="imdb") -> list[str]:
    reward = world["sentiment" if task == "imdb" else "toxicity"]
    files = [f"{task}.yaml", f"gptj/{config}.yaml"]
    sizes = {"val_size": 0, "prompt_tokens": 4, "batch_size": 8, "progress": "false", "path": world[task]}
    return [
        *(part for name in files for part in ("--config", str(ROOT / "configs" / name))),
        *(part for name, value in sizes.items() for part in (f"--data.{name}", str(value))),
        *("--model.policy.pretrained", str(policy), "--model.reward.pretrained", str(reward)),
        *("--model.sampling.max_new_tokens", "6", "--trainer.default_root_dir", str(folder)),
        *QUIET,
    ]


def short(steps: int) -> list[str]:
    schedule = ["--trainer.callbacks.warmup", "0", "--trainer.callbacks.rho", "0.5"]
    return [
        *schedule,
        "--trainer.limit_val_batches",
        "0",
        "--model.optimizer.lr",
        "0.01",
        "--trainer.max_steps",
        str(steps),
    ]


def greedy(lm) -> list[list[int]]:
    tokens = torch.tensor([[3, 4, 5], [9, 10, 11]])
    for _ in range(10):
        tokens = torch.cat([tokens, lm(tokens).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return tokens.tolist()


def trained_policy(folder, policy, checkpoint):
    """The policy of a checkpoint, put together by hand."""
    settings = yaml.safe_load(next(folder.rglob("config.yaml")).read_text())["model"]["init_args"]["policy"]
    config = PolicyConfig(**{**settings, "lora": LoRAConfig(**settings["lora"])})
    actor = load_actor_critic(config, load_tokenizer(str(policy)))
    state = {name.removeprefix("actor."): value for name, value in checkpoint["state_dict"].items()}
    actor.load_state_dict(state, strict=False)
    return actor


@pytest.mark.parametrize("config", ONE_PROCESS)
@pytest.mark.parametrize("family", FAMILIES)
def test_fit_resume_export_and_reload(world, policy_folders, family, config, tmp_path):
    policy = policy_folders[family]
    run = arguments(world, policy, config, tmp_path)
    train.main(["fit", *run, *short(2)])
    train.main(["fit", *run, *short(3), "--ckpt_path", "last"])
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    assert all("lora_" in name or "value_head" in name for name in checkpoint["state_dict"])
    actor = trained_policy(tmp_path, policy, checkpoint)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "huggingface", dtype=torch.bfloat16).eval()
    agreeing = sum(a == b for a, b in zip(greedy(plain), greedy(actor.lm), strict=True))
    assert agreeing >= 1  # merging rounds to bfloat16: a near tie may fall the other way, see docs/scale.md
    file = str(tmp_path / "checkpoints" / "last.ckpt")
    assert export([file, str(tmp_path / "again")]) == 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.bfloat16).eval()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), again.parameters(), strict=True))
    assert export([file, str(tmp_path / "adapter"), "--form", "adapter"]) == 0
    start = PolicyConfig(
        pretrained=str(tmp_path / "adapter"),
        dtype="bfloat16",
        quantization="8bit" if config == "lora_8bit" else None,
    )
    if config == "lora_8bit":  # the adapter stays beside the quantised weights, so nothing is rounded again
        assert greedy(load_actor_critic(start, load_tokenizer(str(policy))).lm) == greedy(actor.lm)


def test_a_checkpoint_and_an_adapters_folder_are_tested_alike(world, policy_folder, tmp_path):
    run = arguments(world, policy_folder, "lora_bf16", tmp_path / "run", "jigsaw")
    run += ["--model.policy.dtype", "float32"]
    callbacks = '[{"class_path": "HuggingFaceExport", "init_args": {"form": "adapter"}}]'
    train.main(
        ["fit", *run, "--trainer.callbacks", callbacks, "--trainer.limit_val_batches", "0", "--trainer.max_steps", "2"]
    )
    adapter = tmp_path / "run" / "huggingface"
    assert sorted(p.name for p in adapter.glob("*.safetensors")) == [
        "adapter_model.safetensors",
        "value_head.safetensors",
    ]
    few = ["--trainer.limit_test_batches", "1", "--trainer.callbacks", "[]"]
    train.main(["test", *run, *few, "--ckpt_path", str(tmp_path / "run" / "checkpoints" / "last.ckpt")])
    from_checkpoint = rows(tmp_path / "run")
    other = arguments(world, adapter, "lora_bf16", tmp_path / "test", "jigsaw")
    reference = ["--model.reference", str(policy_folder), "--model.policy", '{"lora": null}']
    train.main(["test", *other, *few, *reference, "--model.policy.dtype", "float32"])
    from_folder = rows(tmp_path / "test")
    for name in ("response", "prompt"):
        assert [row[name] for row in from_checkpoint] == [row[name] for row in from_folder]
    for one, two in zip(from_checkpoint, from_folder, strict=True):
        assert one["kl"] == pytest.approx(two["kl"], abs=1e-4)


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]


def test_an_8_bit_optimizer_by_name_and_its_resume(world, policy_folders, tmp_path):
    """Interrupted and resumed equals uninterrupted, with states that really are of 8 bits."""
    optimizer = '{"class_path": "bitsandbytes.optim.AdamW8bit", "init_args": {"lr": 0.01, "min_8bit_size": 16}}'
    weights = []
    for name, stops in (("whole", (4,)), ("resumed", (2, 4))):
        run = arguments(world, policy_folders["gptj"], "lora_8bit", tmp_path / name)
        run += ["--trainer.callbacks", "[]", "--trainer.limit_val_batches", "0", "--model.optimizer", optimizer]
        for stop in stops:
            resume = ["--ckpt_path", "last"] if stop != stops[0] else []
            train.main(["fit", *run, "--trainer.max_steps", str(stop), *resume])
        checkpoint = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        weights.append(checkpoint["state_dict"])
        states = checkpoint["optimizer_states"][0]["state"].values()
        moments = [state["__bnb_optimizer_quant_state__"]["state1"] for state in states]
        assert torch.uint8 in {moment.dtype for moment in moments}
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--model.policy", '{"lora": null}'], "no gradient; train adapters"),
        (["--model.policy.quantization", "4bit"], "on a CPU"),
        (["--model.policy.lora.target_modules", "[attention]"], "matches no linear layer of this gptj"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_checkpoint(world, policy_folders, tmp_path, capsys, more, line):
    run = arguments(world, policy_folders["gptj"], "lora_8bit", tmp_path)
    with pytest.raises(SystemExit) as end:
        train.main(["fit", *run, *short(2), *more])
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2
    assert message.startswith("error: ")
    assert line in message
    assert not (tmp_path / "checkpoints").exists()


def test_a_checkpoint_of_another_policy_is_refused_by_name(world, policy_folders, tmp_path, capsys):
    run = arguments(world, policy_folders["gptj"], "lora_bf16", tmp_path)
    train.main(["fit", *run, *short(2)])
    file = tmp_path / "checkpoints" / "last.ckpt"
    content = torch.load(file, weights_only=True)
    lost = next(name for name in content["state_dict"] if "lora_A" in name)
    del content["state_dict"][lost]
    torch.save(content, tmp_path / "lacking.ckpt")
    cases = (
        (tmp_path / "lacking.ckpt", [], f"lacks {lost}"),
        (file, ["--model.policy.lora.r", "4", "--resume_changed", "true"], "of another shape"),
        (file, ["--model.policy", '{"lora": null}', "--resume_changed", "true"], "has unknown|lacks"),
    )
    for path, more, line in cases:
        with pytest.raises(SystemExit):
            train.main(["fit", *run, *short(3), "--ckpt_path", str(path), *more])
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert any(part in error for part in line.split("|")), error
    assert export([str(tmp_path / "lacking.ckpt"), str(tmp_path / "out")]) == 2
    assert f"lacks {lost}" in capsys.readouterr().err
    assert export([str(tmp_path / "none.ckpt"), str(tmp_path / "out")]) == 2
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "noise.ckpt").write_bytes(b"noise")
    assert export([str(tmp_path / "noise.ckpt"), str(tmp_path / "out")]) == 2
    assert "truncated, damaged, or not a checkpoint" in capsys.readouterr().err
    damaged = shutil.copy(file, tmp_path / "damaged.ckpt")
    record = flip_a_bit_of_a_weight(damaged)
    assert export([str(damaged), str(tmp_path / "out")]) == 2
    assert f"damaged.ckpt cannot be read: truncated, damaged, or not a checkpoint (wrong checksum of {record})" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()
