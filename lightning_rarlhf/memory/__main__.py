"""``python -m lightning_rarlhf.memory --config configs/jigsaw.yaml [--device_memory 80GiB]``: will the run fit?"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import train
from datamodules import PromptDataModule
from lightning_rarlhf.base_modules.language_module import LanguageModule
from lightning_rarlhf.command_line.cli import TrainCLI, require_fit
from lightning_rarlhf.config import PolicyConfig
from lightning_rarlhf.errors import UserError, mistake_behind
from lightning_rarlhf.memory.advice import advice
from lightning_rarlhf.memory.estimate import Estimate, RewardSettings, Run, estimate, reward_bytes
from lightning_rarlhf.ppo_update import rows_at_a_time
from lightning_rarlhf.reference import is_start, reference_of
from lightning_rarlhf.reward_models import ClassifierReward
from lightning_rarlhf.terminal.plain_text import error_line

_HELP = """usage: python -m lightning_rarlhf.memory [--device_memory 80GiB] [--processes N] --config FILE [...]

Estimates what a run of `train.py fit` with the same arguments needs on each device, phase by phase, from the models'
configurations alone: nothing is loaded. Exit status: 0 it fits (or no --device_memory was given), 1 it does not, 2 a
mistake.

  --device_memory SIZE   of each device, such as 24GiB; says what to change when the run does not fit
  --processes N          devices that the run is divided among, where trainer.devices does not say it
"""
_UNITS = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SPARE = 0.1  # of a device: the driver's own memory, and what an allocator cannot use


class _Settings(TrainCLI):
    """Reads a run's settings and makes its module and data module, which load nothing, but starts nothing."""

    def before_instantiate_classes(self) -> None:
        """Let a folder that is in use be asked about."""

    def instantiate_trainer(self, **settings: Any) -> None:  # type: ignore[override]
        """Make none: the devices that the run wants need not be here."""

    def after_instantiate_classes(self) -> None:
        """Nothing to check against a trainer; what `fit` refuses for its settings alone is refused here too."""
        require_fit(self.model)

    def _run_subcommand(self, subcommand: str) -> None:
        """Do not fit."""


