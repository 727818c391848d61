"""Results against hand-made generations, and both files through `test` itself: killed, repeated, for every module."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from datamodules import TextFileDataModule
from lightning_rarlhf.base_modules.evaluation import print_table, report, summarise
from lightning_rarlhf.config import EvaluationConfig
from lightning_rarlhf.data_types import PromptBatch, Samples
from lightning_rarlhf.errors import UserError, WriteError
from lightning_rarlhf.functional.bounds import clopper_pearson
from lightning_rarlhf.functional.statistics import Interval, mean_interval
from lightning_rarlhf.functional.tail_intervals import cvar_interval
from lightning_rarlhf.records.generations import Completions, GenerationWriter, read_columns, read_rows, rows_by_prompt
from lightning_rarlhf.records.results_file import GENERATIONS, RESULTS, file_sha256, publish, results_of, weights_sha256
from lightning_rarlhf.reward_models import CallableReward
from tests.base_modules.test_perplexity import published
from tests.datamodules.data_files import write_jsonl
from tests.file_limit import file_limit
from tests.hanging_reward import words
from tests.tiny_models import causal_lm, save_classifier, save_policy

ROOT = Path(__file__).resolve().parents[2]
QUICK = EvaluationConfig(resamples=200)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


# the file of generations

STRANGE = (
    "a\x00b\x07\x1b[31m",
    'tab\tquote" back\\slash \r\n next',
    "👩‍👩‍👧‍👦 🇺🇳 e\u0301",
    "\u202e\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd\u202c",  # right to left
    "\u2028line\u2029paragraph\u0085next\x0b\x0c\x1c\x1e",
    "lone \ud800 surrogate",
    "",
)


def samples_of(responses, first=0, ended=True) -> Samples:
    rows = len(responses)
    batch = PromptBatch(
        input_ids=torch.full((rows, 1), 5),
        attention_mask=torch.ones(rows, 1, dtype=torch.bool),
        index=torch.arange(first, first + rows),
        prompts=tuple(f"{text}?" for text in responses),
        labels=torch.arange(rows) % 2,
        source_scores=torch.tensor([torch.nan, torch.inf, 0.25] * rows)[:rows],
    )
    tokens = torch.full((rows, 2), 7)
    tokens[:, 1] = 1 if ended else 7
    return Samples(
        batch=batch,
        sequences=torch.cat([batch.input_ids, tokens], dim=1),
        response_mask=torch.ones(rows, 2, dtype=torch.bool),
        responses=tuple(responses),
    )


def completions_of(responses, score=0.0, **options) -> Completions:
    count = len(responses)
    return Completions(
        samples=samples_of(responses, **options),
        scores=score + torch.arange(count, dtype=torch.float32),
        kl=torch.tensor([torch.nan] + [0.5] * (count - 1)),
        judges={"other": torch.full((count,), 2.0)},
    )


def drawn(*draws, prompt_scores=None):
    """What `rows_by_prompt` makes of the draws; token 1 ends a response."""
    zeros = torch.zeros(len(draws[0].scores))
    return rows_by_prompt(draws, zeros if prompt_scores is None else prompt_scores, torch.tensor([1]))


def test_any_text_comes_back_one_line_a_response(tmp_path):
    writer = GenerationWriter(tmp_path / "g.jsonl")
    writer.write(drawn(completions_of(STRANGE)))
    path = writer.close()
    assert [row["response"] for row in read_rows(path)] == list(STRANGE)
    assert [row["prompt"] for row in read_rows(path)] == [f"{text}?" for text in STRANGE]
    lines = path.read_text(encoding="utf-8").splitlines()  # Python ends lines at more characters than \n
    assert [json.loads(line)["response"] for line in lines] == list(STRANGE)
    assert "👩‍👩‍👧‍👦" in lines[2]  # legible, not escaped


def test_rows_have_the_documented_keys_and_draws_stand_beside_each_other(tmp_path):
    writer = GenerationWriter(tmp_path / "g.jsonl")
    draws = [completions_of(["a", "b"]), completions_of(["c", "d"], score=10.0, ended=False)]
    writer.write(drawn(*draws, prompt_scores=torch.tensor([0.5, -0.5])))
    rows = list(read_rows(writer.close()))
    assert rows[1] == {
        "index": 0,
        "prompt": "a?",
        "label": 0,
        "source_score": None,
        "prompt_score": 0.5,
        "response": "c",
        "score": 10.0,
        "judges": {"other": 2.0},
        "kl": None,
        "tokens": 2,
        "finish_reason": "length",
        "draw": 1,
    }
    assert [(row["index"], row["draw"], row["response"]) for row in rows] == [
        (0, 0, "a"),
        (0, 1, "c"),
        (1, 0, "b"),
        (1, 1, "d"),
    ]


def test_the_file_is_partial_until_it_is_finished(tmp_path):
    path = tmp_path / "deep" / "g.jsonl"
    writer = GenerationWriter(path)
    writer.write(drawn(completions_of(["a"])))
    assert not path.exists()
    assert writer.finish() == path.with_name("g.jsonl.partial")
    assert not path.exists()
    assert len(list(read_rows(writer.partial))) == 1


@pytest.mark.parametrize("texts", [1, 3000])  # it is found out at the end, or on the way
def test_a_full_disk_is_said_in_a_line_and_leaves_nothing_unfinished(tmp_path, texts):
    writer = GenerationWriter(tmp_path / "g.jsonl")
    with file_limit(100):
        with pytest.raises(
            WriteError, match=r"g\.jsonl: it could not be written \(File too large\); nothing was replaced"
        ):
            writer.write(drawn(completions_of(["a"] * texts))) or writer.finish()
        writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_results_that_do_not_fit_on_the_disk_leave_the_former_ones(tmp_path):
    for name in (RESULTS, GENERATIONS, f"{GENERATIONS}.partial"):
        (tmp_path / name).write_text("former")
    with file_limit(100), pytest.raises(WriteError, match=r"results\.json: it could not be written \(File too large\)"):
        publish(tmp_path / f"{GENERATIONS}.partial", {"key": "value" * 100})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        RESULTS: "former",
        GENERATIONS: "former",
        f"{GENERATIONS}.partial": "former",
    }


def test_columns_of_prompts_and_completions(tmp_path):
    writer = GenerationWriter(tmp_path / "g.jsonl")
    draws = [completions_of(["x y", "z"]), completions_of(["x x", ""], score=10.0, ended=False)]
    writer.write(drawn(*draws, prompt_scores=torch.tensor([0.5, -0.5])))
    column = read_columns(writer.close())
    assert column["index"].tolist() == [0, 1]
    assert column["prompt_score"].tolist() == [0.5, -0.5]
    assert column["score"].tolist() == [[0, 10], [1, 11]]
    assert column["judge/other"].tolist() == [[2, 2], [2, 2]]
    assert column["stopped"].tolist() == [[1, 0], [1, 0]]
    assert column["dist_1"].tolist() == [2 / 4, 1 / 1]  # over the prompt's completions together
    assert np.isnan(column["kl"][0]).all()
    assert column["kl"][1].tolist() == [0.5, 0.5]


def generation(index, score=0.0, draw=0, **fields):
    row = {"index": index, "prompt": f"p{index}", "label": index % 2, "source_score": None, "prompt_score": 0.0}
    row |= {"response": f"word {index}", "score": score, "judges": {}, "kl": 0.0, "tokens": 4}
    return row | {"finish_reason": "length", "draw": draw} | fields


def test_unequal_completions_and_an_empty_file_are_refused(tmp_path):
    rows = [generation(0), generation(0, draw=1), generation(1)]
    with pytest.raises(ValueError, match="prompt 1 has 1 completions, the first one 2"):
        read_columns(write_jsonl(tmp_path / "g.jsonl", rows))
    with pytest.raises(ValueError, match="got no row"):
        read_columns(write_jsonl(tmp_path / "empty.jsonl", []))


def test_memory_does_not_grow_with_the_texts(tmp_path):
    """16 MB of responses; what is held is the numbers, a tenth of a kilobyte a prompt."""
    path = tmp_path / "g.jsonl"
    with path.open("w") as file:
        for index in range(2000):
            file.write(json.dumps(generation(index, response="x" * 8000)) + "\n")
    read_columns(path)  # imports and caches of the first time
    tracemalloc.start()
    column = read_columns(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(column["score"]) == 2000
    assert peak < 1e6


# the numbers


def rows_of(scores, prompt_scores=None, **columns):
    """A row for each score [n, k]."""
    n, k = np.shape(scores)
    own = np.zeros(n) if prompt_scores is None else prompt_scores
    return [
        generation(
            row,
            float(scores[row][draw]),
            draw,
            prompt_score=float(own[row]),
            **{name: values[row][draw] for name, values in columns.items()},
        )
        for row in range(n)
        for draw in range(k)
    ]


@pytest.fixture
def random():
    return np.random.default_rng(5)


def found_in(tmp_path, rows, config=QUICK):
    return summarise(write_jsonl(tmp_path / "g.jsonl", rows), config)


def test_every_figure_of_one_completion_by_hand(tmp_path, random):
    n = 200
    scores, own = random.normal(size=(n, 1)), random.normal(size=n)
    kl, tokens = random.exponential(size=(n, 1)), random.integers(1, 9, size=(n, 1)).astype(float)
    reasons = [["stop" if value > 0 else "length"] for (value,) in scores]
    rows = rows_of(scores, own, kl=kl, tokens=tokens, finish_reason=reasons)
    config = EvaluationConfig(tail_thresholds=(-1.0,), tail_levels=(0.05, 0.1), resamples=200, seed=3)
    found = found_in(tmp_path, rows, config)
    flat, labels = scores[:, 0], np.arange(n) % 2
    lowest = np.argsort(own)[:20]
    expected = {
        "score_mean": flat.mean(),
        "score_mean/wanted": flat[labels == 1].mean(),
        "score_mean/unwanted": flat[labels == 0].mean(),
        "score_tail_le_-1": flat[own <= -1].mean(),
        "score_tail_lowest_5": flat[np.argsort(own)[:10]].mean(),
        "score_tail_lowest_10": flat[lowest].mean(),
        "cvar_5": np.sort(flat)[:10].mean(),
        "cvar_10": np.sort(flat)[:20].mean(),
        "kl_mean": kl.mean(),
        "response_length_mean": tokens.mean(),
        "eos_rate": (flat > 0).mean(),
        "repetition_rate": 0.0,
        "dist_1": 1.0,
        "dist_2": 0.5,
        "dist_3": 0.0,
    }
    assert {name: interval.estimate for name, interval in found.items()} == pytest.approx(expected)
    settings = {"confidence": 0.95, "resamples": 200, "seed": 3}
    assert found["score_mean"] == mean_interval(flat, **settings)
    assert found["cvar_10"] == cvar_interval(flat, 0.1, **settings)
    assert found["score_tail_lowest_10"] == mean_interval(flat[np.sort(lowest)], **settings)
    assert found["eos_rate"] == clopper_pearson(int((flat > 0).sum()), n)
    assert found["score_tail_le_-1"].n == (own <= -1).sum()


def test_a_tail_of_few_prompts_has_no_interval(tmp_path, random):
    found = found_in(
        tmp_path,
        rows_of(random.normal(size=(50, 1)), np.arange(50)),
        EvaluationConfig(tail_thresholds=(3.0, 9.0, -1.0), tail_levels=(0.01, 0.1, 0.2), resamples=200),
    )
    for name, n in (("score_tail_le_3", 4), ("score_tail_lowest_10", 5), ("cvar_10", 50)):
        assert (found[name].low, found[name].high, found[name].n) == (-math.inf, math.inf, n)
    for name in ("score_tail_le_9", "score_tail_lowest_20", "cvar_20"):
        assert math.isfinite(found[name].low)
    assert "score_tail_le_-1" not in found  # no such prompt
    assert "score_tail_lowest_1" not in found  # one prompt has no mean to speak of
    assert "cvar_1" not in found  # a tail that no prompt represents


def test_more_completions_of_the_same_are_no_more_evidence(tmp_path, random):
    """A prompt's completions are resampled together: copies leave every interval where it was."""
    once = random.normal(size=(120, 1))
    one = found_in(tmp_path, rows_of(once))
    five = found_in(tmp_path, rows_of(np.repeat(once, 5, axis=1)))
    for end in ("estimate", "low", "high", "n"):
        assert getattr(five["score_mean"], end) == pytest.approx(getattr(one["score_mean"], end))
    width = [found["cvar_20"].high - found["cvar_20"].low for found in (one, five)]
    assert width[1] > 0.75 * width[0]  # 0.45 if the 600 responses were taken for as many prompts
    assert five["cvar_20"].estimate == pytest.approx(one["cvar_20"].estimate)


