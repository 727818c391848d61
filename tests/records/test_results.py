from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lightning_rarlhf.config import EvaluationConfig
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.records.results import read_run, require_comparable
from lightning_rarlhf.records.results_schema import read_results
from tests.report.run_folders import DATA, PROMPTS, REWARD, difficulty, scores_of, write_run


def test_the_numbers_come_back_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    scores = scores_of(1)
    run = read_run(write_run(tmp_path / "run", scores, kl=scores**2, reverse=True))
    assert run.index.tolist() == list(range(1000, 1000 + PROMPTS))
    assert run.columns["score"][:, 0] == pytest.approx(scores, rel=1e-6)
    assert run.columns["kl"][:, 0] == pytest.approx(scores**2, rel=1e-6)
    assert run.columns["prompt_score"][:, 0] == pytest.approx(difficulty(), rel=1e-6)
    assert run.columns["label"][:4, 0].tolist() == [0, 1, 1, 0]
    assert len(run) == PROMPTS
    assert run.confidence == 0.95
    assert run.identity["module"] == "PPO"
    assert run.metrics["score_mean"].estimate == pytest.approx(scores.mean(), abs=1e-6)


def test_completions_and_judges_are_columns(tmp_path: Path) -> None:
    scores = np.stack([scores_of(1), scores_of(2)], axis=1)
    run = read_run(write_run(tmp_path, scores, judges={"other": difficulty() * 2}))
    assert run.columns["score"] == pytest.approx(scores, rel=1e-6)
    assert run.columns["judge/other"] == pytest.approx(np.stack([difficulty() * 2] * 2, axis=1), rel=1e-6)
    assert run.columns["dist_1"].shape == (PROMPTS, 1)


def test_an_end_that_is_null_is_infinite(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, scores_of(1)))
    assert run.metrics["cvar_1"].low == -np.inf
    assert run.metrics["cvar_1"].high == np.inf


def test_the_path_of_the_results_file_names_the_run(tmp_path: Path) -> None:
    write_run(tmp_path, scores_of(1))
    assert read_run(tmp_path / "results.json").folder == tmp_path


def test_no_text_is_kept(tmp_path: Path) -> None:
    """Texts of 20 kB a prompt; the numbers take a few hundred bytes."""
    folder = write_run(tmp_path, scores_of(1), prompt="x" * 20_000)
    assert (folder / "generations.jsonl").stat().st_size > 20_000 * PROMPTS
    read_run(folder)
    tracemalloc.start()
    try:
        run = read_run(folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(run) == PROMPTS
    assert peak < 20_000 * PROMPTS / 4


@pytest.mark.parametrize(
    ("former", "present", "alike"),
    [
        ((2, 3), (3, 3), False),  # version, min_new_tokens
        ((1, 3), (3, 0), False),
        ((2, 0), (3, 3), True),
        ((2, 3), (2, 3), True),
        ((3, 3), (3, 0), True),
    ],
)
def test_kl_of_former_results_is_compared_only_where_it_means_the_same(
    tmp_path: Path, former: tuple[int, int], present: tuple[int, int], alike: bool
) -> None:
    """Up to version 2 a test with min_new_tokens kept the reference from ending, too, which hid that part of KL."""
    runs = []
    for name, (version, least) in (("former", former), ("present", present)):
        folder = write_run(tmp_path / name, scores_of(1), sampling={"min_new_tokens": least})
        path = folder / "results.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": version}))
        runs.append(read_run(folder))
    if alike:
        require_comparable(runs)
        return
    expected = r"meanings of KL differ: .*former has a reference that may .*present has the reference as it is;"
    with pytest.raises(UserError, match=expected):
        require_comparable(runs)


