"""Every mistake a user can make on the command line: one clear line, exit status 2, nothing left behind."""

from __future__ import annotations

import json
import re
import shutil
import threading
from pathlib import Path

import pytest

import train
from lightning_rarlhf import reference as reference_loading
from tests.datamodules.data_files import jigsaw_rows, write_csv
from tests.test_configs import QUIET, ROOT
from tests.tiny_models import causal_lm, save_classifier, save_policy

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bad_input")
    save_policy(root / "policy", context=64)
    save_policy(root / "no_eos", eos=None)
    save_policy(root / "long_tokenizer", pad="<another pad>")
    causal_lm("gpt2", context=10).save_pretrained(save_policy(root / "short"))
    save_classifier(root / "reward")
    (root / "data").mkdir()
    (root / "empty_folder").mkdir()
    write_csv(root / "data" / "train.csv", jigsaw_rows(60, 30))
    write_csv(root / "data" / "test.csv", jigsaw_rows(20, 20, start=1000))
    for name, rows in {
        "no_column": [{"body": "x", "toxic": 1}],
        "short_texts": jigsaw_rows(20, 20, characters=1),
        "one_class": jigsaw_rows(40, 0),
    }.items():
        (root / name).mkdir()
        rows = [{**row, "comment_text": row["comment_text"][:20]} for row in rows] if name == "short_texts" else rows
        write_csv(root / name / "train.csv", rows)
        write_csv(root / name / "test.csv", jigsaw_rows(20, 20, start=1000))
    _break_models(root)
    shutil.copytree(root / "policy", root / "other_words")
    tokenizer = root / "other_words" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("rude", "ruder"))
    causal_lm("gpt2", vocabulary=24).save_pretrained(save_policy(root / "wide"))
    (root / "latin_1").mkdir()
    (root / "latin_1" / "train.csv").write_bytes("id,comment_text,toxic\n1,caf\xe9,0\n".encode("latin-1"))
    write_csv(root / "latin_1" / "test.csv", jigsaw_rows(5, 5))
    (root / "semicolons").mkdir()
    (root / "semicolons" / "train.csv").write_text("id;comment_text;toxic\n1;a;0\n")
    write_csv(root / "semicolons" / "test.csv", jigsaw_rows(5, 5))
    (root / "group_as_list.yaml").write_text("model:\n  init_args:\n    kl:\n    - target: 2\n")
    (root / "twice.yaml").write_text("trainer:\n  max_steps: 2\ntrainer:\n  max_epochs: 3\n")
    (root / "outside.yaml").write_text("ppo:\n  epochs: 2\n")
    (root / "empty_file").mkdir()
    (root / "empty_file" / "train.csv").write_text("")
    write_csv(root / "empty_file" / "test.csv", jigsaw_rows(5, 5))
    return root


