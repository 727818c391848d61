from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from lightning_rarlhf.config import KLConfig
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.kl_control import (
    AdaptiveKLController,
    FixedKLController,
    KLController,
    build_kl_controller,
    observed_kl,
    require_horizon,
)

GOLDEN = json.loads((Path(__file__).parent / "fixtures" / "golden.json").read_text())


def adaptive(**changes: float) -> AdaptiveKLController:
    return AdaptiveKLController(**({"init": 0.2, "target": 6.0, "horizon": 10_000} | changes))


def after(controller: KLController, kl: float, n_episodes: int = 128) -> float:
    controller.update(kl, n_episodes)
    return controller.value


def test_golden_trajectory() -> None:
    case = GOLDEN["kl_controller"]
    controller = AdaptiveKLController(case["init"], case["target"], case["horizon"])
    found = [after(controller, kl, case["batch_size"]) for kl in case["kl"]]
    assert found == pytest.approx(case["coef_after"], rel=1e-12)


@pytest.mark.parametrize(
    ("kl", "error"), [(6.0, 0.0), (6.6, 0.1), (5.4, -0.1), (60.0, 0.2), (0.0, -0.2), (-3.0, -0.2), (math.inf, 0.2)]
)
def test_one_step_by_hand(kl: float, error: float) -> None:
    assert after(adaptive(), kl) == pytest.approx(0.2 * (1 + 0.0128 * error), rel=1e-12)


def test_every_setting_matters() -> None:
    base = after(adaptive(), 6.6)
    assert after(adaptive(init=0.4), 6.6) == pytest.approx(2 * base)
    assert after(adaptive(target=6.6), 6.6) == 0.2
    assert after(adaptive(horizon=1000), 6.6) - 0.2 == pytest.approx(10 * (base - 0.2))
    assert after(adaptive(), 6.6, n_episodes=64) - 0.2 == pytest.approx((base - 0.2) / 2)


def test_coefficient_rises_while_kl_is_above_target_and_falls_while_it_is_below() -> None:
    high, low = adaptive(), adaptive()
    rising, falling = [after(high, 9.0) for _ in range(20)], [after(low, 2.0) for _ in range(20)]
    assert rising == sorted(set(rising))
    assert falling == sorted(set(falling), reverse=True)
    assert falling[-1] > 0


def test_nan_is_refused_and_leaves_the_coefficient() -> None:
    controller = adaptive()
    with pytest.raises(ValueError, match="kl: got NaN, expected a number"):
        controller.update(math.nan, 128)
    assert controller.value == 0.2


def test_resumed_controller_continues_to_the_bit() -> None:
    straight, first = adaptive(), adaptive()
    kls = torch.linspace(0, 15, 30).tolist()
    expected = [after(straight, kl) for kl in kls]
    found = [after(first, kl) for kl in kls[:11]]
    state = json.loads(json.dumps(first.state_dict()))
    second = adaptive(init=5.0)
    second.load_state_dict(state)
    assert found + [after(second, kl) for kl in kls[11:]] == expected


@pytest.mark.parametrize("controller", [FixedKLController(0.3), AdaptiveKLController(0.3, 6.0, 100)])
def test_state_is_plain_python(controller: KLController) -> None:
    assert controller.state_dict() == {"value": 0.3}
    assert type(controller.state_dict()["value"]) is float


def test_fixed_coefficient_stays_and_is_the_configured_one_after_a_resume() -> None:
    controller = FixedKLController(0.3)
    assert after(controller, 1000.0) == 0.3
    controller.load_state_dict({"value": 0.7})
    assert controller.value == 0.3


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_bad_coefficients_are_refused(value: float) -> None:
    with pytest.raises(UserError, match=f"KL coefficient: got {value}, expected a finite number of at least 0"):
        FixedKLController(value)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, 0.0])
