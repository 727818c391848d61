"""Which of Lightning's strategies compute the method, and FSDP2 as one of them."""

from __future__ import annotations

import difflib
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, StrategyRegistry

from lightning_rarlhf.checkpoints.sharded_checkpoint import load_shards, save_shards
from lightning_rarlhf.checkpoints.trained_weights import only_trained
from lightning_rarlhf.distributed import gather_items
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.trainer.sharding import shard, whole

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from lightning_rarlhf.language_model import LanguageModel


_NAMES = ("auto", "ddp", "fsdp2")


class FSDP2Strategy(ModelParallelStrategy):
    """Weights, gradients and optimizer state divided among all processes, a transformer block at a time."""

    def __init__(
        self,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta = timedelta(minutes=30),
    ) -> None:
        """Choose how checkpoints are written and how long to wait for a process.

        Args:
            save_distributed_checkpoint: a checkpoint is a folder to which every process writes its part; false = one
                file, put together in the memory of process 0.
            process_group_backend: nccl or gloo; none = nccl on GPUs, gloo on CPUs.
            timeout: after which a process that waits for another gives up.
        """
        super().__init__(
            data_parallel_size="auto",
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    def setup_environment(self) -> None:
        """All processes share the data."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the weights: parts, without a copy; for one file put together on process 0."""
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        assert self.model is not None
        assert self.lightning_module is not None
        state: dict[str, Any] = get_model_state_dict(self.model)
        if not self.lightning_module.strict_loading:
            state = only_trained(self.lightning_module, state)
        if self._save_distributed_checkpoint:
            return state
        gathered = ((name, whole(value).cpu()) for name, value in state.items())
        return {name: value for name, value in gathered if self.is_global_zero}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a folder of shards in one move, or a file.

        Raises:
            SharedWriteError: a process could not write its shard; on every process.
        """
        path = Path(self.broadcast(filepath))
        if self._save_distributed_checkpoint:
            save_shards(path, checkpoint)
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, path)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a file, or a folder of shards that any number of processes wrote.

        Raises:
            UserError: a shard is missing or damaged, or the weights are not those of this policy.
        """
        path = Path(self.broadcast(checkpoint_path))
        if not path.is_dir():
            return super().load_checkpoint(path, weights_only)
        assert self.lightning_module is not None
        trains_part = not self.lightning_module.strict_loading
        return load_shards(path, self.lightning_module, self.optimizers, trains_part=trains_part)


def require_known_strategy(name: object) -> None:
    """Refuse the name of a strategy that is none; what is given otherwise is `require_supported`'s to judge.

    Raises:
        UserError: naming those that are there.
    """
    if not isinstance(name, str) or name == "auto" or name in StrategyRegistry:
        return
    near = difflib.get_close_matches(name, _NAMES, n=1)
    mend = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"trainer.strategy: got {name!r}, expected auto, ddp or fsdp2 (configs/trainer){mend}")


def require_accelerator(name: object) -> None:
    """Refuse a GPU where there is none that torch can use.

    Args:
        name: as configured; any other than a GPU's is Lightning's to judge.

    Raises:
        UserError: saying what torch lacks.
    """
    if (
        name not in ("gpu", "cuda")
        or CUDAAccelerator.is_available()
        or (name == "gpu" and MPSAccelerator.is_available())
    ):
        return
    built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}, but it sees no GPU: see nvidia-smi"
    if torch.version.cuda is None:
        built = f"torch {torch.__version__} is built without CUDA: install a build with it"
    raise UserError(f"trainer.accelerator: got {name!r}, and {built}; or run on the CPU: --trainer.accelerator cpu")


def require_supported(trainer: pl.Trainer) -> None:
    """Refuse strategies under which the update would be another method, or that launch processes of another state.

    Raises:
        UserError: naming those that are there.
    """
    strategy = trainer.strategy
    if isinstance(strategy, SingleDeviceStrategy | FSDP2Strategy):
        return
    started = ""
    if isinstance(strategy, DDPStrategy):
        if strategy._start_method == "popen":
            return
        started = f" (started by {strategy._start_method})"
    raise UserError(
        f"trainer.strategy {type(strategy).__name__}{started} is not supported; expected auto, ddp or fsdp2 "
        "(configs/trainer)"
    )


def require_readable(trainer: pl.Trainer, checkpoint: str | None) -> None:
    """Refuse a folder of shards where weights are not sharded, before other processes are launched.

    Raises:
        UserError: with the command that makes a model of it.
    """
    if checkpoint is not None and Path(checkpoint).is_dir() and not isinstance(trainer.strategy, FSDP2Strategy):
        raise UserError(
            f"ckpt_path {checkpoint} is a folder of shards, which only --trainer.strategy fsdp2 reads; for its policy "
            f"alone: python -m lightning_rarlhf.export {checkpoint} FOLDER, and --model.policy.pretrained FOLDER"
        )


def require_same_seed(seed: int) -> None:
    """Refuse processes that would draw different numbers for one global batch.

    Raises:
        UserError: with the seed of each; on every process.
    """
    seeds = gather_items([seed])
    if len(set(seeds)) > 1:
        raise UserError(f"seed_everything differs between the processes: {seeds}; give a number")


def divide(network: LanguageModel, trainer: pl.Trainer) -> None:
    """Shard the network if the trainer's strategy does so."""
    if isinstance(trainer.strategy, FSDP2Strategy):
        mesh = trainer.strategy.device_mesh["data_parallel"]
        shard(network, mesh, forward_methods=("response_logprobs", "text_logprobs"))


def usable(optimizer: Optimizer, trainer: pl.Trainer) -> Optimizer:
    """`optimizer`, without a fused kernel that torch has for whole weights only, where they are sharded.

    `fused` is a matter of speed and comes from the configuration's default optimizer, also for one named over it.

    Raises:
        UserError: an optimizer that cannot step on shards at all.
    """
    if not isinstance(trainer.strategy, FSDP2Strategy):
        return optimizer
    if type(optimizer).__module__.startswith("bitsandbytes."):
        raise UserError(
            f"model.optimizer {type(optimizer).__name__} under FSDP2: bitsandbytes cannot step on shards; name "
            "torch.optim.AdamW, whose state is divided already, or give --trainer.strategy ddp"
        )
    if not isinstance(optimizer, torch.optim.Adam):
        for settings in (optimizer.defaults, *optimizer.param_groups):
            if settings.get("fused"):
                settings["fused"] = None
    return optimizer


StrategyRegistry.register("fsdp2", FSDP2Strategy, description="sharded by block over all processes")
