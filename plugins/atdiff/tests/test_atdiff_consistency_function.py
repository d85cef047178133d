"""Consistency functions in float64: the boundary, the raw-network form, and what they return."""

from __future__ import annotations

import math

import pytest
import torch
from advdiff_atdiff.consistency_function import (
    ConsistencyFunction,
    FunctionKeys,
    boundary_scales,
    lcm_scales,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core import Build, NoiseSchedule, Prediction, expand
from advdiff_core.math.parametrization import convert, edm_coefficients
from advdiff_core.schedules import EDM, VE, Flow, VPCosine, VPLinear

SCHEDULES = (EDM, VE, Flow, VPLinear, VPCosine)
FORMS = ("boundary", "lcm")


def schedule_of(kind: type[NoiseSchedule]) -> NoiseSchedule:
    """A schedule with its defaults."""
    return kind(kind.Settings(), Build())


def prediction(schedule: NoiseSchedule, x_t: Tensor, x0: Tensor, t: Tensor) -> Prediction:
    """A prediction of `x0` at `t` [B]."""
    alpha, sigma = expand(schedule.alpha(t), x_t), expand(schedule.sigma(t), x_t)
    return Prediction("x0", x0, x_t, alpha, sigma)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Seeded normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_function_is_the_identity_at_the_smallest_time_bit_for_bit(
    kind: type[NoiseSchedule], form: str, dtype: torch.dtype
) -> None:
    """f(x, t_min) = x exactly in every precision and batch, whatever the network says."""
    schedule = schedule_of(kind)
    function = ConsistencyFunction(schedule, form, sigma_data=0.7)
    for size in (1, 3, 17):
        x = normal(size, 2, 3, 3, seed=size, dtype=torch.float32).to(dtype)
        t = torch.full((size,), schedule.t_min, dtype=dtype)
        said = 100 * normal(size, 2, 3, 3, seed=1, dtype=torch.float32).to(dtype)
        found = function(prediction(schedule, x, said, t)._replace(value=said), t)
        assert torch.equal(found, x)


@given(log_tau=st.floats(-6.0, 5.0), sigma_data=st.floats(0.1, 2.0))
def test_boundary_form_equals_that_on_the_raw_output(log_tau: float, sigma_data: float) -> None:
    """`a z + b x0_hat` is `c_skip z + c_out F` for the F that x0_hat is made of."""
    tau_min = torch.tensor([0.002], dtype=torch.float64)
    tau = tau_min + math.exp(log_tau)
    z, raw = normal(1, seed=3), normal(1, seed=4)
    c = edm_coefficients(tau, sigma_data)
    x0_hat = c.c_skip * z + c.c_out * raw
    a, b = boundary_scales(tau, tau_min, sigma_data)
    c_skip = sigma_data**2 / ((tau - tau_min) ** 2 + sigma_data**2)
    c_out = (tau - tau_min) * sigma_data / torch.sqrt(tau**2 + sigma_data**2)
    torch.testing.assert_close(a * z + b * x0_hat, c_skip * z + c_out * raw, rtol=1e-12, atol=1e-13)


def test_lcm_scales_are_those_of_the_released_code() -> None:
    """c_skip = .25 / ((t / 0.1)^2 + .25), c_out = (t / 0.1) / sqrt((t / 0.1)^2 + .25)."""
    index = torch.tensor([0.0, 1.0, 20.0, 999.0], dtype=torch.float64)
    a, b = lcm_scales(index)
    for place, n in enumerate(index.tolist()):
        scaled = n / 0.1
        assert float(a[place]) == pytest.approx(0.25 / (scaled**2 + 0.25), rel=1e-12)
        assert float(b[place]) == pytest.approx(scaled / math.sqrt(scaled**2 + 0.25), rel=1e-12)


def test_lcm_form_counts_discrete_times_from_zero() -> None:
    """The i-th of 1000 discrete times has index i."""
    schedule = schedule_of(VPLinear)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    a, b = ConsistencyFunction(schedule, "lcm").scales(t)
    wanted = lcm_scales(torch.arange(1000, dtype=torch.float64))
    torch.testing.assert_close((a, b), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_function_is_one_map_for_every_parametrization(kind: type[NoiseSchedule]) -> None:
    """A prediction read as eps, x0, v or flow gives the same f."""
    schedule = schedule_of(kind)
    function = ConsistencyFunction(schedule)
    t = torch.linspace(schedule.t_min, 0.9 * schedule.t_max, 7, dtype=torch.float64)
    x, x0 = normal(7, 3, seed=1), normal(7, 3, seed=2)
    made = prediction(schedule, x, x0, t)
    assert made.alpha is not None
    assert made.sigma is not None
    wanted = function(made, t)
    for space in ("eps", "v", "flow"):
        value = convert(
            x0, source="x0", target=space, x_t=x, alpha=made.alpha, sigma=made.sigma
        )  # fmt: skip
        other = made._replace(kind=space, value=value)
        torch.testing.assert_close(function(other, t), wanted, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_function_far_from_the_data_is_the_prediction_at_t_min(kind: type[NoiseSchedule]) -> None:
    """With nearly all noise f is alpha(t_min) x0_hat, and `end` says where that lies."""
    schedule = schedule_of(kind)
    function = ConsistencyFunction(schedule)
    t = torch.full((4,), schedule.t_max, dtype=torch.float64)
    x, x0 = normal(4, 3, seed=1), normal(4, 3, seed=2)
    alpha, tau = function.end
    found = function(prediction(schedule, x, x0, t), t)
    torch.testing.assert_close(found, alpha * x0, rtol=1e-3, atol=1e-3)
    low = torch.tensor(schedule.t_min, dtype=torch.float64)
    assert alpha == float(schedule.alpha(low))
    assert tau == float(schedule.sigma(low) / schedule.alpha(low))
    assert ConsistencyFunction(schedule, "lcm").end == (1.0, 0.0)


def test_boundary_form_is_in_units_of_x_t_where_the_signal_is_scaled() -> None:
    """On a schedule that ends at much noise: `alpha_min (a x_t / alpha + b x0_hat)`."""
    schedule = VPLinear(VPLinear.Settings(num_steps=0, t_min=0.3), Build())
    t = torch.tensor([0.31, 0.5, 1.0], dtype=torch.float64)
    low = torch.full_like(t, 0.3)
    tau, tau_min = (schedule.sigma(s) / schedule.alpha(s) for s in (t, low))
    x, x0 = normal(3, 1, seed=1), normal(3, 1, seed=2)
    a, b = (scale[:, None] for scale in boundary_scales(tau, tau_min, 0.5))
    alpha, alpha_min = schedule.alpha(t)[:, None], schedule.alpha(low)[:, None]
    found = ConsistencyFunction(schedule)(prediction(schedule, x, x0, t), t)
    torch.testing.assert_close(found, alpha_min * (a * x / alpha + b * x0), rtol=1e-12, atol=1e-12)


def test_keys_make_the_function_they_name() -> None:
    """The settings hand all three numbers on."""
    schedule = schedule_of(EDM)
    made = FunctionKeys(function="lcm", sigma_data=0.3, timestep_scaling=2.0).of(schedule)
    assert made == ConsistencyFunction(schedule, "lcm", sigma_data=0.3, scaling=2.0)
    assert made != FunctionKeys(function="lcm", sigma_data=0.3).of(schedule)