def test_bad_coefficients_and_0_which_would_never_move_are_refused_where_it_adapts(value: float) -> None:
    for make in (lambda v: adaptive(init=v), lambda v: adaptive().load_state_dict({"value": v})):
        with pytest.raises(UserError, match=f"adaptive KL coefficient: got {value}, expected a finite number above 0"):
            make(value)


def test_a_coefficient_of_0_is_refused_where_it_adapts_and_allowed_where_it_stays() -> None:
    with pytest.raises(UserError, match="init_kl_coef=0 would stay 0.*set adaptive: false, or init_kl_coef above 0"):
        build_kl_controller(KLConfig(init_kl_coef=0.0))
    controller = build_kl_controller(KLConfig(init_kl_coef=0.0, adaptive=False))
    assert after(controller, 99.0) == 0.0


@pytest.mark.parametrize(("n_episodes", "least"), [(4, 1), (5, 2), (128, 26), (512, 103), (515, 104)])
def test_a_horizon_that_would_turn_the_coefficient_negative_is_refused_and_the_smallest_other_one_named(
    n_episodes: int, least: int
) -> None:
    """Whatever the observation: the run would fail sooner or later."""
    for horizon in range(1, least):
        message = f"horizon={horizon} .* batches of {n_episodes} episodes.*horizon to {least} or more"
        for kl in (0.0, 6.0, 99.0):
            controller = adaptive(horizon=horizon)
            with pytest.raises(UserError, match=message):
                controller.update(kl, n_episodes)
            assert controller.value == 0.2
        with pytest.raises(UserError, match=message):
            require_horizon(KLConfig(horizon=horizon), n_episodes)
        require_horizon(KLConfig(horizon=horizon, adaptive=False), n_episodes)
    require_horizon(KLConfig(horizon=least), n_episodes)
    assert after(adaptive(horizon=least), 0.0, n_episodes) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 0.0}, "target: got 0.0, expected more than 0"),
        ({"target": math.nan}, "target: got nan"),
        ({"horizon": 0}, "horizon: got 0, expected at least 1"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adaptive(**change)


def test_built_from_its_configuration() -> None:
    config = KLConfig(init_kl_coef=0.5, target=3.0, horizon=500)
    built = build_kl_controller(config)
    assert after(built, 3.3, 50) == pytest.approx(0.5 * (1 + 0.1 * 0.1))
    fixed = build_kl_controller(KLConfig(init_kl_coef=0.5, adaptive=False))
    assert after(fixed, 99.0) == 0.5


@pytest.mark.parametrize("case", GOLDEN["ppo"], ids=lambda c: f"B{c['B']}-tail{c['tail_size']}")
def test_golden_observed_kl(case: dict) -> None:
    inputs, expected = {k: torch.tensor(v) for k, v in case["inputs"].items()}, case["expect"]
    kl = ((inputs["logprobs"] - inputs["ref_logprobs"]) * inputs["response_mask"]).sum(1)
    kept = torch.tensor(expected["kept"]).nonzero().squeeze(1)
    assert observed_kl(kl, kept, "kept_mean") == pytest.approx(expected["kl_mean_over_kept"], abs=1e-6)
    assert observed_kl(kl, kept, "kept_sum_over_batch") == pytest.approx(expected["kl_sum_kept_over_B"], abs=1e-6)


def test_observed_kl_by_hand() -> None:
    kl, kept = torch.tensor([1.0, 2.0, 4.0, 9.0]), torch.tensor([0, 2])
    assert observed_kl(kl, kept, "kept_mean") == 2.5
    assert observed_kl(kl, kept, "all_mean") == 4.0
    assert observed_kl(kl, kept, "kept_sum_over_batch") == 1.25
    everything = torch.arange(4)
    assert {observed_kl(kl, everything, m) for m in ("kept_mean", "all_mean", "kept_sum_over_batch")} == {4.0}


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="mode: got 'median', expected 'kept_mean'"):
        observed_kl(torch.ones(2), torch.tensor([0]), "median")  # type: ignore[arg-type]
