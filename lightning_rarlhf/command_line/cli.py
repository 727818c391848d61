"""The command line: LightningCLI with the run's folder in one place and errors of one line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info

from callbacks.iteration_bar import IterationBar
from callbacks.run_checkpoint import RunCheckpoint
from callbacks.stop_on_signal import StopOnSignal
from lightning_rarlhf.checkpoints.going_on import (
    LAST,
    changes_of_method,
    find_checkpoint,
    is_requeued,
    record_of,
    require_consent,
)
from lightning_rarlhf.command_line.cli_errors import condense
from lightning_rarlhf.command_line.cli_help import describe, parser_settings, read_texts_of_settings
from lightning_rarlhf.command_line.config_file import require_settings
from lightning_rarlhf.command_line.null_values import require_values
from lightning_rarlhf.command_line.wrong_values import require_groups
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.one_move import in_one_move, or_say_why
from lightning_rarlhf.records.provenance import method_settings
from lightning_rarlhf.terminal.plain_text import error_line, first_line
from lightning_rarlhf.terminal.quiet import quiet
from lightning_rarlhf.terminal.redaction import redacted, redacted_yaml
from lightning_rarlhf.trainer.precision import require_asked_precision
from lightning_rarlhf.trainer.run_length import require_steps
from lightning_rarlhf.trainer.run_start import taken_back_if_refused
from lightning_rarlhf.trainer.strategies import (
    require_accelerator,
    require_known_strategy,
    require_readable,
    require_supported,
)

_NONE = re.compile(r"--[^=\s]+=None")


class TrainParser(LightningArgumentParser):
    """Says what is wrong in one line, with the nearest valid key, and exits with status 2."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """No shortened names: a misspelt one might be taken for another's beginning."""
        super().__init__(*args, **{**options, "allow_abbrev": False})

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:  # type: ignore[override]
        """Take null where a class's argument gets it.

        jsonargparse hands `--model.reward.device null` on to the reward's own parser as the text `--device=None`.
        """
        if args is not None:
            args = [f"{given.removesuffix('None')}null" if _NONE.fullmatch(given) else given for given in args]
        return super().parse_args(args, *more, **options)

    def parse_path(self, path: Any, *more: Any, **options: Any) -> Any:
        """Read a configuration file, and say in which line it is none."""
        try:
            if Path(path).is_file():  # a pipe, or standard input, can be read once only
                require_settings(Path(path))
        except UserError as error:
            self.error(str(error), error)
        return super().parse_path(path, *more, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # an alternative is being tried; the caller makes the message
            super().error(message, ex)
        sys.stderr.write(error_line(condense(message, self)))
        self.exit(2)


class SaveRedactedConfig(SaveConfigCallback):
    """Writes ``config.yaml`` beside the logs, without the secrets that the command line or a file may have held."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write once, from the first process."""
        folder = trainer.log_dir  # asked in every process: it is agreed on by all of them
        if not self.already_saved and trainer.is_global_zero and folder is not None:
            path = Path(folder) / self.config_filename
            with or_say_why(path), in_one_move(path) as partial:
                partial.write_text(redacted_yaml(self.parser.dump(self.config, skip_none=False)), encoding="utf-8")
        self.already_saved = True


class TrainCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict` for any module, data module and callback imported beside it.

    Everything that a run writes lies under ``trainer.default_root_dir``.
    """

    def __init__(self, model: type[LightningModule], data: type[LightningDataModule], args: ArgsType = None) -> None:
        quiet()
        read_texts_of_settings(args)
        self._resume_record: dict[str, Any] = {}
        super().__init__(
            model,
            data,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=SaveRedactedConfig,
            save_config_kwargs={"overwrite": True},
            parser_class=TrainParser,
            parser_kwargs=parser_settings(),
            trainer_defaults={
                "max_epochs": 1,
                "log_every_n_steps": 1,
                "num_sanity_val_steps": 0,
                "callbacks": StopOnSignal(),
            },
            args=args,
        )

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """As Lightning does, with this program's own descriptions."""
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        describe(self.parser)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Checkpoints are part of every run."""
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_argument(
            "--resume_changed",
            type=bool,
            default=False,
            help="go on from a checkpoint with other settings of the method than it was written with",
        )

    def before_instantiate_classes(self) -> None:
        """Fill in what follows from another setting, unless the user said it; require a free folder or a checkpoint."""
        config = self.config[self.config.subcommand]
        for part in ("model", "data"):
            require_groups(config[part].class_path, config[part].init_args, part)
            require_values(config[part], part)
        require_values(config.trainer.callbacks, "trainer.callbacks")
        require_known_strategy(config.trainer.strategy)
        require_accelerator(config.trainer.accelerator)
        model, data = config.model.init_args, config.data.init_args
        read_by = "policy" if "policy" in model else "backbone"
        if data.tokenizer not in (None, model[read_by].pretrained):
            raise UserError(
                f"data.tokenizer {data.tokenizer}: prompts need the {read_by}'s own, {model[read_by].pretrained}; "
                "leave it out"
            )
        data.tokenizer, data.tokenizer_revision = model[read_by].pretrained, model[read_by].revision
        if config.checkpoint.dirpath is None:
            config.checkpoint.dirpath = str(Path(config.trainer.default_root_dir or ".") / "checkpoints")
        checkpoints = Path(config.checkpoint.dirpath)
        fits = self.config.subcommand == "fit"
        config.ckpt_path = find_checkpoint(config.get("ckpt_path"), checkpoints, requeued=fits and is_requeued())
        if not fits:
            return
        plain = json.loads(self.parser.dump(self.config, skip_none=False, format="json"))
        self._resume_record = record_of(redacted(plain["fit"]))
        if config.ckpt_path is not None:
            self._go_on(config.ckpt_path, consent=config.resume_changed)
        elif (checkpoints / LAST).exists() and not config.trainer.fast_dev_run:
            raise UserError(
                f"{checkpoints} holds another run's {LAST}; go on from it with --ckpt_path last, or choose a new "
                "--trainer.default_root_dir"
            )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's own, without the option to run what a checkpoint pickles."""
        return {name: {*skipped, "weights_only"} for name, skipped in LightningCLI.subcommands().items()}

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Read checkpoints as plain numbers, texts and tensors, whatever the libraries' defaults are."""
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """As Lightning does; what the trainer refuses is a mistake of the user's.

        Raises:
            UserError: settings of the trainer that do not go together, such as a strategy without its devices.
        """
        with _as_users_mistake("trainer", ValueError, TypeError, MisconfigurationException):
            return super().instantiate_trainer(**kwargs)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """As Lightning does, with this program's progress bar where it would take its own."""
        given = config.get("callbacks") or []
        own = any(isinstance(callback, ProgressBar) for callback in (given if isinstance(given, list) else [given]))
        shown = config.get("enable_progress_bar") is not False and not own
        return super()._instantiate_trainer(config, [*callbacks, IterationBar()] if shown else callbacks)

    def _run_subcommand(self, subcommand: str) -> None:
        """As Lightning does; a run that is refused before its first batch is finished leaves nothing behind."""
        with taken_back_if_refused(self.trainer):
            super()._run_subcommand(subcommand)

    def _set_seed(self) -> None:
        """As Lightning does; numpy's bounds are said in one line."""
        with _as_users_mistake("seed_everything", ValueError):
            super()._set_seed()

    def _go_on(self, checkpoint: str, *, consent: bool) -> None:
        changes = changes_of_method(Path(checkpoint), self._resume_record)
        if not consent:
            require_consent(checkpoint, changes)
        for change in changes:
            rank_zero_info(f"changed on going on: {change.line}")

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning's own method lets a checkpoint's settings override what the user says."""

    def after_instantiate_classes(self) -> None:
        """Tell the module the full configuration, for the result files; stop before other processes are launched."""
        config = self.config[self.config.subcommand]
        require_asked_precision(str(self.trainer.precision), config.trainer.precision)
        require_supported(self.trainer)
        require_readable(self.trainer, config.get("ckpt_path"))
        self.model.config_text = redacted_yaml(self.parser.dump(self.config, skip_none=False))
        if self.config.subcommand == "fit":
            require_steps(self.trainer)
            require_fit(self.model)
            whole = json.loads(self.parser.dump(self.config, skip_none=False, format="json"))
            self.model.method_settings = method_settings(whole["fit"])
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, RunCheckpoint):
                callback.record = self._resume_record


def require_fit(model: Any) -> None:
    """Refuse what only a fit reads before anything is loaded; the optimizer is made once over nothing that matters.

    Raises:
        UserError: settings that the optimizer or the method does not take.
    """
    model.require_fit()
    with _as_users_mistake("model.optimizer", TypeError, ValueError):
        model.make_optimizer([torch.nn.Parameter(torch.zeros(1, 1))])


@contextmanager
def _as_users_mistake(what: str, *kinds: type[Exception]) -> Iterator[None]:
    """Say in one line what a library refuses; what this one refuses says so itself."""
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        raise UserError(f"{what}: {first_line(error)}") from error
