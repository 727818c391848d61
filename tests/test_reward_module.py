"""Reward models from human labels, through the real command line, to a folder that a run uses as its reward."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import train
from lightning_rarlhf.config import BackboneConfig
from lightning_rarlhf.errors import ModelError, UserError, WriteError
from lightning_rarlhf.functional.preferences import bradley_terry_nll
from lightning_rarlhf.reward_models import ClassifierReward
from lightning_rarlhf.reward_module import RewardModule
from lightning_rarlhf.rewards.classifier import load_classifier
from lightning_rarlhf.trainer.strategies import FSDP2Strategy
from tests.datamodules.data_files import jigsaw_rows, write_csv, write_jsonl, write_parquet
from tests.file_limit import file_limit
from tests.test_configs import QUIET, ROOT
from tests.tiny_models import causal_lm, save_classifier, save_policy, save_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

FILLER = ("film", "food", "the", "a", "very", "and", "not", "warm", "cold")
FIT = ["--model.optimizer.lr", "2e-2", "--data.batch_size", "16", "--trainer.max_epochs", "12", *QUIET]


def texts(count: int) -> list[dict]:
    """`toxic` is whether it says rude, `kind` whether it says kind; some are unlabelled."""
    rows = []
    for n in range(count):
        filler = [FILLER[(n * k + k) % len(FILLER)] for k in (1, 2)]
        words = ["kind" if n % 3 == 0 else "good", *filler, "rude" if n % 2 else "was"]
        rows.append({"text": " ".join(words), "toxic": n % 2, "kind": int(n % 3 == 0) if n % 7 else -1})
    return rows


def pairs(count: int) -> list[dict]:
    return [
        {
            "prompt": f"the {FILLER[n % len(FILLER)]} was",
            "chosen": f" kind {FILLER[(n * 3) % len(FILLER)]}",
            "rejected": f" rude {FILLER[(n * 5) % len(FILLER)]}",
        }
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = save_classifier(tmp_path_factory.mktemp("backbone"), labels=("LABEL_0", "LABEL_1", "LABEL_2"))
    config = json.loads((folder / "config.json").read_text())  # so small a network learns little under dropout
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def common(backbone, folder):
    names = ["--model.backbone.pretrained", str(backbone), "--trainer.default_root_dir", str(folder)]
    return [*names, "--data.text_tokens", "32"]


def test_labels_become_a_classifier_that_a_run_takes_as_its_reward(backbone, tmp_path, capsys, caplog):
    data = write_csv(tmp_path / "labelled.csv", texts(240))
    labels = ["--data.label_columns", "[toxic, kind]"]
    config = ["--config", str(ROOT / "configs" / "reward" / "labels.yaml"), "--data.path", str(data), *labels]
    train.main(["fit", *config, *common(backbone, tmp_path / "run"), *FIT])
    exported = tmp_path / "run" / "huggingface"
    train.main(["test", *config, *common(exported, tmp_path / "run"), *QUIET])
    results = json.loads((tmp_path / "run" / "reward_results.json").read_text())
    assert results["labels"] == ["toxic", "kind"]
    assert results["metrics"]["toxic/auroc"]["estimate"] > 0.95
    assert results["metrics"]["kind/auroc"]["estimate"] > 0.8
    assert results["metrics"]["kind/auroc"]["n"] < results["metrics"]["toxic/auroc"]["n"]  # unknown ones are left out
    assert (tmp_path / "run" / "reliability.png").stat().st_size > 5000
    assert "toxic/auroc: " in capsys.readouterr().out
    options = "--model.reward.label ONE OF toxic, kind --model.reward.sign 1; sign -1 if"
    assert f"--model.reward.pretrained {exported} {options}" in caplog.text
    for split in ("train", "test"):
        write_csv(tmp_path / f"{split}.csv", jigsaw_rows(20, 20, start=1000))
    save_policy(tmp_path / "policy")
    train.main(
        [
            *("test", "--config", str(ROOT / "configs" / "jigsaw.yaml"), "--data.path", str(tmp_path), *QUIET),
            *("--model.policy.pretrained", str(tmp_path / "policy"), "--model.reward.pretrained", str(exported)),
            *("--data.val_size", "0", "--trainer.default_root_dir", str(tmp_path / "used")),
        ]
    )
    used = [json.loads(line) for line in (tmp_path / "used" / "generations.jsonl").read_text().splitlines()]
    reward = ClassifierReward(str(exported), label="toxic", sign=-1)
    reward.load(torch.device("cpu"))
    expected = reward([row["prompt"] for row in used], [row["response"] for row in used])
    assert [row["score"] for row in used] == pytest.approx(expected.tolist(), abs=1e-4)
    rude, polite = reward(["good film the"] * 2, [" rude", " was"]).tolist()
    assert rude < polite - 1


def test_preferences_become_a_score(backbone, tmp_path, caplog):
    data = write_jsonl(tmp_path / "pairs.jsonl", pairs(160))
    config = ["--config", str(ROOT / "configs" / "reward" / "preferences.yaml"), "--data.path", str(data)]
    config += ["--data.prompt_column", "prompt"]
    train.main(["fit", *config, *common(backbone, tmp_path / "run"), *FIT])
    options = f"{tmp_path / 'run' / 'huggingface'} --model.reward.label preference --model.reward.sign 1\n"
    assert f"--model.reward.pretrained {options}" in caplog.text
    train.main(["test", *config, *common(tmp_path / "run" / "huggingface", tmp_path / "run"), *QUIET])
    metrics = json.loads((tmp_path / "run" / "reward_results.json").read_text())["metrics"]
    assert metrics["pairs/accuracy"]["estimate"] > 0.95
    reward = ClassifierReward(str(tmp_path / "run" / "huggingface"))  # one label, so it needs no name
    reward.load(torch.device("cpu"))
    good, bad = reward(["the film was"] * 2, [" kind", " rude"]).tolist()
    assert good > bad + 1


def test_a_language_model_can_be_the_backbone_and_the_loss_is_bradley_terrys(tmp_path):
    """GPT-2's head reads the last token of a right-padded text: the margin is that of the two texts by themselves."""
    from datamodules import PreferenceDataModule
    from lightning_rarlhf.config import BackboneConfig
    from lightning_rarlhf.reward_module import RewardModule
    from lightning_rarlhf.rewards.classifier import load_classifier, load_classifier_tokenizer

    causal_lm("gpt2").save_pretrained(tmp_path / "lm")
    save_tokenizer(tmp_path / "lm")
    unlike = [{**pair, "rejected": pair["rejected"] + " and very very bad"} for pair in pairs(40)]
    data = PreferenceDataModule(
        tokenizer=str(tmp_path / "lm"), path=str(write_parquet(tmp_path / "pairs.parquet", unlike)), batch_size=4
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert (batch.chosen_mask.sum(dim=1) < batch.rejected_mask.sum(dim=1)).all()  # two sides of unlike lengths
    module = RewardModule(BackboneConfig(pretrained=str(tmp_path / "lm")))
    tokenizer = load_classifier_tokenizer(str(tmp_path / "lm"))
    module.classifier, _ = load_classifier(module.backbone, ["preference"], tokenizer.pad_token_id)
    alone = []
    for ids, mask in ((batch.chosen_ids, batch.chosen_mask), (batch.rejected_ids, batch.rejected_mask)):
        alone.append(
            torch.cat([module(row[keep][None], keep[keep][None])[0] for row, keep in zip(ids, mask, strict=True)])
        )
    expected = bradley_terry_nll(*alone).mean()
    module.log = lambda *args, **kwargs: None
    module.trainer = SimpleNamespace(accumulate_grad_batches=1, num_training_batches=1, current_epoch=0, global_rank=0)
    torch.testing.assert_close(module.training_step(batch, 0), expected, atol=1e-5, rtol=1e-5)


def test_pairs_lose_their_beginning_and_those_equal_after_it_are_counted(backbone, tmp_path, caplog):
    from transformers import AutoTokenizer

    from datamodules import PreferenceDataModule
    from lightning_rarlhf.errors import DataError

    def data(rows, text_tokens=4):
        path = str(write_jsonl(tmp_path / "pairs.jsonl", rows))
        options = {"tokenizer": str(backbone), "prompt_column": "prompt", "text_tokens": text_tokens}
        return PreferenceDataModule(path=path, **options)

    long = {"prompt": "the film was very very very", "chosen": " kind and warm", "rejected": " rude"}
    alike = {"prompt": "the", "chosen": " good food was the very film", "rejected": " bad food was the very film"}
    same = long | {"rejected": long["chosen"]}
    module = data([long] * 20 + [alike] * 3 + [same] * 2)
    with caplog.at_level("INFO"):
        module.setup("fit")
    assert "(all): left out of 25 rows: 2 without two different texts, 3 equal in their last 4 tokens" in caplog.text
    assert sum(module.identity()["rows"].values()) == 20
    rows = module._rows["train"]
    batch = module.collate(rows, [0])
    decode = AutoTokenizer.from_pretrained(backbone).decode
    assert decode(batch.chosen_ids[0]) == "very kind and warm"
    assert decode(batch.rejected_ids[0]) == "very very very rude"
    with pytest.raises(
        DataError, match="the two texts of all 5 pairs are equal in their last 4 tokens; raise data.text_t"
    ):
        data([alike] * 5).setup("fit")
    data([alike] * 20, text_tokens=8).setup("fit")


def test_a_single_pair_to_test_on_is_refused(backbone, tmp_path):
    """In a line, before any weights: nothing can be said of how sure the figures are."""
    from datamodules import PreferenceDataModule
    from lightning_rarlhf.errors import DataError

    path, names = str(write_jsonl(tmp_path / "pairs.jsonl", pairs(20))), {"tokenizer": str(backbone)}
    single = PreferenceDataModule(path=path, test_size=1, **names)
    single.setup("fit")
    with pytest.raises(DataError, match=r"pairs\.jsonl \(test\): got 1 pair, expected 2 or more.*data\.test_size"):
        single.setup("test")
    PreferenceDataModule(path=path, test_size=2, **names).setup("test")


def module_on(folder, labels, stage, text_tokens=32):
    """A module that was built for data with these labels."""
    from types import SimpleNamespace

    from lightning_rarlhf.config import BackboneConfig
    from lightning_rarlhf.reward_module import RewardModule

    module = RewardModule(BackboneConfig(pretrained=str(folder)))
    data = SimpleNamespace(label_names=labels, text_tokens=text_tokens)
    module._trainer = SimpleNamespace(datamodule=data, state=SimpleNamespace(fn=stage), ckpt_path=None, strategy=None)
    module.configure_model()
    return module


@pytest.mark.parametrize("stage", ["test", "validate", "fit"])
def test_the_models_own_order_of_labels_holds(tmp_path, stage):
    from lightning_rarlhf.data_types import LabelledBatch

    folder = save_classifier(tmp_path, labels=("toxic", "insult"))
    ids = torch.tensor([[3, 4], [5, 6]])
    said = torch.tensor([[1.0, 0.0], [1.0, torch.nan]])  # toxic, insult
    found = []
    for labels, columns in ((["toxic", "insult"], [0, 1]), (["insult", "toxic"], [1, 0])):
        module = module_on(folder, labels, stage)
        batch = LabelledBatch(input_ids=ids, attention_mask=ids > 0, labels=said[:, columns])
        loss, count, logits = module._outcome(batch)
        assert count == 3
        module._rows = []
        module._collect(batch, logits)
        assert module.label_names == ["toxic", "insult"]
        assert module.classifier.config.id2label == {0: "toxic", 1: "insult"}
        found.append((loss.item(), module._collected()))
    assert found[0][0] == found[1][0]
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(other), equal_nan=True)
    checkpoint = {}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["label_names"] == ["toxic", "insult"]
    with pytest.raises(UserError, match="the checkpoint has the labels kind, toxic, the data toxic, insult"):
        module.on_load_checkpoint(checkpoint | {"label_names": ["kind", "toxic"]})
    module.on_load_checkpoint(checkpoint | {"label_names": ["insult", "toxic"]})
    assert module._columns == [0, 1]
    assert module.classifier.config.id2label[0] == "insult"


