from __future__ import annotations

from pathlib import Path

import pytest

from lightning_rarlhf.errors import UserError
from lightning_rarlhf.records.provenance import training_record
from lightning_rarlhf.records.results import Run, read_run
from lightning_rarlhf.report.identity import seeds_unknown
from lightning_rarlhf.report.methods import group, labels_of, method_folder
from tests.report.run_folders import scores_of, write_run


@pytest.mark.parametrize(
    ("folder", "method"),
    [
        ("/a/rlhf", "/a/rlhf"),
        ("/a/rlhf/seed_0", "/a/rlhf"),
        ("/a/rlhf/seed=12", "/a/rlhf"),
        ("/a/rlhf/7", "/a/rlhf/7"),
        ("/a/rlhf/version_3", "/a/rlhf/version_3"),
        ("/a/rlhf-seed1", "/a/rlhf"),
        ("/a/rlhf_SEED_1", "/a/rlhf"),
        ("/a/seedling", "/a/seedling"),
        ("/a/kl-6", "/a/kl-6"),
    ],
)
def test_a_method_is_its_folder_without_the_seed(folder: str, method: str) -> None:
    assert method_folder(Path(folder)) == Path(method)


def labels(*folders: str, **given: str) -> list[str]:
    return labels_of([Path(folder) for folder in folders], {Path(folder): label for folder, label in given.items()})


def test_seeds_share_a_label_and_methods_do_not() -> None:
    assert labels("/a/rlhf/seed_0", "/a/sft", "/a/rlhf/seed_1") == ["rlhf", "sft", "rlhf"]


def test_folders_of_one_name_are_told_apart_by_their_parents() -> None:
    assert labels("/a/rlhf/test", "/a/sft/test", "/a/ra") == ["rlhf/test", "sft/test", "ra"]
    assert labels("/1/a/rlhf", "/2/a/rlhf") == ["1/a/rlhf", "2/a/rlhf"]


def test_a_given_label_counts_and_is_not_taken_by_another() -> None:
    assert labels_of([Path("/a/x"), Path("/a/rlhf")], {Path("/a/x"): "rlhf"}) == ["rlhf", "a/rlhf"]


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return [read_run(write_run(tmp_path / f"run{seed}", scores_of(seed))) for seed in range(3)]


def test_groups_keep_the_order_of_their_first_run(runs: list[Run]) -> None:
    methods = group(runs, ["b", "a", "b"])
    assert [(method.label, method.runs) for method in methods] == [("b", (runs[0], runs[2])), ("a", (runs[1],))]


def test_one_run_twice_is_no_two_seeds(runs: list[Run]) -> None:
    with pytest.raises(UserError, match="a: .*run0 and .*run0 have the same responses"):
        group([runs[0], runs[0]], ["a", "a"])


def trained(folder: Path, seed: int, *, number: int, kl_target: float = 6.0, **identity: object) -> Run:
    settings = {"model": {"kl": {"target": kl_target}}}
    training = training_record("RiskAversePPOModule", settings, seed=seed, steps=10)
    return read_run(write_run(folder, scores_of(number), **({"training": training} | identity)))


def test_runs_that_differ_in_the_training_seed_alone_are_seeds(tmp_path: Path) -> None:
    runs = [trained(tmp_path / f"r{seed}", seed, number=seed) for seed in range(2)]
    assert [len(method.runs) for method in group(runs, ["a", "a"])] == [2]
    assert not seeds_unknown(runs)
    assert seeds_unknown([trained(tmp_path / f"u{n}", 0, number=n, training=None) for n in range(2)])


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"kl_target": 3.0}, r"training.settings.model.kl.target is 6.0 in .*first, 3.0 in .*other"),
        ({"training": None}, r"training.module is RiskAversePPOModule in .*first, not set in .*other"),
        ({"module": "SFTModule"}, r"module is PPO in .*first, SFTModule in .*other"),
        ({"sampling": {"temperature": 2.0, "top_p": 1.0}}, r"sampling.temperature is 1.0 in .*first, 2.0 in .*other"),
        ({"method": {"k": 4}}, r"method.k is not set in .*first, 4 in .*other"),
    ],
)
def test_runs_of_other_methods_under_one_label_are_refused_by_name(tmp_path: Path, other, difference: str) -> None:
    runs = [trained(tmp_path / "first", 0, number=0), trained(tmp_path / "other", 1, number=1, **other)]
    with pytest.raises(UserError, match=f"a: {difference}; seeds of one method expected") as caught:
        group(runs, ["a", "a"])
    assert "\n" not in str(caught.value)


def test_one_training_seed_twice_is_no_two_seeds(tmp_path: Path) -> None:
    runs = [trained(tmp_path / name, 3, number=number) for number, name in enumerate("xy")]
    with pytest.raises(UserError, match="x and .*y have the same training seed, 3"):
        group(runs, ["a", "a"])
