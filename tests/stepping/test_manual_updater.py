"""How gradients add up over parts and processes, with a strategy that only notes when it would send."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from lightning_rarlhf.stepping import manual_updater
from lightning_rarlhf.stepping.manual_updater import ManualUpdater


class Silent(DDPStrategy):
    """Notes the backward passes that send nothing."""

    silent = False

    @contextmanager
    def block_backward_sync(self):
        self.silent = True
        yield
        self.silent = False


def module_of(strategy) -> SimpleNamespace:
    sent: list[bool] = []

    def manual_backward(loss):
        sent.append(not getattr(strategy, "silent", False))
        loss.backward()

    return SimpleNamespace(trainer=SimpleNamespace(strategy=strategy), manual_backward=manual_backward, sent=sent)


@pytest.mark.parametrize("processes", [1, 3])
def test_parts_add_up_and_undo_the_mean_over_processes(monkeypatch, processes):
    """DDP divides by the number of processes what it sums over them."""
    monkeypatch.setattr(manual_updater, "world_size", lambda: processes)
    network = torch.nn.Linear(2, 1, bias=False)
    module = module_of(Silent())
    updater = ManualUpdater(module, network, None)
    for weight, last in ((1.0, False), (2.0, False), (4.0, True)):
        updater.add_gradient(weight * network(torch.ones(2)).sum(), last_part=last)
    assert network.weight.grad.tolist() == [[7.0 * processes] * 2]
    assert module.sent == [False, False, True]  # once a minibatch
    assert updater.gradient_norm().item() == pytest.approx(7 * processes * 2**0.5)


def test_a_strategy_of_one_process_has_nothing_to_hold_back():
    network = torch.nn.Linear(1, 1, bias=False)
    module = module_of(object())
    ManualUpdater(module, network, None).add_gradient(network(torch.ones(1)).sum(), last_part=False)
    assert network.weight.grad.item() == 1
    assert module.sent == [True]