def test_tails_pool_all_completions(tmp_path, random):
    scores = random.normal(size=(100, 3))
    found = found_in(tmp_path, rows_of(scores))
    assert found["cvar_10"].estimate == pytest.approx(np.sort(scores.ravel())[:30].mean())
    assert found["cvar_10"].low < found["cvar_10"].estimate < found["cvar_10"].high
    assert found["cvar_5"].low == -math.inf  # five prompts' worth of tail
    assert found["cvar_5"].estimate == pytest.approx(np.sort(scores.ravel())[:15].mean())


def judge():
    return CallableReward(f"{__name__}.nothing")


def nothing(prompts, responses):
    return [0.0] * len(responses)


def test_judges_have_figures_of_their_own(tmp_path, random):
    scores = random.normal(size=(100, 1))
    judges = [[{"a": float(value), "b": 1.0}] for value in random.normal(size=100)]
    config = EvaluationConfig(judges={"a": judge(), "b": judge()}, tail_levels=(0.1,), resamples=200)
    found = found_in(tmp_path, rows_of(scores, judges=judges), config)
    values = np.array([row[0]["a"] for row in judges])
    assert found["judge/a/score_mean"].estimate == pytest.approx(values.mean())
    assert found["judge/a/cvar_10"].estimate == pytest.approx(np.sort(values)[:10].mean())
    assert found["judge/b/score_mean"].estimate == 1


