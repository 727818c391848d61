"""What is read from elsewhere goes through few doors; this walks the source and refuses a new one."""

from __future__ import annotations

import ast
import pickle
import subprocess
from pathlib import Path

import pytest
import torch

from lightning_rarlhf.checkpoints.safe_shards import SafeLoadPlanner, SafeShardReader
from lightning_rarlhf.checkpoints.sharded_checkpoint import whole_checkpoint
from lightning_rarlhf.config import PolicyConfig
from lightning_rarlhf.errors import ModelError, UserError
from lightning_rarlhf.loading.policy_loading import load_causal_lm
from lightning_rarlhf.reward_models import ClassifierReward
from tests.tiny_models import save_classifier, save_policy

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ("lightning_rarlhf", "callbacks", "datamodules", "benchmarks", "train.py", ".ci")

DOORS = {
    "from_pretrained": {
        "lightning_rarlhf/loading/own_code.py",  # every model and tokenizer
        "lightning_rarlhf/loading/policy_loading.py",  # an adapter: peft runs no code of a folder
        "lightning_rarlhf/export/__init__.py",  # the copy that was just written
        "benchmarks/peers/trl_0_7_2.py",  # what the benchmark itself has made
        "benchmarks/peers/trl_1_9_2.py",
    },
    "load_dataset": {"datamodules/sources.py"},
    "pipeline": set(),
    "load_state_dict_from_url": set(),
    "load_from_checkpoint": set(),
    "FileSystemReader": set(),
}
"""calls by name, and the files that may make them"""
BANNED = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "unsafe_load",
    "full_load",
    "read_pickle",
    "Unpickler",
    "loads_pickle",
}
PICKLES = ("pickle", "cloudpickle", "dill", "marshal", "joblib", "shelve")


def source_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *SHIPPED], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    names = listed.split() or [str(p.relative_to(ROOT)) for part in SHIPPED for p in (ROOT / part).rglob("*.py")]
    return [ROOT / name for name in names if name.endswith(".py")]


