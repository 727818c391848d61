from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_rarlhf.config import PolicyConfig
from lightning_rarlhf.errors import ModelError, UserError
from lightning_rarlhf.loading import own_code
from lightning_rarlhf.loading.hub import split_revision
from lightning_rarlhf.loading.own_code import may_run_code, trust
from lightning_rarlhf.loading.policy_loading import load_causal_lm
from lightning_rarlhf.reward_models import ClassifierReward
from tests.tiny_models import save_classifier, save_policy

COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(autouse=True)
def _nobody_is_trusted(monkeypatch):
    monkeypatch.setattr(own_code, "_trusted", set())
    # transformers would ask; a test that hangs here shows that it was let
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked on the terminal"))


def with_code(folder: Path, auto_class: str) -> Path:
    """Give a model folder a configuration class of its own, whose import leaves a file behind."""
    config = json.loads((folder / "config.json").read_text())
    parent = "GPT2" if "CausalLM" in auto_class else "Bert"
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MyConfig", auto_class: "mine.MyModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    base = f"{parent}LMHeadModel" if parent == "GPT2" else f"{parent}ForSequenceClassification"
    (folder / "mine.py").write_text(
        f"from pathlib import Path\n"
        f"from transformers import {parent}Config, {base}\n"
        f"Path({str(folder / 'ran')!r}).touch()\n"
        f"class MyConfig({parent}Config):\n    model_type = 'mine'\n"
        f"class MyModel({base}):\n    config_class = MyConfig\n"
    )
    return folder


def test_a_policy_with_code_is_refused_until_it_is_named(tmp_path):
    folder = with_code(save_policy(tmp_path / "policy"), "AutoModelForCausalLM")
    config = PolicyConfig(pretrained=str(folder))
    with pytest.raises(ModelError, match="ships code of its own, which is not run; .* set trust_remote_code"):
        load_causal_lm(config)
    assert not (folder / "ran").exists()
    trust(str(folder), str(folder), None, "policy.trust_remote_code")
    assert type(load_causal_lm(config)).__name__ == "MyModel"
    assert (folder / "ran").exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_trust_does_not_reach_another_repositorys_code(tmp_path, file):
    folder = with_code(save_policy(tmp_path / "policy"), "AutoModelForCausalLM")
    settings = json.loads((folder / file).read_text())
    settings["auto_map"] = settings.get("auto_map", {}) | {"AutoTokenizer": [None, "other/repo--mine.MyTokenizer"]}
    (folder / file).write_text(json.dumps(settings))
    trust(str(folder), str(folder), None, "policy.trust_remote_code")
    with pytest.raises(ModelError, match=rf"its {file} runs code of another repository \(other/repo--mine.MyTok"):
        load_causal_lm(PolicyConfig(pretrained=str(folder)))
    assert not (folder / "ran").exists()


def test_a_reward_with_code_is_refused_until_it_is_named(tmp_path):
    import torch

    folder = with_code(save_classifier(tmp_path / "reward"), "AutoModelForSequenceClassification")
    with pytest.raises(ModelError, match="ships code of its own"):
        ClassifierReward(str(folder), label="toxic").load(torch.device("cpu"))
    assert not (folder / "ran").exists()
    reward = ClassifierReward(str(folder), label="toxic", trust_remote_code=str(folder))
    reward.load(torch.device("cpu"))
    assert reward.identity()["trust_remote_code"] == str(folder)


def test_trust_is_of_one_name_and_one_commit(tmp_path):
    trust(None, "owner/model", None, "key")
    with pytest.raises(UserError, match=r"key: got 'owner/other', expected .*'owner/model', or none"):
        trust("owner/other", "owner/model", COMMIT, "key")
    for revision in (None, "main", "v1.0", COMMIT[:7]):
        with pytest.raises(UserError, match="pin the revision to the commit that you read"):
            trust("owner/model", "owner/model", revision, "key")
    assert not may_run_code("owner/model", COMMIT)
    trust("owner/model", "owner/model", COMMIT, "key")
    assert may_run_code("owner/model", COMMIT)
    assert not may_run_code("owner/model", None)
    assert not may_run_code("owner/other", COMMIT)


def test_revisions_in_names(tmp_path):
    assert split_revision(f"owner/model@{COMMIT}") == ("owner/model", COMMIT)
    odd = tmp_path / "a@b"
    odd.mkdir()
    assert split_revision(str(odd)) == (str(odd), None)
    assert split_revision("owner/model@") == ("owner/model@", None)
