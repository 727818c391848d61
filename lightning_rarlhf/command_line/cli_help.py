"""What `--help` says where the libraries' own words are cut, are of something else, or lack the settings' texts."""

from __future__ import annotations

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import Any

from jsonargparse import DefaultHelpFormatter, set_parsing_settings
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

_SUBCOMMANDS = {
    "fit": "train a policy (SFT, RLHF, RA-RLHF, ...) or a reward model, as the configuration says",
    "validate": "print what a fit's validation would log",
    "test": "answer the test prompts: results.json, generations.jsonl and a table of both",
    "predict": "answer prompts of your own: predictions.jsonl",
}
_USAGE = "train.py {name} --config FILE [--config OVERLAY] [--model.KEY VALUE] [--data.KEY VALUE] [--trainer.KEY VALUE]"
_SETTINGS = """\
The settings above are the trainer's and the checkpoints'. Those of a module, of its data and of a callback:
  train.py {name} --model.help RiskAversePPOModule
  train.py {name} --data.help TextFileDataModule
  train.py {name} --trainer.callbacks.help RiskSchedule
Those of a class within one, such as its reward, need the outer class too:
  train.py {name} --config FILE --model.reward.help ClassifierReward
All that a command would run with, defaults included: --print_config
"""
_TITLES = {"model": "The method", "data": "Its texts", "ckpt_path": "Its state"}
_CHECKPOINT = {
    "fit": "go on from: last or best, those of the run's folder; auto = its last one if there is one; or a file",
    "": "take the weights of: last or best, the checkpoints in the run's folder; or a file. none = as configured",
}


class _Lines(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the lines of what stands before and after the options."""


def parser_settings() -> dict[str, Any]:
    """What `LightningCLI` makes its parsers with: the main one, and by its name each subcommand's."""
    return {
        "description": "Trains language models against their worst outputs, and tests them. First commands: README.md.",
        "formatter_class": _Lines,
        **{
            name: {
                "usage": _USAGE.format(name=name),
                "description": f"{does[0].upper()}{does[1:]}.",
                "epilog": _SETTINGS.format(name=name),
            }
            for name, does in _SUBCOMMANDS.items()
        },
    }


def describe(parser: LightningArgumentParser) -> None:
    """Replace the descriptions that Lightning takes from its Trainer: they are cut, or of options that are not here.

    Args:
        parser: with all its subcommands.
    """
    subcommands = parser._subcommands_action
    assert subcommands is not None
    for listed in subcommands._choices_actions:
        listed.help = _SUBCOMMANDS[listed.dest]
    for name, each in subcommands._name_parser_map.items():
        for group in each._action_groups:
            for action in group._group_actions:
                group.title = _TITLES.get(action.dest, group.title)
                if action.dest == "ckpt_path":
                    action.help = _CHECKPOINT.get(name, _CHECKPOINT[""])


def read_texts_of_settings(args: ArgsType) -> None:
    """Let jsonargparse read the texts under the settings' fields, which costs a second, where help is asked for.

    Args:
        args: of the command line; none = the process's own.
    """
    given = sys.argv[1:] if args is None else args
    asked = isinstance(given, Sequence) and any(
        word in ("-h", "--help") or word.partition("=")[0].endswith(".help") for word in given
    )
    set_parsing_settings(docstring_parse_attribute_docstrings=asked)