def _break_models(root: Path) -> None:
    """Model folders as a broken copy, a broken training or a stranger leaves them."""
    for name in ("cut", "no_json", "nan", "own_code"):
        shutil.copytree(root / "policy", root / name)
    weights = root / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    (root / "no_json" / "config.json").write_text("{not json")
    model = causal_lm("gpt2", context=64)
    model.transformer.ln_f.bias.data.fill_(float("nan"))
    model.save_pretrained(root / "nan")
    config = json.loads((root / "own_code" / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.A", "AutoModelForCausalLM": "mine.B"}}
    (root / "own_code" / "config.json").write_text(json.dumps(config))
    (root / "own_code" / "mine.py").write_text("raise SystemExit('the code ran')\n")
    shutil.copytree(root / "reward", root / "cut_reward")
    (root / "cut_reward" / "model.safetensors").write_bytes(b"nothing")


def arguments(world: Path, folder: Path) -> list[str]:
    return [
        *("fit", "--config", str(ROOT / "configs" / "jigsaw.yaml"), *QUIET),
        *(
            "--data.path",
            str(world / "data"),
            "--data.batch_size",
            "8",
            "--data.val_size",
            "0",
            "--data.progress",
            "false",
        ),
        *("--model.policy.pretrained", str(world / "policy"), "--model.reward.pretrained", str(world / "reward")),
        *("--trainer.max_steps", "4", "--trainer.default_root_dir", str(folder)),
        *("--trainer.callbacks.warmup", "0", "--trainer.callbacks.rho", "0.5"),
    ]


def one_score(prompts, responses):
    return [1.0]


def not_a_number(prompts, responses):
    return [float("nan")] * len(responses)


def raises(prompts, responses):
    raise KeyError(prompts[0])


LET_GO = threading.Event()


@pytest.fixture(autouse=True)
def nothing_hangs_on():
    """A reward that hangs is left behind in its thread; not beyond its test."""
    LET_GO.clear()
    yield
    LET_GO.set()
    for thread in threading.enumerate():
        if thread.name == "reward":
            thread.join(10)


def hangs(prompts, responses):
    LET_GO.wait(60)


def a_string(prompts, responses):
    return "good"


CALLABLE = ["--model.reward", "CallableReward", "--model.reward.function"]
SFT = ["--model", "SFTModule", "--data.purpose", "sft", "--trainer.callbacks", "[]"]

CASES = {
    "missing data": (["--data.path", "{world}/nowhere"], r"nowhere: no such file or folder; check --data.path"),
    "empty file": (["--data.path", "{world}/empty_file"], r"train\.csv: .*empty"),
    "missing column": (["--data.path", "{world}/no_column"], r"no column 'comment_text'; columns found: body, toxic"),
    "no row left": (["--data.path", "{world}/short_texts"], r"no row.* left.*64 characters|64 characters.*no row"),
    "class missing": (["--data.path", "{world}/one_class"], r"none of its 40 rows is of the unwanted class"),
    "unknown label": (["--model.reward.label", "toxicity"], r"no label 'toxicity'; its labels are: toxic, insult"),
    "no eos": (["--model.policy.pretrained", "{world}/no_eos"], r"lacks a pad token and an EOS token"),
    "too long": (
        ["--model.sampling.max_new_tokens", "60"],
        r"8 prompt tokens \+ max_new_tokens=60 do not fit.*64 tokens",
    ),
    "alpha 0": (
        ["--trainer.callbacks.risk_level", "0"],
        r"trainer\.callbacks\.risk_level: got 0, expected a number above 0 and at most 1$",
    ),
    "top_p above 1": (
        ["--model.sampling.top_p", "1.5"],
        r"model\.sampling\.top_p: got 1\.5, expected a number above 0 and at most 1$",
    ),
    "tail level above 1": (
        ["--model.evaluation.tail_levels", "[2.0]"],
        r"tail_levels: got 2\.0, expected a number above 0 and",
    ),
    "no label": (["--model.reward.label", "null"], r"reward.label"),
    "negative learning rate": (["--model.optimizer.lr", "-1"], r"model\.optimizer: Invalid learning rate: -1"),
    "unknown key of the optimizer": (
        ["--model.optimizer.lrr", "1"],
        r"unknown key 'lrr' of Adam; did you mean 'lr'",
    ),
    "fewer than one epoch": (
        ["--model.ppo.epochs", "-1"],
        r"^error: model\.ppo\.epochs: got -1, expected a whole number above 0$",
    ),
    "a word for a number with decimals": (
        ["--model.sampling.temperature", "abc"],
        r"^error: model\.sampling\.temperature: got 'abc', expected a number above 0$",
    ),
    "part of a whole number": (
        ["--model.ppo.micro_batch_size", "1.5"],
        r"micro_batch_size: got '1\.5', expected a whole number above 0 or null$",
    ),
    "0 where null is possible": (
        ["--model.ppo.max_grad_norm", "0"],
        r"^error: model\.ppo\.max_grad_norm: got 0, expected a number above 0 or null$",
    ),
    "null for a number of a group": (
        ["--model.sampling.top_p", "null"],
        r"top_p: got null, expected a number above 0 and at most 1$",
    ),
    "null for a data module's number": (
        ["--data.batch_size", "null"],
        r"^error: data\.batch_size: got null or nothing, expected a whole number above 0$",
    ),
    "null for a callback's number": (
        ["--trainer.callbacks.warmup", "null"],
        r"^error: trainer\.callbacks\.warmup: got null or nothing, expected a whole number from 0 on$",
    ),
    "null for a group": (
        ["--model.kl", "null"],
        r"^error: model\.kl: got null or nothing, expected settings by name$",
    ),
    "null for a choice": (
        ["--model.reward.sign", "null"],
        r"^error: model\.reward\.sign: got null or nothing, expected one of 1, -1$",
    ),
    "null for a learning rate": (
        ["--model.optimizer.lr", "null"],
        r"^error: model\.optimizer\.lr: got null or nothing, expected a number$",
    ),
    "null for an optimizer's pair": (
        ["--model.optimizer", "torch.optim.Adam", "--model.optimizer.betas", "null"],
        r"^error: model\.optimizer\.betas: got null or nothing, expected a list$",
    ),
    "no iteration": (
        ["--trainer.max_steps", "0"],
        r"^error: trainer\.max_steps=0: fit would train nothing; give a number above 0, or leave it out; `test`",
    ),
    "no epoch": (["--trainer.max_steps", "-1", "--trainer.max_epochs", "0"], r"trainer\.max_epochs=0: fit would train"),
    "no batch": (["--trainer.limit_train_batches", "0"], r"trainer\.limit_train_batches=0: fit would train nothing"),
    "misspelt group": (["--modle.policy.pretrained", "x"], r"'modle\.policy\.pretrained'; did you mean 'model'\?"),
    "shortened name": (
        ["--trainer.max_step", "4"],
        r"unknown key 'trainer\.max_step'; did you mean 'trainer\.max_steps'",
    ),
    "alpha 2": (["--trainer.callbacks.risk_level", "2"], r"risk_level: got 2, expected a number above 0"),
    "rho 0": (["--trainer.callbacks.rho", "0"], r"rho: got 0, expected a number above 0"),
    "rho above 1": (["--trainer.callbacks.rho", "1.5"], r"rho: got 1\.5, expected a number above 0"),
    "negative warmup": (["--trainer.callbacks.warmup", "-1"], r"warmup: got -1, expected a whole number from 0 on$"),
    "warmup too long": (["--trainer.callbacks.warmup", "3"], r"warmup n=3 is not before"),
    "alpha unreachable": (["--trainer.callbacks.rho", "1.0"], r"α=0.2 is never reached"),
    "tail empty": (["--trainer.callbacks.risk_level", "0.1"], r"less than one episode: α·B = 0.1·8"),
    "batch of one": (
        ["--data.batch_size", "1"],
        r"batch_size=1: risk is a matter of several episodes; expected 2 or more",
    ),
    "batch beyond the data": (["--data.batch_size", "500"], r"batch_size=500 is larger than the training set of"),
    "hub out of reach": (
        ["--model.policy.pretrained", "someone/unknown-model"],
        r"someone/unknown-model.*local folder",
    ),
    "reward out of reach": (["--model.reward.pretrained", "someone/unknown"], r"someone/unknown.*local folder"),
    "no model": (["--model.policy.pretrained", "{world}/empty_folder"], r"holds no config\.json"),
    "no folder": (["--model.policy.pretrained", "{world}/not_there"], r"no such folder"),
    "no model as reference": (["--model.reference", "{world}/empty_folder"], r"holds no config\.json"),
    "classifier as reference": (
        ["--model.reference", "{world}/reward"],
        r"reward: holds BertForSequenceClassification, expected a causal language model",
    ),
    "classifier as policy": (
        ["--model.policy.pretrained", "{world}/reward"],
        r"reward: holds BertForSequenceClassification, expected a causal language model",
    ),
    "policy as classifier": (
        ["--model.reward.pretrained", "{world}/policy"],
        r"policy: has no trained classification head .*; give a sequence classifier$",
    ),
    "misspelt key": (
        ["--model.samplin.temperature", "2"],
        r"unknown key 'samplin.temperature'.*'sampling.temperature'",
    ),
    "misspelt leaf": (["--model.ppo.epoks", "2"], r"unknown key 'ppo.epoks'.*'ppo.epochs'"),
    "misspelt data key": (["--data.pth", "x"], r"unknown key 'pth' of JigsawDataModule; did you mean 'path'\?"),
    "misspelt trainer key": (["--trainer.max_stepz", "2"], r"unknown key .*max_stepz.*max_steps"),
    "unknown class": (["--model", "RiskAversePPO"], r"model: .*RiskAversePPO"),
    "wrong choice": (
        ["--model.ppo.rank_by", "luck"],
        r"model\.ppo\.rank_by: got luck, expected one of 'return', 'lambda_return', 'score'$",
    ),
    "wrong number": (["--model.ppo.gamma", "2"], r"model\.ppo\.gamma: got 2, expected a number from 0 to 1$"),
    "KL coefficient 0 that adapts": (["--model.kl.init_kl_coef", "0"], r"init_kl_coef=0 would stay 0"),
    "horizon below a batch": (
        ["--model.kl.horizon", "1"],
        r"kl\.horizon=1 is too small for batches of 8 episodes.*horizon to 2 or more",
    ),
    "min above max": (["--model.sampling.min_new_tokens", "99"], r"min_new_tokens=99 is more than max_new_tokens=32"),
    "no such config": (["--config", "{world}/none.yaml"], r"none.yaml"),
    "no such checkpoint": (["--ckpt_path", "{world}/none.ckpt"], r"ckpt_path .*none\.ckpt: no such checkpoint there"),
    "no last checkpoint": (["--ckpt_path", "last"], r"ckpt_path last: no such checkpoint in "),
    "no best checkpoint": (["--ckpt_path", "best"], r"ckpt_path best: no such checkpoint in "),
    "texts for PPO": (["--data.purpose", "sft"], r"trains on PromptBatch, got TextBatch; set data\.purpose: prompts"),
    "prompts for SFT": (
        ["--model", "SFTModule", "--trainer.callbacks", "[]"],
        r"SFTModule trains on TextBatch, got PromptBatch; set data.purpose: sft",
    ),
    "texts too long": (
        [*SFT, "--model.policy.pretrained", "{world}/short"],
        r"\d prompt tokens .* 10 tokens; lower",
    ),
    "another tokenizer": (["--data.tokenizer", "{world}/bytes"], r"data.tokenizer .*bytes: .* the policy's own"),
    "long tokenizer": (
        ["--model.policy.pretrained", "{world}/long_tokenizer"],
        r"its tokenizer has 18 tokens, its embedding 17",
    ),
    "float16 policy": (["--model.policy.dtype", "float16"], r"policy\.dtype: .*'float32', 'bfloat16'"),
    "a strategy without its devices": (
        ["--trainer.strategy", "fsdp"],
        r"trainer: The strategy `fsdp` requires a GPU accelerator",
    ),
    "another strategy": (
        ["--trainer.strategy", "ddp_spawn", "--trainer.devices", "2"],
        r"trainer\.strategy DDPStrategy \(started by spawn\) is not supported; expected auto, ddp or fsdp2",
    ),
    "precision": (["--trainer.precision", "16-true"], r"expected 32-true or bf16-mixed"),
    "float16 on a CPU": (
        ["--trainer.precision", "16-mixed"],
        r"trainer\.precision=16-mixed: .* would compute in bf16-mixed; expected 32-true or bf16-mixed$",
    ),
    "clipping by the trainer": (["--trainer.gradient_clip_val", "1.0"], r"not supported for manual optimization"),
    "accumulation by the trainer": (
        ["--trainer.accumulate_grad_batches", "2"],
        r"not supported for manual optimization",
    ),
    "reward of the wrong length": (
        ["--model.reward", "CallableReward", "--model.reward.function", "tests.test_bad_input.one_score"],
        r"one_score: returned shape \[1\]; expected \[8\]",
    ),
    "reward of NaN": (
        ["--model.reward", "CallableReward", "--model.reward.function", "tests.test_bad_input.not_a_number"],
        r"not_a_number: 8 of 8 scores are not finite",
    ),
    "reward of a string": (
        ["--model.reward", "CallableReward", "--model.reward.function", "tests.test_bad_input.a_string"],
        r"a_string: returned a string; expected 8 numbers",
    ),
    "reward that raises": (
        [*CALLABLE, "tests.test_bad_input.raises", "--model.reward.retry.backoff", "0"],
        r"raises: failed 3 times \(KeyError in test_bad_input\.py:\d+\) on 8 of 8 .*prompts in the data: \d+,",
    ),
    "reward that hangs": (
        [
            *(*CALLABLE, "tests.test_bad_input.hangs", "--model.reward.retry.timeout", "0.1"),
            *("--model.reward.retry.attempts", "1"),
        ],
        r"hangs: failed 1 times \(took more than 0.1 s\) on 8 of 8 responses",
    ),
    "no attempt": (
        [*CALLABLE, "tests.test_bad_input.raises", "--model.reward.retry.attempts", "0"],
        r"attempts: got 0, expected a whole number above 0$",
    ),
    "unknown way to fail": (
        ["--model.guard.on_failure", "ignore"],
        r"on_failure: got ignore, expected one of 'stop', 'skip'$",
    ),
    "no skips": (["--model.guard.max_skips", "0"], r"max_skips: got 0, expected a whole number above 0$"),
    "negative target KL": (
        ["--model.ppo.target_kl", "-1"],
        r"target_kl: got -1, expected a number above 0 or null$",
    ),
    "ratio of 0": (["--model.ppo.max_ratio", "0"], r"max_ratio: .*0"),
    "broken weights": (
        ["--model.policy.pretrained", "{world}/nan"],
        r"nan: its logits are not finite: its weights hold NaN or infinities",
    ),
    "an attention that is not installed": (
        ["--model.policy.attn_implementation", "flash_attention_2"],
        r"policy: not a causal language model that transformers can load \(FlashAttention2 .*package",
    ),
    "the same with adapters": (
        ["--model.policy.attn_implementation", "flash_attention_2", "--model.policy.lora.r", "2"],
        r"policy: not a causal language model that transformers can load \(FlashAttention2 .*package",
    ),
    "cut weights": (["--model.policy.pretrained", "{world}/cut"], r"cut: not a causal language model that"),
    "cut reward": (["--model.reward.pretrained", "{world}/cut_reward"], r"cut_reward: not a sequence classifier that"),
    "config that is no JSON": (["--model.policy.pretrained", "{world}/no_json"], r"no_json: "),
    "code of a model": (
        ["--model.policy.pretrained", "{world}/own_code"],
        r"own_code: ships code of its own, which is not run",
    ),
    "trust in another model": (
        ["--model.policy.trust_remote_code", "owner/model"],
        r"policy\.trust_remote_code: got 'owner/model', expected the name of the model whose code may run, '.*policy'",
    ),
    "trust without a commit": (
        [
            "--model.policy.pretrained",
            "a/b",
            "--model.policy.trust_remote_code",
            "a/b",
            "--model.policy.revision",
            "v1",
        ],
        r"the code of a/b can change .*revision: v1.*pin the revision to the commit",
    ),
    "pinned reference out of reach": (
        ["--model.reference", "someone/unknown@v1"],
        r"someone/unknown'?: .*local folder",
    ),
    "reference of other words": (
        ["--model.reference", "{world}/other_words"],
        r"reference .*other_words: its tokenizer has \d+ tokens, .*differ, first at '▁ruder?' \(id \d+\)",
    ),
    "checkpoint at an address": (["--ckpt_path", "https://host/last.ckpt"], r"no such checkpoint"),
    "checkpoints with code": (["--weights_only", "false"], r"unknown key 'weights_only'"),
    "misspelt module": (
        ["--model", "RiskAvrsePPO"],
        r"model: no class is called .*did you mean 'RiskAversePPOModule'\?",
    ),
    "no such reward": (["--model.reward", "Foo"], r"model\.reward: no class is called 'Foo'; give its import path"),
    "misspelt callback": (
        ["--trainer.callbacks+=RiskShedule"],
        r"trainer\.callbacks: no class is called 'RiskShedule'; did you mean 'RiskSchedule'\?",
    ),
    "misspelt callback without a list": (
        ["--trainer.callbacks", "RiskShedule"],
        r"trainer\.callbacks: no class is called 'RiskShedule'; did you mean 'RiskSchedule'\?",
    ),
    "a number for callbacks": (
        ["--trainer.callbacks", "5"],
        r"trainer\.callbacks: got 5, expected a list or the name of a class or null$",
    ),
    "a callback's name for a module": (["--model", "RiskShedule"], r"model: .*did you mean 'RiskAversePPOModule'\?"),
    "misspelt optimizer": (
        ["--model.optimizer", "AdmaW"],
        r"model\.optimizer: no class is called 'AdmaW'; did you mean 'AdamW'\?",
    ),
    "adapters in frozen layers alone": (
        [*("--model.policy.lora.target_modules", "[h.0.attn.c_attn]"), "--model.policy.frozen_layers", "1"],
        r"lora\.target_modules: 'h\.0\.attn\.c_attn' matches no linear layer of this gpt2 above its frozen layers",
    ),
    "semicolons": (["--data.path", "{world}/semicolons"], r"columns found: id;comment_text;toxic; put commas between"),
    "a name for a group of settings": (
        ["--model.policy", "gpt3"],
        r"model\.policy: got gpt3, expected settings by name; did you mean 'model\.policy\.pretrained'\?",
    ),
    "a number for a group that may be none": (
        ["--model.policy.lora", "5"],
        r"model\.policy\.lora: got 5, expected settings by name; its keys: r, alpha, target_modules$",
    ),
    "a list for a group of settings": (
        ["--config", "{world}/group_as_list.yaml"],
        r"model\.kl: got a list, expected settings by name; its keys: init_kl_coef, adaptive, target, .*observe$",
    ),
    "a section twice": (
        ["--config", "{world}/twice.yaml"],
        r"twice\.yaml, line 3: trainer a second time, after line 1",
    ),
    "a key outside of its section": (
        ["--config", "{world}/outside.yaml"],
        r"unknown key 'ppo\.epochs'; did you mean 'model\.init_args\.ppo\.epochs'\?",
    ),
    "an option without its group": (
        ["--ppo.epochs", "2"],
        r"unknown key 'ppo\.epochs'; did you mean 'model\.ppo\.epoch",
    ),
    "no precision": (["--trainer.precision", "17"], r"trainer\.precision: got 17, expected 32-true or bf16-mixed$"),
    "no strategy": (
        ["--trainer.strategy", "dpp"],
        r"trainer\.strategy: got 'dpp', expected auto, ddp or fsdp2 .*did you mean 'ddp'\?",
    ),
    "no accelerator": (["--trainer.accelerator", "gpuu"], r"trainer: .*invalid accelerator name.*'gpuu'"),
    "no number of devices": (["--trainer.devices", "all"], r"trainer: `devices` .* should be an int > 0"),
    "no seed": (["--seed_everything", "abc"], r"seed_everything: got abc, expected a whole number from 0 on$"),
    "a seed below 0": (["--seed_everything", "-4"], r"seed_everything: -4 is not in bounds"),
    "a word for a number": (
        ["--model.ppo.epochs", "two"],
        r"model\.ppo\.epochs: got 'two', expected a whole number above 0$",
    ),
    "a word for the learning rate": (["--model.optimizer.lr", "fast"], r"optimizer\.lr: got fast, expected a number$"),
    "neither true nor false": (
        ["--model.ppo.whiten_advantages", "maybe"],
        r"whiten_advantages: got maybe, expected true or false$",
    ),
    "misspelt choice": (
        ["--model.ppo.rank_by", "lambda"],
        r"got lambda, expected one of .*'score'; did you mean 'lambda_return'\?",
    ),
    "no class there": (
        ["--model.optimizer", "torch.optim.Nope"],
        r"model\.optimizer: module 'torch\.optim' has no attribute 'Nope'$",
    ),
    "an option without its value": (["--model.ppo.epochs"], r"an option that begins with --model has no value"),
    "an empty name": (["--model.policy.pretrained", ""], r"a model's name is empty; give a hub id, or a folder"),
    "an empty path": (["--data.path", ""], r"data\.path is empty; expected a file or a folder of data"),
    "a folder that cannot be made": (
        ["--trainer.default_root_dir", "{world}/data/train.csv/run"],
        r"train\.csv/run/.*: it could not be written \(Not a directory\)",
    ),
    "latin-1": (["--data.path", "{world}/latin_1"], r"train\.csv: cannot be read .*UTF-8"),
    "reward that is not there": (
        ["--model.reward", "CallableReward", "--model.reward.function", "tests.test_bad_input.nothing"],
        r"'tests.test_bad_input.nothing' cannot be imported",
    ),
}


def former_outputs(folder: Path) -> dict[Path, bytes]:
    """Files of an earlier run, whose names the next one would write to; their contents."""
    names = ("results.json", "generations.jsonl", "predictions.jsonl", "huggingface/config.json", "old/last.ckpt")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"the former {name}")
    return {folder / name: (folder / name).read_bytes() for name in names}


CRASHES = {"reward of NaN"}
"""mistakes that only training can find; the batch that it happened in is kept"""


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_exit_status_2(world, tmp_path, capfd, name):
    extra, message = CASES[name]
    before = former_outputs(tmp_path)
    there = {path.name for path in tmp_path.rglob("*")}
    with pytest.raises(SystemExit) as caught:
        train.main([*arguments(world, tmp_path), *(part.format(world=world) for part in extra)])
    assert caught.value.code == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0]), errors[0]
    assert {path: path.read_bytes() for path in before} == before
    left = {path.name for path in tmp_path.rglob("*")} - there
    if name in CRASHES:  # its batch is kept, and the logs beside it
        assert left > {"crash", "iteration-0", "crash.json", "tensors.safetensors", "lightning_logs", "config.yaml"}
    else:
        assert left == set()