def test_only_a_head_of_these_labels_is_measured_and_a_fit_says_what_becomes_of_one(tmp_path):
    from lightning_rarlhf.config import BackboneConfig
    from lightning_rarlhf.rewards.classifier import load_classifier

    causal_lm("gpt2").save_pretrained(tmp_path / "lm")
    two, lm = save_classifier(tmp_path / "two"), tmp_path / "lm"
    one = save_classifier(tmp_path / "one", labels=("score",))
    cases = [
        (
            two,
            ["toxic", "kind"],
            "has a head for toxic, insult, and the data toxic, kind",
            "kept under other names: in",
        ),
        (two, ["toxic"], "has a head for toxic, insult, and the data toxic;", "new head for toxic"),
        (lm, ["LABEL_0", "LABEL_1"], "has no trained classification head", "new head for LABEL_0, LABEL_1"),
        (two, ["insult", "toxic"], None, "head kept, labels in its order: toxic, insult"),
        (two, ["toxic", "insult"], None, None),
    ]
    for folder, labels, refused, expected in cases:
        backbone = BackboneConfig(pretrained=str(folder))
        _, fate = load_classifier(backbone, labels, 2)
        assert fate is None if expected is None else expected in fate
        if refused is None:
            load_classifier(backbone, labels, 2, trained=True)
            continue
        with pytest.raises(ModelError) as error:
            load_classifier(backbone, labels, 2, trained=True)
        assert refused in str(error.value)
        assert "\n" not in str(error.value)
    load_classifier(BackboneConfig(pretrained=str(one)), ["preference"], 2, trained=True)


