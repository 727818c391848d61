"""The command line: LightningCLI with the run's folder in one place and errors of one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from callbacks.run_checkpoint import RunCheckpoint
from lightning_rarlhf.cli_errors import condense
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.quiet import quiet

_USAGE = "train.py {name} --config FILE [--config OVERLAY] [--model.KEY VALUE] [--data.KEY VALUE] [--trainer.KEY VALUE]"


class OneLineParser(LightningArgumentParser):
    """Says what is wrong in one line, with the nearest valid key, and exits with status 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # an alternative is being tried; the caller makes the message
            super().error(message, ex)
        sys.stderr.write(f"error: {condense(message, self)}\n")
        self.exit(2)


class TrainCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict` for any module, data module and callback imported beside it.

    Everything that a run writes lies under ``trainer.default_root_dir``.
    """

    def __init__(self, model: type[LightningModule], data: type[LightningDataModule], args: ArgsType = None) -> None:
        quiet()
        super().__init__(
            model,
            data,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_kwargs={"overwrite": True},
            parser_class=OneLineParser,
            parser_kwargs={
                name: {"usage": _USAGE.format(name=name)} for name in ("fit", "validate", "test", "predict")
            },
            trainer_defaults={"max_epochs": 1, "log_every_n_steps": 1, "num_sanity_val_steps": 0},
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what must agree, so that it is said once."""
        parser.link_arguments("model.init_args.policy.pretrained", "data.init_args.tokenizer")
        parser.link_arguments("model.init_args.policy.revision", "data.init_args.tokenizer_revision")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.link_arguments("trainer.default_root_dir", "checkpoint.dirpath", compute_fn=_checkpoint_folder)

    def _parse_ckpt_path(self) -> None:
        """Require the checkpoint, and do no more: Lightning's own method lets its settings override the user's.

        Raises:
            UserError: no such file; for ``last``, none in the run's folder (Lightning would start afresh).
        """
        config = self.config[self.config.subcommand]
        asked = config.get("ckpt_path")
        path = Path(config.checkpoint.dirpath) / "last.ckpt" if asked == "last" else Path(asked or ".")
        if asked not in (None, "best") and not path.exists():
            raise UserError(
                f"ckpt_path {asked}: there is no {path}; give a checkpoint, or leave ckpt_path out to start afresh"
            )

    def after_instantiate_classes(self) -> None:
        """Tell the module the full configuration, for the result files."""
        self.model.config_text = self.parser.dump(self.config, skip_none=False)


def _checkpoint_folder(root: Any) -> str:
    return str(Path(root or ".") / "checkpoints")