def damage(folder: Path, how: str) -> None:
    results, generations = folder / "results.json", folder / "generations.jsonl"
    content = json.loads(results.read_text())
    match how:
        case "no results":
            results.unlink()
        case "half results":
            results.write_text(results.read_text()[:200])
        case "binary results":
            results.write_bytes(b"\xff\xfe\x00")
        case "no metrics":
            results.write_text("[]")
        case "future":
            results.write_text(json.dumps(content | {"schema_version": 99}))
        case "no confidence":
            results.write_text(json.dumps(content | {"evaluation": {}}))
        case "no generations":
            generations.unlink()
        case "other generations":
            generations.write_text(generations.read_text().replace("good", "fine"))


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("no results", "results.json is missing"),
        ("half results", "results.json cannot be read"),
        ("binary results", "results.json cannot be read"),
        ("no metrics", "is no results file"),
        ("future", "schema_version is 99, expected 1 to 3"),
        ("no confidence", "evaluation.confidence is missing, expected a number between 0 and 1"),
        ("no generations", "generations.jsonl is missing"),
        ("other generations", "does not belong to"),
    ],
)
def test_a_run_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path, how: str, complaint: str) -> None:
    damage(write_run(tmp_path, scores_of(1)), how)
    with pytest.raises(UserError, match=complaint) as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("metrics", "score_mean", "low"), "abc", 'metrics.score_mean.low is "abc", expected a number or null'),
        (("metrics", "score_mean", "estimate"), "1.5", 'metrics.score_mean.estimate is "1.5", expected a number;'),
        (("metrics", "score_mean", "estimate"), True, "metrics.score_mean.estimate is true"),
        (("metrics", "score_mean", "n"), 1.5, "metrics.score_mean.n is 1.5, expected a whole number"),
        (("metrics", "score_mean", "method"), ..., "metrics.score_mean.method is missing, expected a text"),
        (("metrics", "score_mean"), 3, "metrics.score_mean is 3, expected an object"),
        (("metrics",), [], "metrics is \\[\\], expected an object"),
        (("data",), "jigsaw", 'data is "jigsaw", expected an object or null'),
        (("data", "sha256"), "x", 'data.sha256 is "x", expected an object'),
        (("evaluation", "confidence"), "0.95", 'evaluation.confidence is "0.95"'),
        (("generations_sha256",), 7, "generations_sha256 is 7, expected a SHA-256"),
        (("training",), {"seed": "a"}, "training.module is missing"),
        (("human_texts",), {"n": 3, "sha256": "?"}, 'human_texts.sha256 is "\\?"'),
        (("schema_version",), "2", 'schema_version is "2", expected 1 to 3'),
    ],
)
def test_a_damaged_entry_is_named_with_its_file(tmp_path: Path, path, value, complaint: str) -> None:
    write_run(tmp_path, scores_of(1))
    file = tmp_path / "results.json"
    content = json.loads(file.read_text())
    *outer, last = path
    place = content
    for key in outer:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{file}: {complaint}") as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value)


WRONG = {
    "generations_sha256": ["g" * 64, "0" * 63, None],
    "evaluation": [None, 3],
    "evaluation.confidence": [0, 1, 95, None, True],
    "evaluation.seed": [-1, 0.5, "0"],
    "evaluation.judges": [[], "polite"],
    "evaluation.toxicity_of": [3],
    "metrics": [None],
    "metrics.score_mean.estimate": [None],
    "metrics.score_mean.low": [True],
    "metrics.score_mean.high": ["1", False],
    "metrics.score_mean.confidence": [0, 1, None],
    "metrics.score_mean.n": [-1, None, True],
    "metrics.score_mean.method": [None, 3],
    "module": [3],
    "policy": [3],
    "policy_sha256": ["policy", "0" * 65],
    "reference": [3],
    "reference_sha256": ["reference"],
    "seed": ["0", True],
    "reward": ["r"],
    "data": [3],
    "data.sha256": [3],
    "data.name": [3],
    "sampling": [[]],
    "method": ["DExperts"],
    "training": [3],
    "training.module": [None],
    "training.method_sha256": ["m"],
    "training.settings": ["s"],
    "training.seed": ["0"],
    "training.steps": [-1, 1.5, None],
    "human_texts": [[]],
    "human_texts.n": [-1, None],
    "human_texts.sha256": [None],
}


@pytest.mark.parametrize("key", WRONG)
def test_every_entry_has_a_kind(tmp_path: Path, key: str) -> None:
    """A whole file is read; the same file with a value of another kind at one place is not."""
    write_run(tmp_path, scores_of(1))
    file = tmp_path / "results.json"
    content = json.loads(file.read_text())
    content["training"] = {"module": "M", "method_sha256": None, "settings": None, "seed": 0, "steps": 3}
    content["human_texts"] = {"n": 3, "sha256": "0" * 64}
    file.write_text(json.dumps(content))
    assert read_results(file) == content
    *outer, last = key.split(".")
    place = content
    for name in outer:
        place = place[name]
    for value in WRONG[key]:
        place[last] = value
        file.write_text(json.dumps(content))
        with pytest.raises(UserError, match=f"{file}: {key} is {re.escape(json.dumps(value)[:30])}"):
            read_results(file)


