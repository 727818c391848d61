"""What `--help` tells: each setting's own text, this program's commands and checkpoints in place of the library's."""

from __future__ import annotations

import re
from dataclasses import fields

import jsonargparse
import pytest

import train
from lightning_rarlhf.command_line.cli_help import read_texts_of_settings
from lightning_rarlhf.config import EvaluationConfig, GuardConfig, KLConfig, PolicyConfig, PPOConfig, SamplingConfig

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def shown(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as ended:
        train.main(list(args))
    assert ended.value.code == 0
    return re.sub(r"-\s+|\s+", lambda gap: gap[0][0] if gap[0][0] == "-" else " ", capsys.readouterr().out)


def test_every_setting_of_a_module_has_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "fit", "--model.help", "RiskAversePPOModule")
    groups = {"policy": PolicyConfig, "sampling": SamplingConfig, "ppo": PPOConfig, "kl": KLConfig}
    for group, config in {**groups, "evaluation": EvaluationConfig, "guard": GuardConfig}.items():
        for setting in fields(config):
            described = re.search(rf" --model\.{group}\.{setting.name} (?:[A-Z_]+|\[\S+|\{{\S+) (?!\()\w+", text)
            assert described, f"{group}.{setting.name}"
    assert "divides the logits before anything else (paper: 1)" in text


def test_texts_are_read_only_where_help_is_asked_for() -> None:
    for args, asked in (
        (["fit", "--help"], True),
        (["fit", "--data.help=TextFileDataModule"], True),
        (["fit", "--config", "configs/jigsaw.yaml"], False),
    ):
        read_texts_of_settings(args)
        assert jsonargparse._optionals.get_docstring_parse_options()["attribute_docstrings"] is asked


def test_the_commands_are_told_whole(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "--help")
    assert "predictions.jsonl" in text
    assert "Lightning Trainer command line tool" not in text


def test_a_command_tells_its_checkpoints_and_where_the_other_settings_are(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "fit", "--help")
    assert "auto = its last one if there is one" in text
    assert "train.py fit --model.help RiskAversePPOModule" in text
    assert "hpc" not in text