def test_texts_longer_than_the_backbone_reads_are_refused(tmp_path):
    """RoBERTa counts positions from its pad token's number + 1 on, so it reads fewer than it has."""
    from transformers import AutoModelForSequenceClassification, RobertaConfig

    config = RobertaConfig(
        vocab_size=17,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=20,
        pad_token_id=1,
        num_labels=1,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    module = module_on(tmp_path, ["LABEL_0"], "fit", text_tokens=18)
    longest = torch.full((1, 18), 5)
    assert module(longest, longest > 0).shape == (1, 1)
    with pytest.raises((IndexError, RuntimeError)):
        module(torch.full((1, 19), 5), torch.ones(1, 19, dtype=torch.bool))
    with pytest.raises(UserError, match=r"data.text_tokens=19: .* reads 18 tokens at most; set it to 18 or fewer"):
        module_on(tmp_path, ["LABEL_0"], "fit", text_tokens=19)


def test_figures_are_of_all_processes_rows_and_process_0_alone_writes(tmp_path, monkeypatch):
    """Another process's rows come in at each batch; a label of one class gets no AUC, in validation or in test."""
    from types import SimpleNamespace

    from lightning_rarlhf import reward_module
    from lightning_rarlhf.data_types import LabelledBatch

    rows = torch.zeros(3, 1, dtype=torch.int64)
    labels = torch.tensor([[1.0, 1.0], [1.0, torch.nan], [1.0, 1.0]])
    batch = LabelledBatch(input_ids=rows, attention_mask=rows.bool(), labels=labels)
    other = ([-9.0, 1.0], [0.0, 1.0])
    monkeypatch.setattr(reward_module, "gather_items", lambda items: [items[0], other, *items[1:]])
    module = reward_module.RewardModule()
    module.label_names = ["toxic", "kind"]
    module._outcome = lambda batch: (
        torch.tensor(2.5),
        torch.tensor(5),
        torch.tensor([[2.0, 1.0], [-1.0, 0.0], [3.0, 2.0]]),
    )
    logged = {}
    module.log_dict = lambda figures, **kwargs: logged.update(figures)
    module.on_validation_epoch_start()
    module.validation_step(batch, 0)
    module.on_validation_epoch_end()
    assert logged == {"val/loss": torch.tensor(0.5), "val/toxic/auroc": 1.0, "val/auroc": 1.0}
    for first in (False, True):
        module._trainer = SimpleNamespace(
            is_global_zero=first, default_root_dir=str(tmp_path), ckpt_path=None, datamodule=None
        )
        module.on_test_epoch_start()
        module.test_step(batch, 0)
        module.on_test_epoch_end()
        assert (tmp_path / "reward_results.json").exists() == first
    metrics = json.loads((tmp_path / "reward_results.json").read_text())["metrics"]
    assert metrics["toxic/auroc"]["n"] == 4
    assert metrics["toxic/calibration_error"].keys() == {"estimate", "null_low", "null_high", "n"}
    assert metrics["kind/accuracy"]["n"] == 3
    assert "kind/auroc" not in metrics


@pytest.mark.parametrize("size", [100, 5000])
def test_a_full_disk_at_the_end_is_said_in_a_line_and_leaves_the_former_folder(backbone, tmp_path, size):
    """The configuration meets the limit, or the weights do, which the library says in an error of its own."""
    from lightning_rarlhf.records.reward_report import write_reward_report
    from lightning_rarlhf.rewards.classifier import load_classifier_tokenizer

    module, folder = RewardModule(), tmp_path / "huggingface"
    module.tokenizer = load_classifier_tokenizer(str(backbone))
    module.classifier, _ = load_classifier(BackboneConfig(pretrained=str(backbone)), ["toxic"], 2)
    assert (backbone / "config.json").stat().st_size < 5000 < (backbone / "model.safetensors").stat().st_size
    module._trainer = SimpleNamespace(
        is_global_zero=True, interrupted=False, default_root_dir=str(tmp_path), global_step=1
    )
    folder.mkdir()
    (folder / "config.json").write_text("a former export")
    (tmp_path / "reliability.png").write_bytes(b"a former picture")
    with file_limit(size):
        with pytest.raises(
            WriteError, match=r"huggingface: it could not be written \(.*File too large.*\); nothing was"
        ):
            module.on_fit_end()
        curves = {"toxic": (np.array([-1.0, 1.0]), np.array([0.0, 1.0]))}
        with pytest.raises(WriteError, match=r"reward_results\.json: it could not be written \(File too large\)"):
            write_reward_report(tmp_path, {}, curves, {"module": "RewardModule" * 20})
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "huggingface", "reliability.png"]
    assert (folder / "config.json").read_text() == "a former export"
    assert (tmp_path / "reliability.png").read_bytes() == b"a former picture"


