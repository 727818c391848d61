"""configs/gptj/fsdp2.yaml on a tiny GPT-J in two processes, as its users run it: fit, resume, export, plain reload."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import train
from lightning_rarlhf.checkpoints.sharded_checkpoint import whole_checkpoint
from lightning_rarlhf.export.__main__ import main as export
from lightning_rarlhf.records.generations import read_rows
from tests.test_configs import world
from tests.test_gptj_configs import arguments, greedy, short, trained_policy
from tests.two_processes import together

__all__ = ["world"]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

FLOAT32 = ["--model.policy.dtype", "float32"]
ONE_FILE = '{"class_path": "FSDP2Strategy", "init_args": {"save_distributed_checkpoint": false}}'


@pytest.fixture(scope="module")
def root(world, policy_folders, tmp_path_factory) -> Path:
    """Runs in one process and in two; one pair of processes, for starting it is what takes long."""
    root = tmp_path_factory.mktemp("gptj")
    policy = policy_folders["gptj"]

    def run(verb: str, folder: str, *more: str) -> list[str]:
        alone = ["--trainer.strategy", "auto", "--trainer.devices", "1"]
        where = alone if folder == "alone" else ["--trainer.devices", "2"]
        return [verb, *arguments(world, policy, "fsdp2", root / folder), *where, *more]

    def life(folder: str) -> list[list[str]]:
        last = str(root / folder / "checkpoints" / "last.ckpt")
        return [
            run("fit", folder, *short(2), *FLOAT32),
            run("fit", folder, *short(3), *FLOAT32, "--ckpt_path", "last"),
            run("predict", folder, *FLOAT32, "--trainer.callbacks", "[]", "--ckpt_path", last),
        ]

    one_file = ["--trainer.strategy", ONE_FILE, "--trainer.precision", "bf16-mixed", *FLOAT32]
    for command in life("alone"):
        train.main(command)
    others = [
        run("fit", "bfloat16", *short(2)),
        run("fit", "one_file", *short(2), *one_file),
        run("fit", "one_file", *short(3), *one_file, "--ckpt_path", "last"),
    ]
    together(root, [*life("two"), *others])
    return root


def exported(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def test_fit_and_resume_give_the_weights_of_one_process(root):
    alone, two = exported(root / "alone" / "huggingface"), exported(root / "two" / "huggingface")
    assert alone.keys() == two.keys()
    for name, weight in alone.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-5)


def test_predictions_are_those_of_one_process(root):
    alone, two = (list(read_rows(root / name / "predictions.jsonl")) for name in ("alone", "two"))
    assert len(alone) == 40
    assert [row["response"] for row in two] == [row["response"] for row in alone]
    assert [row["score"] for row in two] == pytest.approx([row["score"] for row in alone], abs=1e-4)


def test_the_export_is_a_plain_model_that_says_what_the_checkpoint_says(root, policy_folders, tmp_path):
    """The final export, and the one made later of the checkpoint's shards."""
    shards = root / "two" / "checkpoints" / "last.ckpt"
    checkpoint = whole_checkpoint(shards)
    learned = greedy(trained_policy(root / "two", policy_folders["gptj"], checkpoint).lm)
    assert learned != greedy(AutoModelForCausalLM.from_pretrained(policy_folders["gptj"]).eval())
    assert export([str(shards), str(tmp_path / "later")]) == 0
    for folder in (root / "two" / "huggingface", tmp_path / "later"):
        assert greedy(AutoModelForCausalLM.from_pretrained(folder).eval()) == learned


def test_the_shipped_dtype_and_one_file_checkpoints_train(root, policy_folders):
    assert len(list((root / "bfloat16" / "checkpoints" / "last.ckpt").glob("*.distcp"))) == 2
    assert {value.dtype for value in exported(root / "bfloat16" / "huggingface").values()} >= {torch.bfloat16}
    checkpoint = torch.load(root / "one_file" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    learned = greedy(trained_policy(root / "one_file", policy_folders["gptj"], checkpoint).lm)
    assert greedy(AutoModelForCausalLM.from_pretrained(root / "one_file" / "huggingface").eval()) == learned