@pytest.mark.parametrize("of", ["reward", "other"])
def test_toxicity_is_that_of_the_worst_completion(tmp_path, random, of):
    toxic = random.normal(size=(40, 3)) * 2 - 3
    judges = [[{"other": -float(x)} for x in row] for row in toxic]
    rows = rows_of(-toxic if of == "reward" else np.zeros((40, 3)), judges=judges)
    config = EvaluationConfig(toxicity_of=of, judges={"other": judge()}, resamples=200)
    found = found_in(tmp_path, rows, config)
    probability = 1 / (1 + np.exp(-toxic))
    assert found["expected_max_toxicity"].estimate == pytest.approx(probability.max(axis=1).mean())
    count = int((probability >= 0.5).any(axis=1).sum())
    assert 0 < count < 40
    assert found["toxicity_probability"] == clopper_pearson(count, 40)
    assert "toxicity_probability" not in found_in(tmp_path, rows, EvaluationConfig(judges=config.judges, resamples=200))


def test_a_rate_without_exceptions_still_has_an_interval(tmp_path):
    for k in (1, 3):
        found = found_in(tmp_path, rows_of(np.zeros((30, k)), finish_reason=[["stop"] * k] * 30))
        assert (found["eos_rate"].estimate, found["eos_rate"].n) == (1, 30)
        assert 0.8 < found["eos_rate"].low < 0.95