def test_a_fit_resumes(backbone, tmp_path):
    data = write_csv(tmp_path / "labelled.csv", texts(120))
    config = ["--config", str(ROOT / "configs" / "reward" / "labels.yaml"), "--data.path", str(data)]
    config += ["--data.label_columns", "[toxic]", *common(backbone, tmp_path / "run"), *FIT]
    train.main(["fit", *config, "--trainer.max_steps", "2"])
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    train.main(["fit", *config, "--trainer.max_steps", "6", "--ckpt_path", "last"])
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6


def test_a_longer_resumed_run_goes_on_in_its_own_decay(backbone, tmp_path, monkeypatch):
    rates = []

    def note(module, batch, batch_idx):
        rates.append(module.optimizers().param_groups[0]["lr"])

    monkeypatch.setattr(RewardModule, "on_train_batch_start", note)
    data = write_csv(tmp_path / "labelled.csv", texts(120))
    config = ["--config", str(ROOT / "configs" / "reward" / "labels.yaml"), "--data.path", str(data)]
    config += ["--data.label_columns", "[toxic]", *common(backbone, tmp_path / "run"), *FIT]
    train.main(["fit", *config, "--trainer.max_steps", "3"])
    train.main(["fit", *config, "--trainer.max_steps", "6", "--ckpt_path", "last"])
    first = [2e-2 * (1 - step / 3) for step in range(3)]
    assert rates == pytest.approx(first + [2e-2 * (1 - step / 6) for step in range(3, 6)])


