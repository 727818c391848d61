"""Which of Lightning's strategies compute the method, and FSDP2 as one of them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, StrategyRegistry

from lightning_rarlhf.distributed import gather_items
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.sharding import shard

if TYPE_CHECKING:
    from lightning_rarlhf.policy import LanguageModel


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
        f"trainer.strategy {type(strategy).__name__}{started} is not supported; expected auto, ddp or "
        "fsdp2 (configs/trainer)"
    )


def require_same_seed(seed: int) -> None:
    """Refuse processes that would draw different numbers for one global batch."""
    seeds = gather_items([seed])
    if len(set(seeds)) > 1:
        raise UserError(f"seed_everything differs between the processes: {seeds}; give a number")


def divide(network: LanguageModel, trainer: pl.Trainer) -> None:
    """Shard the network if the trainer's strategy does so."""
    if isinstance(trainer.strategy, FSDP2Strategy):
        mesh = trainer.strategy.device_mesh["data_parallel"]
        shard(network, mesh, forward_methods=("response_logprobs", "text_logprobs"))


StrategyRegistry.register("fsdp2", FSDP2Strategy, description="sharded by block over all processes")