def run_of(arguments: Sequence[str], processes: int | None) -> Run:
    """What decides the memory of ``train.py fit ARGUMENTS``.

    Raises:
        UserError: a method whose memory is not estimated.
    """
    with warnings.catch_warnings():  # the arguments are those of the command line, less two of our own
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        cli: Any = _Settings(LanguageModule, PromptDataModule, args=["fit", *arguments, "--seed_everything", "false"])
    module, data, trainer = cli.model, cli.datamodule, cli.config.fit.trainer
    if not hasattr(module, "ppo"):
        raise UserError(f"{type(module).__name__}: only the memory of RiskAversePPOModule is estimated")
    strategy = str(getattr(trainer.strategy, "class_path", trainer.strategy))
    devices = processes or _devices(trainer.devices) * int(trainer.num_nodes)
    rows = -(-data.batch_size // devices)
    minibatch = -(-min(module.ppo.minibatch_size, data.batch_size) // devices)
    device = "cpu" if str(trainer.accelerator) == "cpu" else "cuda"
    at_a_time = module.ppo.micro_batch_size or rows_at_a_time(
        data.prompt_tokens + module.sampling.max_new_tokens, device
    )
    policy: PolicyConfig = module.policy_config
    return Run(
        policy=policy,
        reference=_reference(policy, module.reference_name),
        reward=_reward(module.reward, torch.device(device)),
        optimizer=module.make_optimizer,
        rows=rows,
        update_rows=min(minibatch, at_a_time or minibatch),
        most_sampled=module.ppo.micro_rollout_batch_size,
        prompt_tokens=data.prompt_tokens,
        sampling=module.sampling,
        autocast=str(trainer.precision) == "bf16-mixed",
        processes=devices,
        shards="fsdp2" in strategy.lower(),
        on_gpu=device != "cpu",
    )


def _reference(policy: PolicyConfig, named: str | None) -> PolicyConfig | None:
    own = is_start(policy, named)
    if own and policy.lora is not None:
        return None
    name, revision = reference_of(policy, named)
    return PolicyConfig(
        pretrained=name,
        revision=revision,
        frozen_layers=policy.frozen_layers if own else 0,
        quantization=policy.quantization,
        dtype=policy.dtype,
    )


def _reward(reward: Any, device: torch.device) -> RewardSettings | None:
    if not isinstance(reward, ClassifierReward):
        return None
    return RewardSettings(
        pretrained=reward.pretrained,
        revision=reward.revision,
        dtype=reward.dtype,
        quantized=reward.load_in_8bit,
        batch_size=reward.batch_size,
        elsewhere=reward.device is not None,
        beside_sampling=reward.works_beside(device),
    )


def _devices(asked: Any) -> int:
    if isinstance(asked, list):
        return len(asked)
    text = str(asked)
    return int(text) if text.isdigit() and int(text) > 0 else 1


def _bytes(text: str) -> int:
    found = re.fullmatch(r"([0-9.]+)\s*([KMG]i?B)", text, flags=re.IGNORECASE)
    if found is None:
        raise UserError(f"--device_memory {text}: expected a size such as 80GiB")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def _in_units(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def report(run: Run, found: Estimate) -> str:
    """The estimate as text: what is held all the time, then each phase."""
    lines = [f"one of {run.processes} device(s), {run.rows} prompts each, {run.update_rows} in a backward pass", ""]
    lines += ["held all the time", *_lines(found.held)]
    for phase in found.phases:
        lines += [f"{phase}: {_in_units(found.peak(phase))}", *_lines(found.phases[phase])]
    phase, worst = found.worst
    if run.reward is None:
        lines += ["", "the reward is no classifier of ours; what it needs is not counted"]
    elif run.reward.elsewhere:
        lines += ["", f"the reward model's own device: {_in_units(reward_bytes(run))}"]
    if run.policy.compile_sampling:
        lines += ["", "compiled sampling keeps up to two caches more, of validation's batches, which are not counted"]
    return "\n".join([*lines, "", f"worst: {phase}, {_in_units(worst)}"])


def _lines(parts: Mapping[str, int]) -> list[str]:
    return [f"    {name:<48} {_in_units(size):>12}" for name, size in parts.items() if size]


def _option(arguments: list[str], name: str) -> str | None:
    """Take an option of ours out of train.py's."""
    for position, word in enumerate(arguments):
        if word == name or word.startswith(f"{name}="):
            value = word.partition("=")[2] if "=" in word else "".join(arguments[position + 1 : position + 2])
            del arguments[position : position + (1 if "=" in word else 2)]
            return value
    return None


def main(args: Sequence[str] | None = None) -> int:
    """Print the estimate; 1 if it does not fit, 2 and one line for a mistake."""
    arguments = list(sys.argv[1:] if args is None else args)
    if not arguments or {"-h", "--help"} & set(arguments):
        sys.stdout.write(_HELP)
        return 0
    try:
        return _answer(arguments)
    except ValueError as error:
        mistake = mistake_behind(error)
        if mistake is None:
            raise
        sys.stderr.write(error_line(str(mistake)))
        return 2


def _answer(arguments: list[str]) -> int:
    size, processes = _option(arguments, "--device_memory"), _option(arguments, "--processes")
    if processes is not None and not (processes.isdigit() and int(processes) > 0):
        raise UserError(f"--processes {processes}: expected a number from 1 on")
    limit = None if size is None else int(_bytes(size) * (1 - _SPARE))
    run = run_of(arguments, None if processes is None else int(processes))
    found = estimate(run)
    sys.stdout.write(report(run, found) + "\n")
    if limit is None:
        return 0
    if found.worst[1] <= limit:
        sys.stdout.write(f"fits into {size}, of which a tenth is left for the driver and for gaps\n")
        return 0
    sys.stdout.write(f"does not fit into {size}, of which a tenth is left for the driver and for gaps; one by one:\n")
    steps = advice(run, limit)
    for says, after in steps:
        sys.stdout.write(f"    {_in_units(after):>12} with {says}\n")
    if not steps or steps[-1][1] > limit:
        sys.stdout.write("    still too much: divide the weights (configs/gptj/fsdp2.yaml), or take a smaller model\n")
    return 1


_NAMED = train.__all__  # importing train.py lets a YAML name classes without their modules' paths


if __name__ == "__main__":
    raise SystemExit(main())