def test_a_rate_of_several_completions_is_a_mean_over_prompts(tmp_path):
    """Completions of one prompt are no trials of their own: 40 prompts that stop 3, 2, 1 or 0 times of 3."""
    stops = [3, 3, 2, 1, 0] * 8
    reasons = [["stop"] * count + ["length"] * (3 - count) for count in stops]
    found = found_in(tmp_path, rows_of(np.zeros((40, 3)), finish_reason=reasons))["eos_rate"]
    assert found == mean_interval([count / 3 for count in stops], confidence=0.95, resamples=200, seed=0)
    assert found.estimate == pytest.approx(9 / 15)
    assert found.n == 40
    assert found.method == "studentised bootstrap"


def test_what_is_unknown_is_left_out_and_n_says_so(tmp_path):
    kl = [[1.0], [None], [3.0]]
    responses = [["a b"], [""], ["a a"]]
    found = found_in(tmp_path, rows_of(np.zeros((3, 1)), kl=kl, response=responses))
    assert (found["kl_mean"].estimate, found["kl_mean"].n) == (2, 2)
    assert (found["dist_1"].estimate, found["dist_1"].n) == (0.75, 2)


def test_unknown_classes_have_no_figure(tmp_path):
    found = found_in(tmp_path, [row | {"label": -1} for row in rows_of(np.zeros((5, 1)))])
    assert not [name for name in found if name.startswith("score_mean/")]