def unguarded(source: str, name: str) -> list[str]:
    """What of a file reads from elsewhere without a guard, as ``line: call``."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        callee = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        bad = (
            (callee in DOORS and name not in DOORS[callee])
            or (callee in BANNED and owner in ("", "yaml", "pickle", "pandas", "pd", "builtins"))
            or (
                callee in ("load", "loads")
                and owner in ("pickle", "cloudpickle", "dill", "marshal", "joblib", "shelve")
            )
            or (callee == "load" and owner == "yaml" and "Safe" not in given.get("Loader", ""))
            or (callee == "load" and owner in ("np", "numpy") and given.get("allow_pickle", "False") != "False")
            or (callee == "load" and owner == "torch" and given.get("weights_only") != "True")
            or given.get("trust_remote_code") == "True"
            or given.get("use_safetensors") == "False"
            or given.get("weights_only", "True") == "False"
            or given.get("shell") == "True"
        )
        if bad:
            found.append(f"{call.lineno}: {ast.unparse(call)}")
    return found


def test_every_read_of_the_source_is_guarded():
    files = source_files()
    assert len(files) > 80
    found = {str(path.relative_to(ROOT)): unguarded(path.read_text(), str(path.relative_to(ROOT))) for path in files}
    assert {name: calls for name, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "line",
    [
        "AutoModel.from_pretrained(name)",
        "datasets.load_dataset(name)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.load(file)",
        "pandas.read_pickle(path)",
        "yaml.load(text)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "load(name, trust_remote_code=True)",
        "subprocess.run(text, shell=True)",
        "FileSystemReader(folder)",
    ],
)
def test_a_new_door_is_seen(line):
    assert unguarded(line, "lightning_rarlhf/new.py")


class Trap:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def with_trap(folder: Path, trap: Path, weights: str = "pytorch_model.bin") -> Path:
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Trap(trap)}, folder / weights)
    return folder


def test_pickled_weights_are_read_as_plain_data(tmp_path):
    trap = tmp_path / "ran"
    policy = with_trap(save_policy(tmp_path / "policy"), trap)
    with pytest.raises(ModelError, match="policy: not a causal language model that transformers can load"):
        load_causal_lm(PolicyConfig(pretrained=str(policy)))
    reward = with_trap(save_classifier(tmp_path / "reward"), trap)
    with pytest.raises(ModelError, match="reward: not a sequence classifier that transformers can load"):
        ClassifierReward(str(reward), label="toxic").load(torch.device("cpu"))
    assert not trap.exists()


def test_plain_pickled_weights_still_load(tmp_path):
    from safetensors.torch import load_file

    folder = save_policy(tmp_path / "policy")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    lm = load_causal_lm(PolicyConfig(pretrained=str(folder)))
    name = next(name for name in weights if name in lm.state_dict())
    assert torch.equal(lm.state_dict()[name], weights[name])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
class TestShards:
    @staticmethod
    def write(folder: Path, **settings: object) -> Path:
        from torch.distributed.checkpoint import save

        state = {"state_dict": {"a": torch.arange(3.0)}, "optimizer_0": {"state": {}, "lr": 0.1, **settings}}
        save(state, checkpoint_id=folder, no_dist=True)
        torch.save({"pytorch-lightning_version": "2", "loops": {}}, folder / "meta.pt")
        return folder

    def test_what_torch_writes_is_read(self, tmp_path):
        from torch.distributed.checkpoint import load

        folder = self.write(tmp_path / "a.ckpt", betas=(0.9, 0.99))
        assert torch.equal(whole_checkpoint(folder)["state_dict"]["a"], torch.arange(3.0))
        state = {"optimizer_0": {"lr": 0.0, "betas": (0.0, 0.0)}}
        load(state, storage_reader=SafeShardReader(folder), planner=SafeLoadPlanner(), no_dist=True)
        assert state == {"optimizer_0": {"lr": 0.1, "betas": (0.9, 0.99)}}

    def test_an_index_with_code_is_refused_and_not_run(self, tmp_path):
        folder, trap = self.write(tmp_path / "a.ckpt"), tmp_path / "ran"
        (folder / ".metadata").write_bytes(pickle.dumps(Trap(trap)))
        with pytest.raises(UserError, match=r"its \.metadata cannot be read: .*no part of a checkpoint's index"):
            whole_checkpoint(folder)
        assert not trap.exists()

    @pytest.mark.parametrize("content", [b"", b"nonsense", pickle.dumps({"a": 1})])
    def test_a_damaged_index_is_one_line(self, tmp_path, content):
        folder = self.write(tmp_path / "a.ckpt")
        (folder / ".metadata").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.ckpt: its \.metadata (cannot be read|is no checkpoint's index)"):
            whole_checkpoint(folder)

    def test_settings_with_code_are_not_run(self, tmp_path):
        from torch.distributed.checkpoint import CheckpointException, load

        trap = tmp_path / "ran"
        folder = self.write(tmp_path / "a.ckpt", betas=Trap(trap))
        with pytest.raises(CheckpointException, match="(?i)weights_only|unsupported"):
            load(
                {"optimizer_0": {"betas": 0}},
                storage_reader=SafeShardReader(folder),
                planner=SafeLoadPlanner(),
                no_dist=True,
            )
        assert not trap.exists()


def test_the_base_of_an_adapter_is_loaded_at_the_adapters_revision(tmp_path, monkeypatch):
    import json

    from lightning_rarlhf.loading import empty_policy, policy_loading
    from lightning_rarlhf.loading.hub import base_of_adapter

    (tmp_path / "adapter").mkdir()
    settings = {"base_model_name_or_path": "owner/base", "revision": "c0ffee"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    assert base_of_adapter(str(tmp_path / "adapter")) == ("owner/base", "c0ffee")
    asked = []

    def configuration(kind, name, what, *, revision=None, **options):
        asked.append((name, revision))

    def reached(kind, name, what, *, revision=None, **options):
        asked.append((name, revision))
        raise ModelError("reached")

    monkeypatch.setattr(empty_policy, "require_model", lambda *args: None)
    monkeypatch.setattr(empty_policy, "load_pretrained", configuration)
    monkeypatch.setattr(policy_loading, "load_pretrained", reached)
    with pytest.raises(ModelError, match="reached"):
        load_causal_lm(PolicyConfig(pretrained=str(tmp_path / "adapter")))
    assert asked == [("owner/base", "c0ffee")] * 2
