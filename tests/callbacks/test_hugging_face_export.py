"""Driven through the real command line, where a monitored checkpoint and the export meet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import train
from callbacks.hugging_face_export import HuggingFaceExport
from lightning_rarlhf.export.__main__ import main as export
from lightning_rarlhf.records.provenance import read_training
from tests.damage import flip_a_bit_of_a_weight
from tests.test_configs import rewards, short_schedule, small, world

__all__ = ["world"]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def fit(world, folder, *more):
    arguments = small(world, "jigsaw.yaml", folder) + rewards(world, "jigsaw.yaml") + short_schedule("jigsaw.yaml")
    train.main(["fit", *arguments, "--model.optimizer.lr", "0.01", "--trainer.max_steps", "4", *more])


def weights_of(folder) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def weights_in(checkpoint) -> torch.Tensor:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return state["actor.lm.transformer.wte.weight"].flatten()


def test_final_and_best_weights_are_exported_each_to_its_folder(world, tmp_path, monkeypatch):
    read, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda path, **settings: (read.append(Path(path)), load(path, **settings))[1])
    fit(world, tmp_path, "--trainer.val_check_interval", "1")
    (best,) = (tmp_path / "checkpoints").glob("best-*.ckpt")
    assert read.count(best) == 1
    for folder, checkpoint in (("huggingface", "last.ckpt"), ("huggingface-best", best.name)):
        embeddings = AutoModelForCausalLM.from_pretrained(tmp_path / folder).get_input_embeddings().weight
        assert torch.equal(embeddings.flatten(), weights_in(tmp_path / "checkpoints" / checkpoint)), folder
        again = tmp_path / f"{folder}-again"
        assert export([str(tmp_path / "checkpoints" / checkpoint), str(again)]) == 0
        held = torch.load(tmp_path / "checkpoints" / checkpoint, weights_only=True)
        chosen = {"chosen": "best"} if folder == "huggingface-best" else {}
        assert held["training"]["steps"] == held["global_step"]
        assert read_training(str(again)) == read_training(str(tmp_path / folder)) == held["training"] | chosen
    arguments = small(world, "jigsaw.yaml", tmp_path) + rewards(world, "jigsaw.yaml")
    for asked, chosen in (("best", {"chosen": "best"}), ("last", {})):
        train.main(["test", *arguments, "--ckpt_path", asked])
        recorded = json.loads((tmp_path / "results.json").read_text())["training"]
        assert recorded == read_training(str(tmp_path / "huggingface")) | {"steps": recorded["steps"]} | chosen


def test_a_best_checkpoint_that_was_damaged_is_not_exported(world, tmp_path, monkeypatch, capsys):
    write = HuggingFaceExport._export

    def damaging(*arguments):
        write(*arguments)
        (best,) = (tmp_path / "checkpoints").glob("best-*.ckpt")
        flip_a_bit_of_a_weight(best)

    monkeypatch.setattr(HuggingFaceExport, "_export", damaging)
    with pytest.raises(SystemExit) as ended:
        fit(world, tmp_path, "--trainer.val_check_interval", "1")
    assert ended.value.code == 2
    assert "best-step=" in (line := capsys.readouterr().err.strip().splitlines()[-1])
    assert "wrong checksum" in line
    assert (tmp_path / "huggingface").is_dir()
    assert not (tmp_path / "huggingface-best").exists()


def test_the_final_state_is_validated_whatever_the_interval(world, tmp_path):
    fit(world, tmp_path, "--trainer.val_check_interval", "3", "--checkpoint.save_top_k", "9")
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("best-*")) == [
        "best-step=3.ckpt",
        "best-step=4.ckpt",
    ]


def test_without_validation_there_is_no_best(world, tmp_path):
    fit(world, tmp_path, "--data.val_size", "0")
    assert (tmp_path / "huggingface").is_dir()
    assert not (tmp_path / "huggingface-best").exists()


def test_the_folder_is_the_users_choice(world, tmp_path):
    callbacks = '[{"class_path": "HuggingFaceExport", "init_args": {"dirpath": "%s"}}]' % (tmp_path / "mine")
    fit_arguments = small(world, "jigsaw.yaml", tmp_path) + rewards(world, "jigsaw.yaml")
    train.main(["fit", *fit_arguments, "--trainer.callbacks", callbacks, "--trainer.max_steps", "1"])
    assert weights_of(tmp_path / "mine").numel() > 0
    assert not (tmp_path / "huggingface").exists()


def test_a_run_is_not_replaced_by_its_own_export(world, tmp_path, capsys):
    """A model takes the place of a whole folder: of the run's own, all checkpoints would go with it."""
    fit(world, tmp_path)
    kept = sorted(tmp_path.rglob("*"))
    assert export([str(tmp_path / "checkpoints" / "last.ckpt"), str(tmp_path)]) == 2
    assert "holds checkpoints and is no saved model's" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == kept


def test_a_folder_of_other_things_is_refused_before_the_first_iteration(world, tmp_path, capsys):
    (tmp_path / "models" / "gpt2").mkdir(parents=True)
    callbacks = '[{"class_path": "HuggingFaceExport", "init_args": {"dirpath": "%s"}}]' % (tmp_path / "models")
    fit_arguments = small(world, "jigsaw.yaml", tmp_path) + rewards(world, "jigsaw.yaml")
    with pytest.raises(SystemExit) as ended:
        train.main(["fit", *fit_arguments, "--trainer.callbacks", callbacks, "--trainer.max_steps", "1"])
    assert ended.value.code == 2
    assert "models: holds gpt2 and is no saved model's" in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()


def test_the_policy_that_a_run_starts_from_is_not_replaced_by_what_it_becomes(world, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    fit(world, first)
    start, checkpoint = first / "huggingface", first / "checkpoints" / "last.ckpt"
    before = weights_of(start)
    callbacks = json.dumps([{"class_path": "HuggingFaceExport", "init_args": {"dirpath": str(start)}}])
    arguments = small(world, "jigsaw.yaml", second) + rewards(world, "jigsaw.yaml")
    with pytest.raises(SystemExit) as ended:
        train.main(["fit", *arguments, "--model.policy.pretrained", str(start), "--trainer.callbacks", callbacks])
    assert ended.value.code == 2
    sentence = "huggingface: the run starts from the model there, which its own would replace; name another"
    assert sentence in capsys.readouterr().err
    begun = torch.load(checkpoint, weights_only=True)["policy"]["pretrained"]
    assert export([str(checkpoint), begun]) == 2
    assert "the run starts from the model there" in capsys.readouterr().err
    assert torch.equal(weights_of(start), before)


def test_a_fit_that_took_no_step_exports_nothing(world, tmp_path, caplog):
    fit(world, tmp_path, "--trainer.max_time", "00:00:00:00")
    assert not (tmp_path / "huggingface").exists()
    assert "exported nothing: no step was taken" in caplog.text