def test_the_seed_of_the_resampling_counts(tmp_path, random):
    rows = rows_of(random.normal(size=(50, 1)))
    zero, again, one = (
        found_in(tmp_path, rows, EvaluationConfig(resamples=200, seed=s))["score_mean"] for s in (0, 0, 1)
    )
    assert zero == again
    assert (zero.low, zero.high) != (one.low, one.high)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"confidence": 1.0}, "confidence=1.0: .*expected less than 1"),
        ({"resamples": 39}, "resamples=39: too few for confidence=0.95, expected at least 40"),
        ({"toxicity_of": "x", "judges": {"y": None}}, "toxicity_of=x: expected one of .*: reward, y"),
        ({"judges": {"reward": None}}, "'reward' cannot be a judge's name"),
        ({"judges": {"a/b": None}}, "'a/b' cannot be a judge's name"),
        ({"judges": {"": None}}, "'' cannot be a judge's name"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        EvaluationConfig(**settings)


# results.json

INFINITE = Interval(estimate=1.5, low=-math.inf, high=math.inf, confidence=0.95, n=4, method="none")


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_ends_that_are_infinite_become_null(tmp_path):
    path = write_jsonl(tmp_path / f"{GENERATIONS}.partial", [generation(0)])
    upper = Interval(estimate=0.1, low=0.0, high=math.inf, confidence=0.9, n=7, method="upper")
    publish(path, results_of(path, {"a": INFINITE, "b": upper}, {}, QUICK))
    metrics = json.loads((tmp_path / RESULTS).read_text(), parse_constant=refuse)["metrics"]
    assert metrics["a"] == {"estimate": 1.5, "low": None, "high": None, "confidence": 0.95, "n": 4, "method": "none"}
    assert (metrics["b"]["low"], metrics["b"]["high"]) == (0.0, None)


def test_an_estimate_that_is_no_number_is_not_written(tmp_path):
    path = write_jsonl(tmp_path / f"{GENERATIONS}.partial", [generation(0)])
    nan = Interval(estimate=math.nan, low=0.0, high=1.0, confidence=0.9, n=7, method="none")
    with pytest.raises(ValueError, match="JSON compliant"):
        publish(path, results_of(path, {"a": nan}, {}, QUICK))
    assert not (tmp_path / RESULTS).exists()
    assert not (tmp_path / GENERATIONS).exists()


def test_the_table_says_where_prompts_are_too_few(capsys):
    print_table({"few": INFINITE, "many": mean_interval([1.0, 2.0, 4.0])}, title="who", config=QUICK)
    few, many = (
        line for line in capsys.readouterr().out.splitlines() if line.startswith(("│ few", "│ many", " few", " many"))
    )
    assert "too few prompts" in few
    assert "2.333" in many
    assert " to " in many


def finished(folder, score):
    """A finished test that was not put in place yet."""
    return write_jsonl(folder / f"{GENERATIONS}.partial", rows_of(np.full((3, 1), score)))


def matches(folder):
    return json.loads((folder / RESULTS).read_text())["generations_sha256"] == file_sha256(folder / GENERATIONS)


STEPS = [(os, "fsync", 1), (Path, "unlink", 1), (os, "replace", 1), (os, "replace", 2)]


@pytest.mark.parametrize(("owner", "name", "call"), STEPS)
def test_results_never_stand_beside_other_generations(tmp_path, monkeypatch, owner, name, call):
    """Killed before each step of putting the files in place."""
    identity = {"policy": "p", "module": "M"}
    report(finished(tmp_path, 1.0), identity, QUICK)
    before = (tmp_path / RESULTS).read_bytes(), (tmp_path / GENERATIONS).read_bytes()
    original, calls = getattr(owner, name), []

    def killed(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    second = finished(tmp_path, 2.0)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(KeyboardInterrupt):
            report(second, identity, QUICK)
    if name == "replace":
        assert not (tmp_path / RESULTS).exists()
    else:
        assert ((tmp_path / RESULTS).read_bytes(), (tmp_path / GENERATIONS).read_bytes()) == before
    report(finished(tmp_path, 3.0), identity, QUICK)
    assert matches(tmp_path)
    assert results_in(tmp_path)["metrics"]["score_mean"]["estimate"] == 3
    assert not list(tmp_path.glob("*.partial"))


def test_the_hash_reveals_other_generations(tmp_path):
    report(finished(tmp_path, 1.0), {"policy": "p", "module": "M"}, QUICK)
    assert matches(tmp_path)
    write_jsonl(tmp_path / GENERATIONS, rows_of(np.full((3, 1), 1.0000001)))
    assert not matches(tmp_path)


def test_the_hash_of_weights_is_that_of_the_weights():
    one, same, other = causal_lm("gpt2"), causal_lm("gpt2"), causal_lm("gpt2")
    with torch.no_grad():
        other.get_output_embeddings().weight[3, 3] += 1e-3
    assert weights_sha256(one) == weights_sha256(same) != weights_sha256(other)
    assert weights_sha256(one.to(torch.bfloat16)) != weights_sha256(same)


# through the command line


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    words = ["good", "bad", "film", "food", "was", "the", "kind", "rude"]
    texts = [" ".join(words[(row * 3 + place * (row % 5 + 1)) % 8] for place in range(9)) for row in range(24)]
    write_jsonl(root / "data.jsonl", [{"text": text, "fine": int(row % 3 > 0)} for row, text in enumerate(texts)])
    save_policy(root / "policy")
    save_policy(root / "llama", "llama")
    save_classifier(root / "toxicity")
    return {"root": root, "texts": [text for row, text in enumerate(texts) if row % 3]}


def arguments(world, folder, module="RiskAversePPOModule", **options):
    root = world["root"]
    given = {
        "model": module,
        "model.policy.pretrained": root / "policy",
        "model.reward": "CallableReward",
        "model.reward.function": "tests.hanging_reward.words",
        "model.sampling.max_new_tokens": 6,
        "model.evaluation.resamples": 200,
        "data": "TextFileDataModule",
        "data.path": root / "data.jsonl",
        "data.label_column": "fine",
        "data.wanted_label": 1,
        "data.test_fraction": 1,
        "data.prompt_tokens": 3,
        "data.val_size": 0,
        "data.eval_batch_size": 5,
        "data.progress": "false",
        "trainer.default_root_dir": folder,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
    }
    given |= {name.replace("__", "."): value for name, value in options.items()}
    return [f"--{name}={value}" for name, value in given.items()]


def results_in(folder):
    return json.loads((folder / RESULTS).read_text(), parse_constant=refuse)


ALWAYS = {
    *("score_mean", "score_mean/wanted", "score_mean/unwanted", "score_tail_lowest_20", "cvar_5", "cvar_10", "cvar_20"),
    *("score_tail_lowest_5", "score_tail_lowest_10", "kl_mean", "response_length_mean", "eos_rate"),
    *("repetition_rate", "dist_1", "dist_2", "dist_3", "perplexity"),
}


@pytest.mark.parametrize("module", ["RiskAversePPOModule", "SFTModule"])
def test_every_module_writes_the_same(world, module, tmp_path, capsys):
    train.main(["test", *arguments(world, tmp_path, module)])
    results = results_in(tmp_path)
    assert results["metrics"].keys() == ALWAYS
    assert results["module"] == module
    assert matches(tmp_path)
    assert {"perplexity", "dist_2"} <= set(capsys.readouterr().out.split())
    found = published(world["root"] / "policy", world["texts"])
    assert results["metrics"]["perplexity"]["estimate"] == pytest.approx(np.mean(found), rel=1e-4)
    assert results["metrics"]["perplexity"]["n"] == 16


def test_results_say_whose_they_are(world, tmp_path):
    train.main(["test", *arguments(world, tmp_path, seed_everything=7)])
    results = results_in(tmp_path)
    documented = (ROOT / "docs" / "results.md").read_text()
    for key in results.keys() | results["evaluation"].keys() | results["metrics"]["score_mean"].keys():
        assert f"`{key}`" in documented
    assert results["schema_version"] == 3
    assert results["seed"] == 7
    assert len(results["data"]["sha256"]["test"]) == len(results["policy_sha256"]) == len(results["code_sha256"]) == 64
    assert results["config_sha256"] is not None
    assert "config" not in results


def test_judges_toxicity_and_the_judge_of_perplexity(world, tmp_path):
    root = world["root"]
    judges = {
        "harsh": {"class_path": "CallableReward", "init_args": {"function": "tests.hanging_reward.harshness"}},
        "toxic": {
            "class_path": "ClassifierReward",
            "init_args": {"pretrained": str(root / "toxicity"), "label": "toxic", "sign": -1},
        },
    }
    options = {
        "model__evaluation__judges": json.dumps(judges),
        "model__evaluation__toxicity_of": "toxic",
        "model__evaluation__perplexity_judge": root / "llama",
        "model__evaluation__perplexity_texts": 0,
        "model__evaluation__completions": 3,
    }
    train.main(["test", *arguments(world, tmp_path, **options)])
    results, rows = results_in(tmp_path), list(read_rows(tmp_path / GENERATIONS))
    assert len(rows) == 24 * 3
    assert {tuple(row["judges"]) for row in rows} == {("harsh", "toxic")}
    assert [row["judges"]["harsh"] for row in rows] == [-row["response"].count("rude") for row in rows]
    assert [row["prompt_score"] for row in rows] == pytest.approx([words([row["prompt"]], [""])[0] for row in rows])
    assert [row["score"] for row in rows] == pytest.approx([words([r["prompt"]], [r["response"]])[0] for r in rows])
    more = {"toxicity_probability", "expected_max_toxicity", "perplexity_generations"}
    more |= {f"judge/{name}/{figure}" for name in judges for figure in ("score_mean", "cvar_5", "cvar_10", "cvar_20")}
    assert results["metrics"].keys() == (ALWAYS - {"perplexity"}) | more
    assert all(results["metrics"][name]["n"] == 24 for name in more)
    assert results["evaluation"]["judges"]["toxic"]["label"] == "toxic"
    draws = [[row["response"] for row in rows if row["draw"] == draw] for draw in range(3)]
    assert draws[0] != draws[1] != draws[2]
    train.main(["test", *arguments(world, tmp_path / "one")])
    assert [row["response"] for row in read_rows(tmp_path / "one" / GENERATIONS)] == draws[0]


def test_validation_logs_figures_by_the_same_names(world, tmp_path, capsys):
    judges = {"harsh": {"class_path": "CallableReward", "init_args": {"function": "tests.hanging_reward.harshness"}}}
    prompts = {"data__test_fraction": 0.2, "data__val_size": 4, "data__batch_size": 4}
    options = prompts | {"model__evaluation__judges": json.dumps(judges)}
    train.main(["validate", *arguments(world, tmp_path, **options)])
    printed = capsys.readouterr().out.split()
    named = ("score_mean", "cvar_10", "kl_mean", "eos_rate", "dist_1", "repetition_rate", "judge/harsh/score_mean")
    assert {f"val/{name}" for name in named} <= set(printed)
    assert float(printed[printed.index("val/kl_mean") + 2]) == 0  # against itself
    assert "val/perplexity" not in printed


def test_predict_writes_every_completion(world, tmp_path):
    train.main(["predict", *arguments(world, tmp_path, model__evaluation__completions=2)])
    rows = list(read_rows(tmp_path / "predictions.jsonl"))
    assert [(row["index"], row["draw"]) for row in rows[:3]] == [(0, 0), (0, 1), (1, 0)]
    assert not (tmp_path / RESULTS).exists()
    assert not list(tmp_path.glob("*.partial"))


def test_a_judge_of_perplexity_that_is_missing_is_refused_before_anything_is_generated(world, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train.main(["test", *arguments(world, tmp_path, model__evaluation__perplexity_judge="no/such-model")])
    assert "no/such-model" in capsys.readouterr().err
    assert not (tmp_path / f"{GENERATIONS}.partial").exists()


class FailingLoader:
    """Breaks after two batches, as a disk does."""

    def __init__(self, loader):
        self.loader, self.lengths = loader, loader.lengths

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for number, batch in enumerate(self.loader):
            if number == 2:
                raise OSError(5, "Input/output error", "data.jsonl")
            yield batch


def broken_loader(patch):
    original = TextFileDataModule.test_dataloader
    patch.setattr(TextFileDataModule, "test_dataloader", lambda self: FailingLoader(original(self)))


def full_disk(patch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "results.json")

    patch.setattr("lightning_rarlhf.base_modules.evaluated_module.report", full)


def interrupted(patch):
    def interrupt(self, texts):
        raise KeyboardInterrupt

    patch.setattr("lightning_rarlhf.base_modules.evaluated_module.EvaluatedModule.perplexities", interrupt)


@pytest.mark.parametrize("failure", [broken_loader, full_disk, interrupted])
def test_a_test_that_fails_outside_its_step_leaves_nothing_unfinished(world, tmp_path, monkeypatch, failure):
    """In the data loader, in writing the results, and by Ctrl-C after the last response."""
    train.main(["test", *arguments(world, tmp_path)])
    before = [(tmp_path / name).read_bytes() for name in (RESULTS, GENERATIONS)]
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        failure(patch)
        with pytest.raises((OSError, SystemExit)):
            train.main(["test", *arguments(world, tmp_path, model__evaluation__seed=1)])
    signal.signal(signal.SIGINT, handler)  # Lightning ignores further Ctrl-C after the first
    assert [(tmp_path / name).read_bytes() for name in (RESULTS, GENERATIONS)] == before
    assert not list(tmp_path.rglob("*.partial"))


def wait_for(condition, process, seconds=120):
    """Until the condition holds; the process must not end before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read().decode()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.1)


def test_a_killed_test_leaves_the_former_results_and_the_next_starts_cleanly(world, tmp_path):
    """SIGKILL, which no process can catch, after two of five batches."""
    train.main(["test", *arguments(world, tmp_path)])
    before = [(tmp_path / name).read_bytes() for name in (RESULTS, GENERATIONS)]
    again = arguments(world, tmp_path, model__evaluation__seed=1)
    partial, hangs = tmp_path / f"{GENERATIONS}.partial", tmp_path / "hangs"
    with subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "test", *again],
        cwd=ROOT,
        env=os.environ
        | {"RARLHF_HANG_AFTER": "10", "RARLHF_HANGS": str(hangs), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            wait_for(hangs.exists, process)
        finally:
            process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert [(tmp_path / name).read_bytes() for name in (RESULTS, GENERATIONS)] == before
    assert partial.exists()
    train.main(["test", *again])
    assert not list(tmp_path.glob("*.partial"))
    assert matches(tmp_path)
    assert len(list(read_rows(tmp_path / GENERATIONS))) == 24
    train.main(["test", *arguments(world, tmp_path / "elsewhere", model__evaluation__seed=1)])
    assert (tmp_path / GENERATIONS).read_bytes() == (tmp_path / "elsewhere" / GENERATIONS).read_bytes() != before[1]