@pytest.mark.parametrize(("reference", "message"), [("other_words", "first at '▁rude"), ("wide", "KL needs one vocab")])
def test_a_reference_that_cannot_be_compared_is_refused_before_its_weights_are_loaded(
    world, tmp_path, capfd, monkeypatch, reference, message
):
    loaded = []
    own = reference_loading.load_causal_lm
    monkeypatch.setattr(reference_loading, "load_causal_lm", lambda *args: loaded.append(args) or own(*args))
    with pytest.raises(SystemExit):
        train.main([*arguments(world, tmp_path), "--model.reference", str(world / reference)])
    assert message in capfd.readouterr().err
    assert loaded == []


def test_the_same_arguments_without_a_mistake_train(world, tmp_path):
    train.main(arguments(world, tmp_path))
    assert (tmp_path / "huggingface" / "config.json").is_file()


def test_a_failing_test_leaves_nothing(world, tmp_path, capfd):
    reward = ["--model.reward", "CallableReward", "--model.reward.function", "tests.test_bad_input.not_a_number"]
    with pytest.raises(SystemExit):
        train.main(["test", *arguments(world, tmp_path)[1:], *reward])
    assert "scores are not finite" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_used_folder_is_not_overwritten(world, tmp_path, capfd):
    train.main(arguments(world, tmp_path))
    before = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    with pytest.raises(SystemExit):
        train.main(arguments(world, tmp_path))
    assert "holds another run's last.ckpt; go on from it with --ckpt_path last" in capfd.readouterr().err
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == before


