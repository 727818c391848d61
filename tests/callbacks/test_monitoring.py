"""What watches a fit, by bare name in YAML, through the real command line, on tiny local models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

import train
from callbacks import PromptPerplexity
from lightning_rarlhf.base_modules.language_module import LanguageModule
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.ppo_module import RiskAversePPOModule
from lightning_rarlhf.quickstart.tiny_policy import write_tiny_policy
from tests.callbacks.scripted import fit

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A policy that knows the words of the prompts."""
    return write_tiny_policy(tmp_path_factory.mktemp("policy"), layers=1, width=16, heads=2)


@pytest.fixture
def run(policy, tmp_path):
    """Fit with an overlay over a small configuration; gives the run's folder."""

    def fit_with(overlay: dict, *more: str) -> Path:
        base = {
            "model": {
                "class_path": "RiskAversePPOModule",
                "init_args": {
                    "policy": {"pretrained": str(policy)},
                    "reward": {
                        "class_path": "CallableReward",
                        "init_args": {"function": "lightning_rarlhf.quickstart.grammar.sentiment"},
                    },
                    "sampling": {"max_new_tokens": 4},
                    "ppo": {"epochs": 1, "minibatch_size": 8},
                },
            },
            "data": {
                "class_path": "SyntheticDataModule",
                "init_args": {"prompt_tokens": 4, "val_size": 20, "batch_size": 8, "progress": False},
            },
            "trainer": {
                "default_root_dir": str(tmp_path / "run"),
                "max_steps": 6,
                "val_check_interval": 1,
                "check_val_every_n_epoch": None,
                "accelerator": "cpu",
                "enable_progress_bar": False,
                "enable_model_summary": False,
            },
        }
        files = []
        for name, content in (("base.yaml", base), ("overlay.yaml", overlay)):
            (tmp_path / name).write_text(yaml.safe_dump(content))
            files += ["--config", str(tmp_path / name)]
        train.main(["fit", *files, *more])
        return tmp_path / "run"

    return fit_with


