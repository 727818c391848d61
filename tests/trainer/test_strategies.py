from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy

from lightning_rarlhf.config import PolicyConfig
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.ppo_module import RiskAversePPOModule
from lightning_rarlhf.reward_models import CallableReward
from lightning_rarlhf.trainer.strategies import FSDP2Strategy, require_accelerator, usable


def test_a_fused_kernel_of_whole_weights_is_left_out_where_they_are_sharded():
    weight = [torch.nn.Parameter(torch.zeros(2))]
    sharded, alone = SimpleNamespace(strategy=FSDP2Strategy()), SimpleNamespace(strategy=None)
    assert usable(torch.optim.SGD(weight, lr=1, fused=True), alone).param_groups[0]["fused"]
    assert not usable(torch.optim.SGD(weight, lr=1, fused=True), sharded).param_groups[0]["fused"]
    assert usable(torch.optim.AdamW(weight, lr=1, fused=True), sharded).param_groups[0]["fused"]


def test_8_bit_optimizers_are_refused_where_weights_are_sharded():
    from bitsandbytes.optim import PagedAdamW8bit

    trainer = SimpleNamespace(strategy=FSDP2Strategy())
    with pytest.raises(UserError, match=r"PagedAdamW8bit under FSDP2: .*; name torch\.optim\.AdamW"):
        usable(PagedAdamW8bit([torch.nn.Parameter(torch.zeros(2))], lr=1), trainer)


def test_they_are_refused_before_anything_is_loaded():
    from bitsandbytes.optim import AdamW8bit

    class OnCPU(FSDP2Strategy):
        root_device = torch.device("cpu")

    reward = CallableReward("tests.two_processes.scripted")
    policy = PolicyConfig(pretrained="nowhere/to-be-found")
    module = RiskAversePPOModule(reward=reward, policy=policy, optimizer=lambda weights: AdamW8bit(weights, lr=1))
    trainer = SimpleNamespace(strategy=OnCPU(), state=SimpleNamespace(fn="fit"))
    with pytest.raises(UserError, match="AdamW8bit under FSDP2"):
        module.require_workable(trainer)
    trainer.state.fn = "test"
    module.require_workable(trainer)


def test_an_optimizer_is_not_tried_where_nothing_is_sharded():
    """Some look at the shapes of what they get, as Muon does."""

    def never(_weights):
        raise AssertionError

    reward = CallableReward("tests.two_processes.scripted")
    module = RiskAversePPOModule(reward=reward, policy=PolicyConfig(pretrained="nowhere/to-be-found"), optimizer=never)
    module.require_workable(
        SimpleNamespace(strategy=SingleDeviceStrategy(torch.device("cpu")), state=SimpleNamespace(fn="fit"))
    )


@pytest.mark.parametrize(
    ("built", "says"),
    [(None, "is built without CUDA: install a build with it"), ("12.8", "is built for CUDA 12.8, but it sees no GPU")],
)
def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, built: str | None, says: str) -> None:
    monkeypatch.setattr(torch.version, "cuda", built)
    for accelerator in (CUDAAccelerator, MPSAccelerator):
        monkeypatch.setattr(accelerator, "is_available", lambda: False)
    with pytest.raises(UserError, match=rf"trainer\.accelerator: got 'gpu', and torch \S+ {says}.*; or run on the CPU"):
        require_accelerator("gpu")
    require_accelerator("cpu")
    monkeypatch.setattr(CUDAAccelerator, "is_available", lambda: True)
    require_accelerator("gpu")
