"""The classes against their functions: batch by batch, after a merge, and in two processes."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics import MeanMetric

from lightning_rarlhf.functional.perplexity import text_perplexity
from lightning_rarlhf.functional.risk import cvar
from lightning_rarlhf.functional.tail_reward import tail_reward
from lightning_rarlhf.functional.text import distinct_ngrams, repetition_rate
from lightning_rarlhf.functional.toxicity import maximum_toxicity
from lightning_rarlhf.metrics import (
    DistinctNGrams,
    ExpectedMaximumToxicity,
    RepetitionRate,
    ResponseSummary,
    ScoreSummary,
    TailReward,
    TextPerplexity,
    ToxicityProbability,
    level_name,
)

ROWS = 11  # odd, so that two processes have unequal shares
WORDS = ("good", "bad", "food", "was", "warm")


def data():
    generator = torch.Generator().manual_seed(3)
    pick = torch.randint(len(WORDS), (ROWS, 2, 9), generator=generator).tolist()
    groups = [[" ".join(WORDS[w] for w in words[: row % 9]) for words in texts] for row, texts in enumerate(pick)]
    return {
        "groups": groups,
        "responses": [texts[0] for texts in groups],
        "scores": torch.randn(ROWS, generator=generator),
        "prompt_scores": torch.randn(ROWS, generator=generator),
        "completion_scores": torch.randn(ROWS, 3, generator=generator),
        "perplexities": text_perplexity(
            -torch.rand(ROWS, 6, generator=generator), torch.rand(ROWS, 6, generator=generator) < 0.3
        ),
        "lengths": torch.arange(ROWS),
    }


# metric, the columns that `update` takes, what comes out of all rows at once
CASES = {
    "dist_2": (
        lambda: DistinctNGrams(2),
        ("groups",),
        lambda d: (
            sum(x for g in d["groups"] if not math.isnan(x := distinct_ngrams(g, 2)))
            / sum(any(map(str.split, g)) for g in d["groups"])
        ),
    ),
    "repetition": (
        lambda: RepetitionRate(2),
        ("responses",),
        lambda d: sum(repetition_rate(text, 2) for text in d["responses"]) / ROWS,
    ),
    "perplexity": (
        TextPerplexity,
        ("perplexities",),
        lambda d: d["perplexities"].nanmean().item(),
    ),
    "maximum": (
        ExpectedMaximumToxicity,
        ("completion_scores",),
        lambda d: maximum_toxicity(d["completion_scores"]).mean().item(),
    ),
    "probability": (
        ToxicityProbability,
        ("completion_scores",),
        lambda d: (d["completion_scores"].min(dim=1).values <= 0).float().mean().item(),
    ),
    "tail": (
        lambda: TailReward((0.0, -0.5)),
        ("scores", "prompt_scores"),
        lambda d: {
            "score_tail_le_0": tail_reward(d["scores"], d["prompt_scores"], 0.0).item(),
            "score_tail_le_-0.5": tail_reward(d["scores"], d["prompt_scores"], -0.5).item(),
        },
    ),
    "scores": (
        lambda: ScoreSummary((0.25,)),
        ("scores", "lengths"),
        lambda d: {
            "score_mean": d["scores"].mean().item(),
            "score_std": d["scores"].std().item(),
            "response_length_mean": 5.0,
            "cvar_25": cvar(d["scores"], 0.25).item(),
        },
    ),
    "kl": (MeanMetric, ("scores",), lambda d: d["scores"].mean().item()),
}


def plain(result):
    """Numbers of what `compute` gave."""
    return {name: value.item() for name, value in result.items()} if isinstance(result, dict) else result.item()


def fed(metric, columns, rows):
    whole = data()
    for row in rows:
        metric.update(*(whole[name][row : row + 1] for name in columns))
    return metric


@pytest.mark.parametrize("case", CASES)
def test_batch_by_batch_is_all_at_once(case):
    make, columns, expected = CASES[case]
    assert plain(fed(make(), columns, range(ROWS)).compute()) == pytest.approx(expected(data()), rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_two_states_merge_into_one(case):
    make, columns, expected = CASES[case]
    one, other = fed(make(), columns, range(0, ROWS, 2)), fed(make(), columns, range(1, ROWS, 2))
    one.merge_state(other)
    assert plain(one.compute()) == pytest.approx(expected(data()), rel=1e-5)


def test_reset_forgets():
    metric = fed(DistinctNGrams(1), ("groups",), range(ROWS))
    metric.reset()
    metric.update([["good food"]])
    assert metric.compute() == 1


def test_what_has_no_word_is_left_out():
    metric = DistinctNGrams(1)
    metric.update([["", " "], ["bad bad"]])
    assert metric.compute() == 0.5


@pytest.mark.parametrize("batches", [[[]], [[math.nan, math.nan]], [[math.nan], []]])
def test_the_mean_of_nothing_known_is_nan_and_no_warning(batches):
    metric = TextPerplexity()
    for batch in batches:
        metric.update(torch.tensor(batch))
    assert metric.compute().isnan()
    metric.update(torch.tensor([math.nan, 3.0, 5.0]))
    assert metric.compute() == 4


def test_response_summary_names_its_figures():
    summary = ResponseSummary(torch.device("cpu"))
    summary.update(["good food", ""], torch.tensor([True, False]), torch.tensor([1.0, 3.0]))
    summary.update(["so so so so so so"], torch.tensor([True]), torch.tensor([2.0]))
    found = {name: value.item() for name, value in summary.compute().items()}
    assert found == pytest.approx(
        {
            "dist_1": (1 + 1 / 6) / 2,
            "dist_2": (0.5 + 1 / 6) / 2,
            "dist_3": (0 + 1 / 6) / 2,
            "repetition_rate": (2 / 3) / 3,
            "eos_rate": 2 / 3,
            "kl_mean": 2.0,
        }
    )


def test_level_names():
    assert [level_name(level) for level in (0.1, 0.025, 0.01)] == ["cvar_10", "cvar_2.5", "cvar_1"]


def process(rank, address, results):
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    found = {
        case: plain(fed(make(), columns, range(rank, ROWS, 2)).compute()) for case, (make, columns, _) in CASES.items()
    }
    results.put((rank, found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_two_processes_find_what_one_finds(tmp_path):
    """Unequal shares: six prompts here, five there."""
    context = torch.multiprocessing.get_context("fork")
    results = context.Queue()
    address = f"file://{tmp_path}/meeting"
    processes = [context.Process(target=process, args=(rank, address, results)) for rank in (0, 1)]
    for each in processes:
        each.start()
    found = dict(results.get(timeout=60) for _ in processes)
    for each in processes:
        each.join(timeout=60)
    assert [each.exitcode for each in processes] == [0, 0]
    for case, (_, _, expected) in CASES.items():
        for rank in (0, 1):
            assert found[rank][case] == pytest.approx(expected(data()), rel=1e-5), case


def test_a_perplexity_beyond_float32_counts() -> None:
    metric = TextPerplexity()
    metric.update(torch.tensor([1e39, 3e39], dtype=torch.float64))
    assert metric.compute().item() == pytest.approx(2e39)
