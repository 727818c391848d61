"""What the command line must not do: run code from a file, leak a secret, let a text act on what shows it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

import train
from tests.test_bad_input import arguments, world  # noqa: F401
from tests.test_configs import ROOT

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
TOKEN = "hf_" + "aB3" * 11


class Trap:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def refused(arguments: list[str], capfd) -> str:
    with pytest.raises(SystemExit) as caught:
        train.main(arguments)
    assert caught.value.code == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:pathlib.Path.touch [{trap}]",
        "!!python/object:pathlib.Path {{}}",
        "!!python/name:os.system ''",
        "!!python/module:os ''",
    ],
)
def test_yaml_runs_no_code(world, tmp_path, capfd, value):  # noqa: F811
    trap = tmp_path / "trap"
    (tmp_path / "mine.yaml").write_text(f"seed_everything: {value.format(trap=trap)}\n")
    line = refused(
        ["fit", "--config", str(ROOT / "configs" / "jigsaw.yaml"), "--config", str(tmp_path / "mine.yaml")], capfd
    )
    assert "mine.yaml" in line or "python/" in line
    assert not trap.exists()


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_checkpoint_that_holds_code_is_refused_and_not_run(world, tmp_path, capfd, how):  # noqa: F811
    trap, path = tmp_path / "trap", tmp_path / "foreign.ckpt"
    content = {"state_dict": {}, "pytorch-lightning_version": "2.6.6", "callbacks": {"x": Trap(trap)}}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    line = refused([*arguments(world, tmp_path / "run"), "--ckpt_path", str(path)], capfd)
    assert f"checkpoint {path} cannot be read: truncated, damaged, or not a checkpoint" in line
    assert not trap.exists()
    assert "weights_only" in refused([*arguments(world, tmp_path / "run"), "--weights_only", "false"], capfd)


def good(prompts, responses):
    return [float(len(response)) for response in responses]


def test_no_secret_is_written_and_everything_that_is_written_can_be_read_safely(world, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    folder = tmp_path / "run"
    secret = [
        *("--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", str(folder)),
        *("--trainer.logger.comment", f"https://me:swordfish@host/{TOKEN}"),
        *("--checkpoint.every_n_iterations", "1"),
    ]
    train.main([*arguments(world, folder), *secret])
    train.main(["test", *arguments(world, folder)[1:], *secret, "--ckpt_path", "last"])
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert {"config.yaml", "results.json", "last.ckpt"} <= {path.name for path in written}
    for path in written:
        content = path.read_bytes()
        assert TOKEN.encode() not in content, path
        assert b"swordfish" not in content, path
    torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert not [path for path in written if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    config = next(path for path in written if path.name == "config.yaml").read_text()
    assert "https://[redacted]@host/[redacted]" in config


def test_a_crash_bundle_and_the_error_hold_no_secret(world, tmp_path, monkeypatch, capfd):  # noqa: F811
    monkeypatch.setenv("HF_TOKEN", "0123456789-a-token-of-no-known-shape")
    folder = tmp_path / "run"
    function = "tests.test_bad_input.not_a_number"
    secret = [
        *("--model.reward", "CallableReward", "--model.reward.function", function),
        *("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", str(folder)),
        *("--trainer.logger.name", f"token={TOKEN}", "--trainer.logger.prefix", "0123456789-a-token-of-no-known-shape"),
        *("--trainer.profiler", "SimpleProfiler", "--trainer.profiler.filename", "ftp://me:swordfish@host/x"),
    ]
    line = refused([*arguments(world, folder), *secret], capfd)
    assert "its batch is in" in line
    bundle = next(folder.rglob("crash.json"))
    facts = json.loads(bundle.read_text())
    assert facts["config"].count("[redacted]") >= 3
    for text in (line, bundle.read_text(), (bundle.parent / "tensors.safetensors").read_bytes().decode("latin-1")):
        for word in (TOKEN, "swordfish", "0123456789-a-token"):
            assert word not in text


def test_a_name_that_would_act_on_the_terminal_is_spelt_out(world, tmp_path, capfd):  # noqa: F811
    name = "no\x1b[31m\u202esuch\nfolder"
    line = refused([*arguments(world, tmp_path), "--model.policy.pretrained", f"./{name}"], capfd)
    assert "./no\\x1b[31m\\u202esuch\\nfolder" in line


def test_generations_spell_out_control_characters_and_read_back(tmp_path):
    from lightning_rarlhf.records.generations import _line

    text = "a\x1b[2J\x9b31m\u202e\u2028b\x00 café 👩‍👩‍👧"
    line = _line({"response": text})
    assert json.loads(line)["response"] == text
    assert not [c for c in line if (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160]
    assert "café 👩‍👩‍👧" in line