CASES = {
    "one label only": (
        [{"text": f"the film {n}", "label": 1} for n in range(60)],
        [],
        r"label 'label' has only yes in \d+ texts; AUC and loss need both yes and no",
    ),
    "no such column": (
        [{"text": "a", "label": 1}],
        ["--data.label_columns", "[toxic]"],
        r"no column 'toxic'.*; name yours: data.text_col",
    ),
    "no known label": (
        [{"text": f"the film {n}", "label": "bad"} for n in range(9)],
        [],
        r"no text with a known label in label; values found: bad; set data.positive_label",
    ),
    "no text": (
        [{"text": " ", "label": n % 2} for n in range(9)],
        [],
        r"no text in column 'text'; set data\.text_column",
    ),
    "pairs without a column": (
        [{"chosen": "a", "other": "b"}],
        ["--data", "PreferenceDataModule"],
        r"no column 'rejected'; columns found: chosen, other; name yours: .*data.rejected_column",
    ),
    "pairs that do not differ": (
        [{"chosen": "a", "rejected": "a"}],
        ["--data", "PreferenceDataModule"],
        r"no pair of two different texts in chosen and rejected",
    ),
    "weights in 16 bits": (
        [],
        ["--trainer.precision", "bf16-true"],
        r"precision=bf16-true: expected 32-true or bf16-mixed; weights that train are kept in float32",
    ),
    "no network there": ([], ["--model.backbone.pretrained", "{tmp}/nowhere"], r"nowhere: no such folder"),
    "prompts in place of labels": (
        [],
        ["--data", "TextFileDataModule", "--data.prompt_tokens", "4"],
        r"RewardModule learns from labelled texts or preferences; set --data",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_mistakes_are_one_line_and_exit_2(backbone, tmp_path, capsys, case):
    rows, arguments, expected = CASES[case]
    data = write_jsonl(tmp_path / "data.jsonl", rows or texts(60))
    if not rows:
        arguments = [*arguments, "--data.batch_size", "8"]
        arguments += ["--data.val_size", "8"] if "TextFileDataModule" in arguments else []
        if "TextFileDataModule" not in arguments:
            arguments += ["--data.label_columns", "[toxic]"]
    words = [word.format(tmp=tmp_path) for word in arguments]
    with pytest.raises(SystemExit) as end:
        train.main(
            [
                *("fit", "--config", str(ROOT / "configs" / "reward" / "labels.yaml")),
                *(*common(backbone, tmp_path / "run"), *QUIET, *words, "--data.path", str(data)),
            ]
        )
    assert end.value.code == 2
    message = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(message) == 1
    assert re.search(expected, message[0]), message[0]
    assert not (tmp_path / "run" / "huggingface").exists()


def test_a_fit_does_not_begin_where_its_export_would_remove_other_things(backbone, tmp_path, capsys):
    data = write_csv(tmp_path / "labelled.csv", texts(60))
    notes = tmp_path / "run" / "huggingface" / "notes" / "mine.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    config = ["--config", str(ROOT / "configs" / "reward" / "labels.yaml"), "--data.path", str(data)]
    with pytest.raises(SystemExit) as end:
        train.main(
            ["fit", *config, *common(backbone, tmp_path / "run"), *QUIET, "--data.label_columns", "[toxic]"],
        )
    assert end.value.code == 2
    assert "huggingface: holds notes and is no saved model's" in capsys.readouterr().err
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == [notes]


def test_a_fit_of_no_step_exports_no_random_head(backbone, tmp_path, capsys):
    data = write_csv(tmp_path / "labelled.csv", texts(60))
    config = ["--config", str(ROOT / "configs" / "reward" / "labels.yaml"), "--data.path", str(data)]
    arguments = ["fit", *config, *common(backbone, tmp_path / "run"), *QUIET, "--data.label_columns", "[toxic]"]
    train.main([*arguments, "--trainer.max_time", "00:00:00:00"])
    assert not (tmp_path / "run" / "huggingface").exists()
    with pytest.raises(SystemExit):
        train.main([*arguments, "--trainer.max_epochs", "0"])
    assert "error: trainer.max_epochs=0: fit would train nothing" in capsys.readouterr().err


def test_a_divided_network_is_refused():
    module = RewardModule()
    module.trainer = SimpleNamespace(strategy=FSDP2Strategy())
    with pytest.raises(UserError, match="not divided among processes; give --trainer.strategy ddp"):
        module.configure_model()


def broken(folder: Path, name: str, tensor: torch.Tensor | None) -> str:
    """Its path, once the weight called `name` is another, or is there no longer."""
    weights = load_file(folder / "model.safetensors")
    weights.pop(name)
    save_file(weights | ({} if tensor is None else {name: tensor}), folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("tensor", [None, torch.zeros(3, 3)], ids=["missing", "of another size"])
def test_weights_below_the_head_must_be_there(tmp_path, tensor, trained):
    query = "bert.encoder.layer.0.attention.self.query.weight"
    config = BackboneConfig(pretrained=broken(save_classifier(tmp_path / "network"), query, tensor))
    with pytest.raises(ModelError, match=f"network: lacks 1 of its network's weights, .* {query} first; give a"):
        load_classifier(config, ["toxic", "insult"], pad_token_id=2, trained=trained)


def test_a_pooler_may_be_new_as_the_head(tmp_path):
    folder = broken(save_classifier(tmp_path / "network"), "bert.pooler.dense.weight", None)
    _, fate = load_classifier(BackboneConfig(pretrained=folder), ["toxic", "insult"], pad_token_id=2)
    assert fate is not None
    assert "new head" in fate
