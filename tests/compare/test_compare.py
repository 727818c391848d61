"""The runner of comparisons: its plan, what it leaves out, what it goes on with, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_rarlhf.compare.__main__ import main
from lightning_rarlhf.compare.runner import alone, run_stages, state_of
from lightning_rarlhf.compare.stages import METHODS, Settings, chosen, plan, report_commands
from lightning_rarlhf.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def settings(tmp_path, **changes):
    return Settings(**{"task": "jigsaw", "configs": CONFIGS, "runs": tmp_path / "runs", **changes})


class Train:
    """Stands in for train.py: notes its arguments and writes the file that says done."""

    def __init__(self, stages, *, failing=(), stopping=()):
        self.stages = {stage.command: stage for stage in stages}
        self.failing, self.stopping = failing, stopping
        self.ran: list[str] = []
        self.resumed: list[str] = []

    def __call__(self, arguments, log):
        command = tuple(arguments)
        if command[-2:] == ("--ckpt_path", "last"):
            command = command[:-2]
            self.resumed.append(self.stages[command].name)
        stage = self.stages[command]
        self.ran.append(stage.name)
        log.write_text(f"some line\nerror: {stage.name} said why\n")
        if stage.name in self.failing:
            return 2
        if stage.name in self.stopping:
            (stage.folder / "checkpoints").mkdir(exist_ok=True)
            (stage.folder / "checkpoints" / "last.ckpt").touch()
            return 0
        stage.done.parent.mkdir(parents=True, exist_ok=True)
        stage.done.write_text("{}")
        return 0


def test_every_stage_comes_after_what_it_needs(tmp_path):
    stages = plan(settings(tmp_path, seeds=3))
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    for number, stage in enumerate(stages):
        assert set(stage.needs) <= set(names[:number]), stage
    assert sum(name.startswith("rarlhf seed") for name in names) == 3 * 2
    assert len({(stage.folder, stage.kind) for stage in stages}) == len(stages)


def test_every_method_stands_in_the_configurations_of_every_task(tmp_path):
    for task in ("imdb", "jigsaw", "real_toxicity_prompts"):
        for stage in plan(settings(tmp_path, task=task)):
            files = [stage.command[n + 1] for n, word in enumerate(stage.command) if word == "--config"]
            assert all(Path(file).is_file() for file in files)


def test_methods_bring_what_they_need_and_arguments_reach_their_stages_alone(tmp_path):
    asked = settings(
        tmp_path,
        methods=("quark",),
        extra=(("all", ("--a",)), ("quark:fit", ("--b", "1")), ("test", ("--c",))),
        policy="some/policy",
        data="some/data",
        reward="some/reward",
    )
    assert [method.name for method in chosen(asked)] == ["sft", "quark"]
    by_name = {stage.name: stage.command for stage in plan(asked)}
    assert by_name["quark seed 0: fit"][-3:] == ("--a", "--b", "1")
    assert by_name["sft: test"][-2:] == ("--a", "--c")
    assert "--b" not in by_name["sft: fit"]
    assert "some/policy" in by_name["sft: fit"]
    assert "some/policy" not in by_name["quark seed 0: fit"]
    assert all("some/data" in command for command in by_name.values())
    assert [name for name, command in by_name.items() if "some/reward" not in command] == ["sft: fit"]


def test_a_second_run_does_nothing_and_more_seeds_add_only_theirs(tmp_path):
    stages = plan(settings(tmp_path))
    train = Train(stages)
    assert run_stages(stages, train, lambda line: None) == []
    assert train.ran == [stage.name for stage in stages]
    again, said = Train(stages), []
    assert run_stages(stages, again, said.append) == []
    assert again.ran == []
    assert all("done before" in line for line in said)
    more = plan(settings(tmp_path, seeds=2))
    added = Train(more)
    run_stages(more, added, lambda line: None)
    assert all("seed 1" in name for name in added.ran)
    assert len(added.ran) == len(more) - len(stages) > 0


def test_a_failure_stops_only_what_needs_it_and_says_why(tmp_path):
    stages = plan(settings(tmp_path))
    train = Train(stages, failing=["rlhf seed 0: fit"])
    problems = run_stages(stages, train, lambda line: None)
    assert problems[0].startswith("rlhf seed 0: fit: exit status 2: error: rlhf seed 0: fit said why (whole log: ")
    assert problems[1] == "rlhf seed 0: test: not begun, rlhf seed 0: fit is missing"
    assert len(problems) == 2
    assert "rarlhf seed 0: test" in train.ran


def test_a_fit_that_was_stopped_goes_on_from_its_checkpoint(tmp_path):
    stages = plan(settings(tmp_path, methods=("rarlhf",)))
    run_stages(stages, Train(stages, stopping=["rarlhf seed 0: fit"]), lambda line: None)
    stopped = next(stage for stage in stages if stage.name == "rarlhf seed 0: fit")
    assert state_of(stopped) == "stopped"
    train = Train(stages)
    assert run_stages(stages, train, lambda line: None) == []
    assert train.resumed == ["rarlhf seed 0: fit"]
    assert state_of(stopped) == "done"


def test_other_settings_than_the_finished_runs_are_refused_before_anything_runs(tmp_path):
    stages = plan(settings(tmp_path))
    run_stages(stages, Train(stages), lambda line: None)
    changed = plan(settings(tmp_path, extra=(("quark:fit", ("--x", "2")),)))
    train = Train(changed)
    with pytest.raises(UserError, match=r"quark seed 0: fit was run with other settings \(--x 2 only now\); delete"):
        run_stages(changed, train, lambda line: None)
    assert train.ran == []


def test_a_changed_configuration_file_is_other_settings(tmp_path):
    overlay = tmp_path / "own.yaml"
    overlay.write_text("seed_everything: 1\n")
    stages = plan(settings(tmp_path, methods=("sft",), extra=(("sft:fit", ("--config", str(overlay))),)))
    run_stages(stages, Train(stages), lambda line: None)
    overlay.write_text("seed_everything: 2\n")
    with pytest.raises(
        UserError, match=r"sft: fit was run with other settings \(\S+own\.yaml has changed since\); del"
    ):
        run_stages(stages, Train(stages), lambda line: None)


def test_results_of_two_upstream_models_are_never_mixed(tmp_path):
    """SFT is deleted: what came of it is named, and runs again once it is deleted, too."""
    stages = plan(settings(tmp_path, methods=("sft", "rlhf")))
    runs = tmp_path / "runs"
    run_stages(stages, Train(stages), lambda line: None)
    shutil.rmtree(runs / "sft")
    train = Train(stages)
    expected = rf"rlhf seed 0: fit was made from another sft: fit .*, and 1 more .* delete {runs}/rlhf/seed_0$"
    with pytest.raises(UserError, match=expected):
        run_stages(stages, train, lambda line: None)
    assert train.ran == []
    kept = tmp_path / "kept"
    (runs / "rlhf").rename(kept)
    run_stages(stages[:2], train, lambda line: None)
    kept.rename(runs / "rlhf")
    with pytest.raises(UserError, match="rlhf seed 0: fit was made from another sft: fit"):  # SFT is there, another one
        run_stages(stages, train, lambda line: None)
    shutil.rmtree(runs / "rlhf")
    assert run_stages(stages, train, lambda line: None) == []
    assert train.ran == [stage.name for stage in stages]


def test_a_fit_that_is_made_again_wants_its_test_again(tmp_path):
    stages = plan(settings(tmp_path, methods=("rlhf",)))
    run_stages(stages, Train(stages), lambda line: None)
    seed = tmp_path / "runs" / "rlhf" / "seed_0"
    shutil.rmtree(seed / "huggingface")
    with pytest.raises(UserError, match=rf"seed 0: test was made from another rlhf .* delete {seed}/results.json$"):
        run_stages(stages, Train(stages), lambda line: None)
    (seed / "results.json").unlink()
    train = Train(stages)
    assert run_stages(stages, train, lambda line: None) == []
    assert train.ran == ["rlhf seed 0: fit", "rlhf seed 0: test"]


@pytest.mark.parametrize(("presses", "told"), [(1, ["2"]), (2, ["2", "2", "15"])])
def test_ctrl_c_tells_a_fit_once_and_a_second_one_ends_it(tmp_path, presses, told):
    """The terminal tells both processes; a signal more from the runner would cut the checkpoint short."""
    (tmp_path / "train.py").write_text(
        "import signal, time\n"
        "told = []\n"
        "for number in (2, 15):\n"
        "    signal.signal(number, lambda number, frame: told.append(number))\n"
        "open('ready', 'w').close()\n"
        "end = time.monotonic() + 10\n"
        f"while len(told) < {len(told)} and time.monotonic() < end:\n"
        "    time.sleep(0.02)\n"
        "time.sleep(0.2)\n"
        "open('told', 'w').write(' '.join(map(str, told)))\n"
    )
    words = (
        "import signal; signal.signal(2, signal.default_int_handler)\n"  # a job in the background inherits none
        "from pathlib import Path; from lightning_rarlhf.compare.runner import train; train([], Path('log'))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", words], cwd=tmp_path, start_new_session=True, stderr=subprocess.DEVNULL
    )
    ready = tmp_path / "ready"
    while not ready.exists() and process.poll() is None:
        time.sleep(0.02)
    for _ in range(presses):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.5)
    assert process.wait(timeout=20) != 0
    assert (tmp_path / "told").read_text().split() == told


def test_a_half_written_record_does_not_stop_a_comparison(tmp_path):
    """A run that another tool made has no record; its files count."""
    stages = plan(settings(tmp_path, methods=("base",)))
    run_stages(stages, Train(stages), lambda line: None)
    for record in (tmp_path / "runs").rglob("*-stage.json"):
        record.unlink()
    assert {state_of(stage) for stage in stages} == {"done"}


def test_the_report_is_of_what_is_done(tmp_path):
    asked = settings(tmp_path, seeds=2)
    assert report_commands(asked) == []
    stages = plan(asked)
    run_stages(stages, Train(stages, failing=["quark seed 1: fit"]), lambda line: None)
    everything, untrained = (
        dict(command[n + 1].split("=") for n, word in enumerate(command) if word == "--name")
        for command in report_commands(asked)
    )
    assert list(everything) == [method.label for method in METHODS if method.shown]
    assert len(everything["Quark"].split(",")) == 1
    assert len(everything["RA-RLHF"].split(",")) == 2
    # what is applied to a policy is compared with that policy, which therefore stands first
    assert next(iter(untrained)) == "base"
    assert set(untrained) == {method.label for method in METHODS if method.shown and method.fit is None}


def test_methods_of_no_policy_to_compare_with_have_one_report(tmp_path):
    asked = settings(tmp_path, methods=("rlhf",))
    stages = plan(asked)
    run_stages(stages, Train(stages), lambda line: None)
    assert [command[-1] for command in report_commands(asked)] == [str(asked.runs / "report")]


def test_two_comparisons_in_one_folder_are_refused(tmp_path):
    with alone(tmp_path), pytest.raises(UserError, match="another comparison is running here"), alone(tmp_path):
        pass


def test_a_dry_run_shows_the_plan_and_writes_nothing(tmp_path, capsys):
    assert main(["--dry_run", "--runs", str(tmp_path / "runs"), "--methods", "base"]) == 0
    out = capsys.readouterr().out
    assert "[1/3] sft: fit (to do)" in out
    assert "train.py test --config" in out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--task", "imbd"], "--task: got 'imbd', expected one of imdb, jigsaw, real_toxicity_prompts"),
        (["--methods", "rlfh"], "--methods: got 'rlfh', expected some of sft, "),
        (["--seeds", "0"], "--seeds: got 0, expected 1 or more"),
        (["--with", "quark"], "--with: got 'quark', expected TAG="),
        (["--with", "qark=--x 1"], "--with: got tag 'qark', expected all, fit, test, METHOD"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(tmp_path, capsys, arguments, expected):
    assert main([*arguments, "--runs", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {expected}")
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_stage_writes_down_its_command_and_time(tmp_path):
    stages = plan(settings(tmp_path, methods=("base",)))
    run_stages(stages, Train(stages), lambda line: None)
    record = json.loads((tmp_path / "runs" / "base" / "test-stage.json").read_text())
    assert record["stage"] == "base: test"
    assert record["command"][0] == "test"
    assert record["seconds"] >= 0
