from __future__ import annotations

from pathlib import Path

import pytest

from lightning_rarlhf.errors import UserError
from lightning_rarlhf.report.methods import group, labels_of, method_folder
from lightning_rarlhf.results import Run, read_run
from tests.report.run_folders import scores_of, write_run


@pytest.mark.parametrize(
    ("folder", "method"),
    [
        ("/a/rlhf", "/a/rlhf"),
        ("/a/rlhf/seed_0", "/a/rlhf"),
        ("/a/rlhf/seed=12", "/a/rlhf"),
        ("/a/rlhf/7", "/a/rlhf"),
        ("/a/rlhf/version_3", "/a/rlhf"),
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


def test_a_given_label_counts_and_is_not_taken_by_another() -> None:
    assert labels_of([Path("/a/x"), Path("/a/rlhf")], {Path("/a/x"): "rlhf"}) == ["rlhf", "a/rlhf"]


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return [read_run(write_run(tmp_path / f"run{seed}", scores_of(seed))) for seed in range(3)]


def test_groups_keep_the_order_of_their_first_run(runs: list[Run]) -> None:
    methods = group(runs, ["b", "a", "b"])
    assert [(method.label, method.runs) for method in methods] == [("b", (runs[0], runs[2])), ("a", (runs[1],))]


def test_one_run_twice_is_no_two_seeds(runs: list[Run]) -> None:
    with pytest.raises(UserError, match="a: .*run0 and .*run0 hold the same responses"):
        group([runs[0], runs[0]], ["a", "a"])


def test_other_code_is_no_seed(tmp_path: Path, runs: list[Run]) -> None:
    sft = read_run(write_run(tmp_path / "sft", scores_of(5), module="SFT"))
    with pytest.raises(UserError, match="run0 is a PPO, .*sft a SFT"):
        group([runs[0], sft], ["a", "a"])
