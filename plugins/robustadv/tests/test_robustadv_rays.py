"""Laws of the radius schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from advdiff_robustadv import rays
from advdiff_robustadv.perturbations import RayFGSM, RayRandom
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core import Build, Draws, Noised, NoiseSchedule
from advdiff_core.schedules import EDM, VE, Flow, VPCosine, VPLinear
from advdiff_core.types import expand

SIZE = 64
SCHEDULES = st.sampled_from([VPLinear, VPCosine, VE, EDM, Flow])


def noised(schedule: type[NoiseSchedule], size: int = SIZE) -> Noised:
    """A batch over all times of a schedule, in order."""
    made = schedule(schedule.Settings(), Build())
    t = torch.linspace(made.t_min, made.t_max, size, dtype=torch.float64)
    x0 = torch.zeros(size, 2, dtype=torch.float64)
    alpha, sigma = expand(made.alpha(t), x0), expand(made.sigma(t), x0)
    return Noised(x0, x0, eps=x0, t=t, alpha=alpha, sigma=sigma)


def draws(size: int = SIZE) -> Draws:
    """Random numbers of a view."""
    return Draws((0, 0, "view"), start=0, size=size, total=size, device="cpu")


@given(schedule=SCHEDULES, omega=st.floats(0.1, 8.0), gamma=st.floats(0.0, 1.0))
def test_the_radius_grows_with_noise_from_its_bias(
    schedule: type[NoiseSchedule], omega: float, gamma: float
) -> None:
    """(f) r is non-decreasing in t, at least gamma, and at most gamma + 1 on any schedule."""
    keys = rays.RaySettings(omega=omega, gamma=gamma)
    radius = rays.radius(keys, noised(schedule), draws())
    assert (radius.diff() >= -1e-12).all()
    assert (radius >= gamma).all()
    assert (radius <= gamma + 1 + 1e-12).all()
    shape = rays.noise_share(noised(schedule)) ** omega
    torch.testing.assert_close(radius, shape + gamma, rtol=1e-12, atol=0)


def test_the_radius_of_the_paper_is_the_noise_variance_plus_the_bias() -> None:
    """Omega = 2 and gamma = 8/255 on the linear schedule: from 0.03 to 1.03."""
    batch = noised(VPLinear)
    radius = rays.radius(rays.RaySettings(), batch, draws())
    assert batch.sigma is not None
    torch.testing.assert_close(radius, batch.sigma[:, 0].square() + 8 / 255, rtol=1e-12, atol=0)
    assert radius[0].item() == pytest.approx(0.0315, abs=5e-4)
    assert radius[-1].item() == pytest.approx(1.0313, abs=5e-4)


@given(schedule=SCHEDULES)
def test_the_share_of_noise_depends_on_the_signal_to_noise_ratio_alone(
    schedule: type[NoiseSchedule],
) -> None:
    """The same on every schedule: s^2 = 1 / (1 + snr), in [0, 1]."""
    batch = noised(schedule)
    assert batch.alpha is not None
    assert batch.sigma is not None
    snr = (batch.alpha / batch.sigma).square().flatten()
    share = rays.noise_share(batch)
    torch.testing.assert_close(share.square(), 1 / (1 + snr), rtol=1e-10, atol=1e-15)
    assert ((share >= 0) & (share <= 1 + 1e-12)).all()


@given(gamma=st.floats(0.0, 0.5), spread=st.floats(0.0, 0.5))
def test_a_random_bias_lies_between_its_ends(gamma: float, spread: float) -> None:
    """Uniform in [gamma, beta_max], one per sample."""
    keys = rays.RaySettings(bias="random", gamma=gamma, beta_max=gamma + spread)
    like = torch.zeros(SIZE, dtype=torch.float64)
    beta = rays.bias_of(keys, like, draws())
    assert (beta >= gamma - 1e-6).all()
    assert (beta <= gamma + spread + 1e-6).all()
    if spread > 1e-3:
        assert beta.unique().numel() > SIZE // 2


def test_a_multiplicative_bias_scales_the_shape() -> None:
    """R = beta s^omega with beta up to 1 unless said otherwise; nothing remains at t = 0."""
    keys = rays.RaySettings(bias="multiplicative")
    batch = noised(VPLinear)
    ratio = rays.radius(keys, batch, draws()) / rays.noise_share(batch).square()
    assert (ratio >= 8 / 255 - 1e-6).all()
    assert (ratio <= 1 + 1e-6).all()
    assert ratio.max() > 0.9


@pytest.mark.parametrize(
    ("bias", "largest"), [("constant", 8 / 255), ("random", 16 / 255), ("multiplicative", 1.0)]
)
def test_the_largest_bias_has_a_default_for_each_law(bias: Any, largest: float) -> None:
    """So that a recipe can switch the law alone."""
    assert rays.RaySettings(bias=bias).largest_bias == pytest.approx(largest)


@pytest.mark.parametrize("keys", [{"bias": "random", "beta_max": 0.01}, {"gamma": 2.0}])
def test_a_largest_bias_below_the_smallest_is_refused(keys: dict[str, Any]) -> None:
    """The message gives both numbers."""
    keys = {"bias": "multiplicative", **keys}
    with pytest.raises(ValueError, match=r"beta_max: .* must be at least gamma"):
        rays.RaySettings(**keys)


@pytest.mark.parametrize("component", [RayRandom, RayFGSM])
@pytest.mark.parametrize("unit", ["image", "noise"])
def test_a_start_fills_the_box_evenly(component: Any, unit: Any) -> None:
    """U[-r, r] in each entry: mean 0, standard deviation r / sqrt(3), within 5 standard errors."""
    size = 20_000
    ray = component(component.Settings(unit=unit), Build())
    batch = noised(VPLinear, size)
    budget = ray.budget(batch, draws(size))
    assert isinstance(budget.radius, Tensor)
    unit_box = (ray.start(batch, budget, draws(size)) / budget.radius[:, None]).flatten()
    assert (unit_box.abs() <= 1).all()
    assert abs(unit_box.mean().item()) < 5 / (3 * 2 * size) ** 0.5
    assert unit_box.square().mean().item() == pytest.approx(1 / 3, abs=5 * (4 / 45 / 4e4) ** 0.5)
    assert ray.unit == budget.unit == unit
