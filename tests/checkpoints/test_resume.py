from __future__ import annotations

import pytest
import torch

from lightning_rarlhf.checkpoints.resume import reapply_settings, settings_of


def adam(lr: float, **settings: float) -> torch.optim.Optimizer:
    return torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))], lr=lr, **settings)


def test_the_configured_settings_return_and_the_momentum_stays():
    saved = adam(1e-3)
    saved.param_groups[0]["params"][0].grad = torch.ones(2)
    saved.step()
    resumed = adam(1e-4, eps=1e-6)
    configured = settings_of(resumed)
    resumed.load_state_dict(saved.state_dict())
    lines = reapply_settings(resumed, configured, [])
    assert resumed.param_groups[0]["lr"] == 1e-4
    assert resumed.param_groups[0]["eps"] == 1e-6
    assert sorted(lines) == [
        "eps is now 1e-06; the checkpoint's was 1e-08",
        "lr is now 0.0001; the checkpoint's was 0.001",
    ]
    assert next(iter(resumed.state.values()))["step"] == 1


def test_nothing_is_said_where_nothing_differs():
    optimizer = adam(1e-3)
    optimizer.param_groups[0]["betas"] = [0.9, 0.999]  # as FSDP2's checkpoints give them back
    assert reapply_settings(optimizer, settings_of(adam(1e-3)), []) == []
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_a_scheduled_rate_keeps_its_place_in_the_schedule():
    optimizer = adam(1.0)
    configured = settings_of(adam(0.5))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=4)
    optimizer.step()
    schedule.step()
    reapply_settings(optimizer, configured, [schedule])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.375)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.25)
    assert schedule.base_lrs == [0.5]