def test_a_number_that_json_does_not_have_is_refused(tmp_path: Path) -> None:
    file = write_run(tmp_path, scores_of(1)) / "results.json"
    file.write_text(file.read_text().replace('"estimate": ', '"estimate": NaN, "was": ', 1))
    with pytest.raises(UserError, match="NaN is no JSON"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda rows: [], "got no row"),
        (lambda rows: [*rows[:-1], "{broken"], "JSONDecodeError"),
        (lambda rows: [*rows[:-1], "3"], "cannot be read"),
        (lambda rows: [*rows[:-1], rows[-1].replace('"score": ', '"grade": ')], "KeyError: 'score'"),
        (lambda rows: [*rows, rows[0]], "comes up again"),
        (lambda rows: [*rows, rows[-1]], "has 2 completions"),
    ],
)
def test_damaged_generations_are_refused_even_with_their_own_hash(tmp_path: Path, edit, complaint: str) -> None:
    from lightning_rarlhf.records.results_file import file_sha256

    write_run(tmp_path, scores_of(1))
    path = tmp_path / "generations.jsonl"
    path.write_text("".join(f"{row}\n" for row in edit(path.read_text().splitlines())))
    content = json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(content | {"generations_sha256": file_sha256(path)}))
    with pytest.raises(UserError, match=complaint) as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_equal_tests_of_two_policies_are_comparable(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name, scores_of(seed))) for name, seed in (("a", 1), ("b", 2))]
    require_comparable(runs)


def evaluation(**changes: object) -> EvaluationConfig:
    return EvaluationConfig(**({"resamples": 100, "tail_thresholds": (0.0,)} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"data": DATA | {"name": "imdb"}}, "datasets differ: .*a has synthetic, .*b has imdb"),
        ({"data": DATA | {"seed": 3}}, "data seeds differ: .*a has 0, .*b has 3"),
        ({"data": DATA | {"prompt_tokens": 9}}, "prompt lengths differ"),
        ({"data": DATA | {"sha256": {"test": "b" * 64}}}, "test prompts .* differ: .*aaaaaaaaaaaa…, .*bbbbbbbbbbbb…"),
        ({"config": evaluation(seed=7)}, "evaluation seeds differ: .*a has 0, .*b has 7"),
        ({"config": evaluation(toxicity_of="reward")}, "scores that toxicity is read off differ"),
        ({"config": evaluation(perplexity_texts=10)}, "numbers of human texts for perplexity differ"),
        ({"config": evaluation(perplexity_judge="gpt2")}, "judges of perplexity differ"),
        ({"config": evaluation(confidence=0.9)}, "confidence levels of the intervals differ"),
        (
            {"reward": REWARD | {"function": "another.function"}},
            "reward models differ: .*some.function.*another.function",
        ),
        ({"human_texts": {"n": 2, "sha256": "b" * 64}}, "human texts .* differ: .*aaaaaaaaaaaa…, .*bbbbbbbbbbbb…"),
        ({"prompt_scores": difficulty() + 1}, "reward models differ: a prompt's own score is 1 apart"),
        ({"prompt": "question"}, "prompts differ: 120 of 120"),
        ({"first_index": 5}, "prompts differ: 120 of 120"),
    ],
)
def test_runs_that_were_tested_otherwise_are_refused_by_name(tmp_path: Path, options, complaint: str) -> None:
    first = read_run(write_run(tmp_path / "a", scores_of(1)))
    other = dict(options)
    config = other.pop("config", None)
    second = read_run(write_run(tmp_path / "b", scores_of(2), config=config, **other))
    with pytest.raises(UserError, match=complaint) as caught:
        require_comparable([first, first, second])
    assert "\n" not in str(caught.value)


def test_other_numbers_of_prompts_or_completions_are_refused(tmp_path: Path) -> None:
    first = read_run(write_run(tmp_path / "a", scores_of(1)))
    fewer = read_run(write_run(tmp_path / "b", scores_of(2)[:60], prompt_scores=difficulty()[:60]))
    twice = read_run(write_run(tmp_path / "c", np.stack([scores_of(2)] * 2, axis=1)))
    with pytest.raises(UserError, match="numbers of prompts differ: .*a has 120, .*b has 60"):
        require_comparable([first, fewer])
    with pytest.raises(UserError, match="responses per prompt differ: .*a has 1, .*c has 2"):
        require_comparable([first, twice])


def test_how_a_reward_was_run_does_not_make_it_another(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    identity = {"reward": "ClassifierReward", "pretrained": str(tmp_path / "model"), "dtype": "float32"}
    first = read_run(write_run(tmp_path / "a", scores_of(1), reward=identity))
    same = identity | {"pretrained": str(tmp_path / "x" / ".." / "model"), "dtype": "bfloat16"}
    (tmp_path / "x").mkdir()
    require_comparable([first, read_run(write_run(tmp_path / "b", scores_of(2), reward=same))])