def test_another_modules_checkpoint_is_refused_for_training_and_taken_for_tests(world, tmp_path, capfd):
    sft = [*arguments(world, tmp_path / "sft"), "--model", "SFTModule", "--data.purpose", "sft"]
    train.main([*sft, "--trainer.callbacks", "[]"])
    checkpoint = str(tmp_path / "sft" / "checkpoints" / "last.ckpt")
    with pytest.raises(SystemExit):
        train.main([*arguments(world, tmp_path / "ppo"), "--ckpt_path", checkpoint])
    assert "made by SFTModule, not RiskAversePPOModule" in capfd.readouterr().err
    train.main(["test", *arguments(world, tmp_path / "ppo")[1:], "--ckpt_path", checkpoint])
    assert (tmp_path / "ppo" / "results.json").is_file()


def test_a_misspelt_key_in_a_file_is_named(world, tmp_path, capfd):
    config = (ROOT / "configs" / "jigsaw.yaml").read_text().replace("max_new_tokens:", "max_new_token:")
    (tmp_path / "mine.yaml").write_text(config)
    with pytest.raises(SystemExit):
        train.main(["fit", "--config", str(tmp_path / "mine.yaml")])
    assert "unknown key 'sampling.max_new_token' of RiskAversePPOModule; did you mean 'sampling.max_new_tokens'?" in (
        capfd.readouterr().err
    )


def test_an_overlay_without_its_task_is_told_so(world, tmp_path, capfd):
    overlay = ["--config", str(ROOT / "configs" / "rlhf" / "jigsaw.yaml"), "--data.path", str(world / "data")]
    with pytest.raises(SystemExit) as exit_:
        train.main(["fit", *overlay, "--trainer.default_root_dir", str(tmp_path)])
    assert exit_.value.code == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last == "error: data: names no class; an overlay needs its task first: --config configs/TASK.yaml"