def last_step(folder: Path) -> int:
    return int(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"])


def early_stopping(**settings) -> dict:
    return {"class_path": "EarlyStopping", "init_args": {"monitor": "val/cvar_10", "mode": "max", **settings}}


STILL = ("--model.optimizer.lr", "0")
"""nothing is learned: equal prompts and equal random numbers give equal validations"""


def test_lightnings_early_stopping_ends_a_fit_that_does_not_get_better(run, capsys):
    folder = run({"trainer": {"callbacks": [early_stopping(patience=2)]}}, *STILL)
    assert last_step(folder) == 3  # the first validation is the best, and two do not beat it


def test_early_stopping_lets_a_fit_with_patience_end_by_itself(run):
    folder = run({"trainer": {"callbacks": [early_stopping(patience=20)]}}, *STILL)
    assert last_step(folder) == 6


def test_early_stopping_goes_on_counting_after_a_resume(run):
    overlay = {"trainer": {"callbacks": [early_stopping(patience=4)]}}
    run(overlay, *STILL, "--trainer.max_steps", "3")
    folder = run(overlay, *STILL, "--ckpt_path", "last")
    assert last_step(folder) == 5


def test_early_stopping_of_sft_on_the_loss(run):
    overlay = {
        "model": {"class_path": "SFTModule", "init_args": {"linear_decay": False}},
        "data": {"init_args": {"purpose": "sft"}},
        "trainer": {"callbacks": [early_stopping(monitor="val/loss", mode="min", patience=1)]},
    }
    base = run(overlay, *STILL)
    assert last_step(base) == 2


def test_the_guard_and_its_perplexity(run, caplog):
    caplog.set_level("INFO")
    folder = run(
        {
            "trainer": {"callbacks": [{"class_path": "PromptPerplexity"}]},
            "checkpoint": {
                "monitor": "val/cvar_10",
                "guard": "val/perplexity",
                "max_rise": 0.0,
                "every_n_iterations": 2,
            },
        },
        "--model.optimizer.lr",
        "0.01",
    )
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    (guarded,) = (state for name, state in state["callbacks"].items() if name.startswith("RunCheckpoint"))
    assert guarded["guard_start"] > 1
    assert f"val/perplexity starts at {guarded['guard_start']:.4g}" in caplog.text
    kept = [path.name for path in (folder / "checkpoints").glob("best-*")]
    refused = [line for line in caplog.text.splitlines() if "not a candidate" in line]
    assert len(refused) == guarded["refused"]
    assert bool(kept) == (guarded["refused"] < 6)


def test_validation_logs_hard_prompts_and_toxicity_where_they_are_set_up(run, monkeypatch):
    """The figures that `test` gives of the same responses: one a prompt, drawn with equal random numbers."""
    from lightning_rarlhf.quickstart.grammar import sentiment

    logged: list[dict[str, float]] = []
    monkeypatch.setattr(
        "callbacks.drift_alarm.DriftAlarm.on_validation_end",
        lambda self, trainer, module: logged.append({k: float(v) for k, v in trainer.callback_metrics.items()}),
    )
    judge = {"class_path": "CallableReward", "init_args": {"function": "tests.callbacks.test_monitoring.opposite"}}
    evaluation = {"tail_thresholds": [-0.25, -1e9], "toxicity_of": "opposite", "judges": {"opposite": judge}}
    alarm = {"class_path": "DriftAlarm", "init_args": {"judge": "val/judge/opposite/score_mean"}}
    overlay = {"model": {"init_args": {"evaluation": evaluation}}, "trainer": {"callbacks": [alarm]}}
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(LanguageModule, "score", watching(LanguageModule.score, seen))
    run(overlay, *STILL, "--trainer.max_steps", "1", "--trainer.val_check_interval", "1")
    (figures,) = logged
    prompts, responses = zip(*seen[-20:], strict=True)
    scores, alone = torch.tensor(sentiment(prompts, responses)), torch.tensor(sentiment(prompts, [""] * 20))
    assert 0 < (alone <= -0.25).sum() < 20
    assert figures["val/score_tail_le_-0.25"] == pytest.approx(scores[alone <= -0.25].mean().item(), rel=1e-5)
    assert "val/score_tail_le_-1e+09" not in figures  # no prompt scores so low
    assert figures["val/toxicity_probability"] == pytest.approx((scores >= 0).float().mean().item())
    assert figures["val/expected_max_toxicity"] == pytest.approx(scores.float().sigmoid().mean().item(), rel=1e-5)


def opposite(prompts, responses):
    """A judge of its own taste: what the reward likes is toxic to it."""
    from lightning_rarlhf.quickstart.grammar import sentiment

    return [-value for value in sentiment(prompts, responses)]


def watching(score, seen):
    def watched(self, samples):
        seen.extend(zip(samples.batch.prompts, samples.responses, strict=True))
        return score(self, samples)

    return watched


def test_perplexity_is_that_of_the_wanted_prompts(run, monkeypatch):
    """Against Hugging Face's own loss, text by text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lightning_rarlhf.base_modules.language_module import LanguageModule

    seen: list[tuple[str, int]] = []
    values: list[float] = []
    original = LanguageModule.validation_step

    def watched(self, batch, batch_idx):
        seen.extend(zip(batch.prompts, batch.labels.tolist(), strict=True))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModule, "validation_step", watched)
    monkeypatch.setattr(
        "callbacks.drift_alarm.DriftAlarm.on_validation_end",
        lambda self, trainer, module: values.append(float(trainer.callback_metrics["val/perplexity"])),
    )
    alarm = {"class_path": "DriftAlarm", "init_args": {"judge": "val/perplexity"}}
    folder = run(
        {"trainer": {"callbacks": [{"class_path": "PromptPerplexity"}, alarm]}}, *STILL, "--trainer.max_steps", "1"
    )
    source = yaml.safe_load(next(folder.rglob("config.yaml")).read_text())["model"]["init_args"]["policy"]["pretrained"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    expected = []
    for text, label in seen:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        if label != 0:
            expected.append(torch.exp(model(ids, labels=ids).loss).item())
    assert 0 < len(expected) < len(seen)
    assert values == [pytest.approx(sum(expected) / len(expected), rel=1e-4)]


def test_the_alarm_by_bare_name(run, tmp_path):
    """The length of the responses stands in for a judge."""
    alarm = {"class_path": "DriftAlarm", "init_args": {"judge": "val/response_length_mean", "window": 3}}
    folder = run({"trainer": {"callbacks": [alarm]}}, "--trainer.max_steps", "3")
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    (history,) = (s["history"] for name, s in state["callbacks"].items() if name.startswith("DriftAlarm"))
    assert [entry[0] for entry in history] == [1, 2, 3]


def test_the_documented_configuration_runs(run, tmp_path):
    """The YAML of docs/monitoring.md, with a judge that is there."""
    from tests.tiny_models import save_classifier

    text = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text().split("```yaml\n")[1].split("```")[0]
    judge = save_classifier(tmp_path / "judge", labels=("rude", "polite"), seed=3)
    overlay = yaml.safe_load(text.replace("FOLDER_OR_HUB_ID", str(judge)).replace("LABEL", "polite"))
    overlay["trainer"]["val_check_interval"] = 1
    folder = run(overlay, "--trainer.max_steps", "3", "--model.optimizer.lr", "0.05")
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    (history,) = (s["history"] for name, s in state["callbacks"].items() if name.startswith("DriftAlarm"))
    assert len(history) == 3
    assert len({judged for _, _, judged in history}) > 1


def test_callbacks_can_be_appended_on_the_command_line(run):
    more = ("--trainer.callbacks+=DriftAlarm", "--trainer.callbacks.judge=val/score_std", "--trainer.max_steps", "1")
    folder = run({"trainer": {"callbacks": [{"class_path": "PromptPerplexity"}]}}, *more)
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert any(name.startswith("DriftAlarm") for name in state["callbacks"])


def test_a_mistake_in_a_name_is_one_line(run, capsys):
    with pytest.raises(SystemExit) as end:
        run({"checkpoint": {"monitor": "val/cvar_11"}})
    assert end.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        "error: checkpoint: validation does not log 'val/cvar_11'; expected one of its metrics: val/"
    )


@pytest.mark.parametrize("who", ["DriftAlarm", "checkpoint"])
def test_a_judge_that_is_not_there_is_told_before_the_first_iteration(run, capsys, monkeypatch, who):
    name, trained = "val/judge/kind/score_mean", []
    monkeypatch.setattr(RiskAversePPOModule, "training_step", lambda *args: trained.append(args))
    alarm = {"trainer": {"callbacks": [{"class_path": "DriftAlarm", "init_args": {"judge": name}}]}}
    with pytest.raises(SystemExit) as end:
        run(alarm if who == "DriftAlarm" else {"checkpoint": {"monitor": name}})
    assert end.value.code == 2
    assert not trained
    expected = f"error: {who}: '{name}' is of no judge; judges: none; add it to model.evaluation.judges"
    assert capsys.readouterr().err.splitlines()[-1] == expected


def test_perplexity_of_sft_is_its_own_loss(run, capsys):
    overlay = {
        "model": {"class_path": "SFTModule"},
        "data": {"init_args": {"purpose": "sft"}},
        "trainer": {"callbacks": [{"class_path": "PromptPerplexity"}]},
    }
    with pytest.raises(SystemExit):
        run(overlay)
    assert "PromptPerplexity: the data's purpose is sft, which logs val/loss" in capsys.readouterr().err


def test_a_text_that_the_policy_rules_out_counts(tmp_path, monkeypatch):
    """An infinite perplexity must reach the guard; a prompt without a token has none."""
    from types import SimpleNamespace

    from lightning_rarlhf.base_modules.language_module import LanguageModule
    from lightning_rarlhf.data_types import PromptBatch

    logged = {}
    module = LanguageModule.__new__(LanguageModule)
    torch.nn.Module.__init__(module)
    module.actor = torch.nn.Identity()
    monkeypatch.setattr(LanguageModule, "device", torch.device("cpu"))
    monkeypatch.setattr(LanguageModule, "log", lambda self, name, value, **options: logged.update({name: value.item()}))
    perplexity = {"a": 2.0, "b": 4.0, "": float("nan"), "c": float("inf"), "unwanted": 100.0}
    monkeypatch.setattr(
        LanguageModule, "perplexities", lambda self, texts: torch.tensor([perplexity[text] for text in texts])
    )

    def measured(*texts: str) -> float:
        batch = PromptBatch(
            input_ids=torch.ones(len(texts), 1, dtype=torch.int64),
            attention_mask=torch.ones(len(texts), 1, dtype=torch.bool),
            index=torch.arange(len(texts)),
            prompts=texts,
            labels=torch.tensor([0 if text == "unwanted" else -1 for text in texts]),
            source_scores=torch.full((len(texts),), torch.nan),
        )
        callback, trainer = PromptPerplexity(), SimpleNamespace()
        callback.on_validation_epoch_start(trainer, module)
        callback.on_validation_batch_end(trainer, module, None, batch, 0)
        callback.on_validation_epoch_end(trainer, module)
        return logged["val/perplexity"]

    assert measured("a", "b", "", "unwanted") == 3.0
    assert measured("a", "c") == float("inf")
    assert measured("unwanted") != measured("unwanted")  # NaN: no prompt of the wanted class


def test_perplexity_of_what_is_no_language_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="ScriptedModule is no LanguageModule"):
        fit({step: {"a": 1.0} for step in range(7)}, [PromptPerplexity()], tmp_path)
