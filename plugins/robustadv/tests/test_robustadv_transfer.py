"""Equivariance in every parametrization and on every schedule, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from advdiff_robustadv.perturbations import RayFGSM, RayRandom
from advdiff_robustadv.terms import Equivariance, Invariance
from advdiff_robustadv.transfer import equivariant_shift
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from advdiff_core import Backbone, BackboneOutput, Build, DataInfo, Prediction, TapInfo, expand
from advdiff_core.math.parametrization import edm_scales
from advdiff_core.schedules import EDM, VE, Flow, VPCosine, VPLinear
from advdiff_core.settings import setting, settings
from advdiff_core.terms import Denoise
from advdiff_core.testing import assert_equivariant, denoiser_of
from advdiff_core.testing.steps import Model, Moved, StepResult, Turn, build_stage, run_step

KINDS = ("eps", "x0", "v", "flow", "edm")
SCHEDULES = {
    cls.__name__: cls(cls.Settings(), Build()) for cls in (VPLinear, VPCosine, Flow, EDM, VE)
}
DATA = DataInfo(shape=(3,), count=64)
SIGMA_DATA = 0.5

every_kind = pytest.mark.parametrize("kind", KINDS)
every_schedule = pytest.mark.parametrize("name", SCHEDULES)


def raw_of(kind: str, eps: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The raw output of a network whose noise is `eps`, by the definitions of the kinds."""
    x0 = (x_t - sigma * eps) / alpha
    if kind == "edm":
        c = edm_scales(alpha, sigma, SIGMA_DATA)
        return (x0 - c.c_skip * x_t) / c.c_out
    return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}[kind]


def x0_of(kind: str, raw: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The clean sample that a raw output stands for."""
    if kind == "edm":
        c = edm_scales(alpha, sigma, SIGMA_DATA)
        return c.c_skip * x_t + c.c_out * raw
    return Prediction(kind, raw, x_t, alpha, sigma).x0


@every_kind
@given(name=st.sampled_from(tuple(SCHEDULES)), seed=st.integers(0, 999), share=st.floats(0, 1),
       size=st.sampled_from((1e-3, 0.1, 3.0)))  # fmt: skip
def test_the_shift_of_each_parametrization_leaves_x0_hat(
    kind: str, name: str, seed: int, share: float, size: float
) -> None:
    """(a) By construction: and no other shift does, as half of it does not."""
    schedule = SCHEDULES[name]
    t = schedule.t_min + share * (schedule.t_max - schedule.t_min)
    t = torch.full((4,), t, dtype=torch.float64).clamp(schedule.t_min, schedule.t_max)
    generator = torch.Generator().manual_seed(seed)
    x_t, raw, delta = torch.randn(3, 4, 3, generator=generator, dtype=torch.float64)
    alpha, sigma = expand(schedule.alpha(t), x_t), expand(schedule.sigma(t), x_t)
    shift = equivariant_shift(kind, size * delta, alpha=alpha, sigma=sigma, sigma_data=SIGMA_DATA)
    before = x0_of(kind, raw, x_t, alpha, sigma)
    after = x0_of(kind, raw + shift, x_t + size * delta, alpha, sigma)
    # Rounding is amplified by sigma / alpha, as x0 is made of eps.
    scale = (1 + x_t.abs() + size * delta.abs() + sigma * raw.abs()) * (1 / alpha + 1 / sigma)
    assert ((after - before).abs() <= 1e-12 * scale).all()
    if kind != "x0":
        other = x0_of(kind, raw + shift / 2, x_t + size * delta, alpha, sigma)
        of_raw = (x0_of(kind, raw + 1, x_t, alpha, sigma) - before).abs()
        moved = (shift / 2).abs() * of_raw
        assert ((other - before).abs() >= 0.99 * moved - 1e-12 * scale).all()


def test_an_unknown_parametrization_is_refused() -> None:
    """The message names those that there are."""
    one = torch.ones(1, 1)
    with pytest.raises(ValueError, match="unknown parametrization 'score'; wanted eps, x0, v"):
        equivariant_shift("score", one, alpha=one, sigma=one)


class SameFunction(Backbone):
    """One function of x_t and t, its noise put out in the form that a parametrization wants."""

    @settings
    class Settings:
        """The form."""

        kind: str = setting("eps", help="parametrization")
        schedule: str = setting("VPLinear", help="schedule")

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.inner = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))

    @property
    def taps(self) -> Mapping[str, TapInfo]:
        """None."""
        return {}

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
    ) -> BackboneOutput:
        """Undo what the core did to its input, and put out what the core will undo."""
        schedule = SCHEDULES[self.settings.schedule]
        assert c_noise is not None
        # c_noise is a label here: the test asks at one time only.
        t = torch.full_like(c_noise, TIMES[self.settings.schedule])
        alpha, sigma = expand(schedule.alpha(t), x), expand(schedule.sigma(t), x)
        data = SIGMA_DATA if self.settings.kind == "edm" else 1.0
        x_t = x * (alpha.square() * data**2 + sigma.square()).sqrt()
        size = (alpha.square() + sigma.square()).sqrt()
        eps = self.inner(torch.cat([x_t / size, alpha / size], dim=1))
        return BackboneOutput(raw_of(self.settings.kind, eps, x_t, alpha, sigma), {})


#: A time of each schedule at which neither signal nor noise dominates.
TIMES = {
    name: float(schedule.snap(schedule.time_of_log_snr(torch.tensor([0.5]).double())))
    for name, schedule in SCHEDULES.items()
}


class AtOneTime:
    """A schedule whose training times are all one."""

    def __init__(self, name: str) -> None:
        self.schedule, self.t = SCHEDULES[name], TIMES[name]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.schedule, name)

    def quantile(self, u: Tensor) -> Tensor:
        """That time [B]."""
        return torch.full_like(u, self.t)


def taught(
    kind: str, name: str, term: Any = Equivariance, *, perturbation: Any = RayFGSM, **keys: Any
) -> StepResult:
    """Losses and gradients of a term on a denoiser of one function in that parametrization."""
    model = Model(
        SameFunction, SameFunction.Settings(kind=kind, schedule=name), parametrization=kind,
        sigma_data=SIGMA_DATA if kind == "edm" else 1.0,
    )  # fmt: skip
    moved = Moved("clean", perturbation, perturbation.Settings(**keys))
    made = build_stage(
        data=DATA, models={"student": model}, views={"adv": moved}, schedule=AtOneTime(name),
    )  # fmt: skip
    x0 = torch.randn(16, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return run_step(made, [Turn("student", {"term": made.make(term)})], x0)


@every_schedule
@pytest.mark.parametrize("unit", ["image", "noise"])
def test_parametrizations_of_one_function_have_one_loss_and_one_gradient(
    name: str, unit: str
) -> None:
    """What is compared is eps_hat, so attack, loss and gradient are the function's own."""
    first = taught("eps", name, unit=unit)
    assert first.losses["term"].min() > 0
    for kind in KINDS[1:]:
        found = taught(kind, name, unit=unit)
        torch.testing.assert_close(found.losses["term"], first.losses["term"], rtol=1e-8, atol=0)
        for key, gradient in first.grads.items():
            torch.testing.assert_close(found.grads[key], gradient, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("perturbation", [RayRandom, RayFGSM])
@pytest.mark.parametrize("unit", [{"unit": "noise"}, {"relative": True}])
@pytest.mark.parametrize("name", ["Flow", "EDM", "VE"])
def test_schedules_of_one_signal_to_noise_ratio_teach_alike(
    name: str, unit: dict[str, Any], perturbation: Any
) -> None:
    """In noise units, or counted in the size of x_t, a ray means the same on every schedule."""
    # x_t / sqrt(alpha^2 + sigma^2) is that of the variance-preserving schedule at this ratio.
    reference = taught("eps", "VPCosine", perturbation=perturbation, **unit)
    found = taught("eps", name, perturbation=perturbation, **unit)
    # VPCosine trains discrete times, of which the nearest is taken.
    torch.testing.assert_close(found.losses["term"], reference.losses["term"], rtol=2e-2, atol=1e-4)
    absolute = taught("eps", name, perturbation=perturbation, unit="image")
    assert (absolute.losses["term"] - reference.losses["term"]).abs().max() > 1e-3


def test_relative_and_absolute_rays_are_one_on_a_variance_preserving_schedule() -> None:
    """The size of x_t is 1 there."""
    a, b = (taught("v", "VPLinear", relative=one) for one in (True, False))
    torch.testing.assert_close(a.losses["term"], b.losses["term"], rtol=1e-9, atol=0)


@every_kind
@every_schedule
def test_a_constant_x0_hat_has_no_loss_in_any_parametrization(kind: str, name: str) -> None:
    """(d) Such a denoiser is exactly equivariant, whatever it puts out to say so."""
    schedule = SCHEDULES[name]
    c = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)

    class Constant(SameFunction):
        """Its clean sample is c for every input."""

        def forward(self, x: Tensor, c_noise: Tensor | None = None, *_: Any, **__: Any) -> Any:
            """The raw output that says so."""
            assert c_noise is not None
            t = torch.full_like(c_noise, TIMES[name])
            alpha, sigma = expand(schedule.alpha(t), x), expand(schedule.sigma(t), x)
            data = SIGMA_DATA if kind == "edm" else 1.0
            x_t = x * (alpha.square() * data**2 + sigma.square()).sqrt()
            eps = (x_t - alpha * c) / sigma
            out = raw_of(kind, eps, x_t, alpha, sigma)
            return BackboneOutput(out + 0 * self.inner[0].weight.sum(), {})

    sigma_data = SIGMA_DATA if kind == "edm" else 1.0
    model = Model(Constant, parametrization=kind, sigma_data=sigma_data)
    made = build_stage(
        data=DATA, models={"student": model}, views={"adv": Moved("clean", RayRandom)},
        schedule=AtOneTime(name),
    )  # fmt: skip
    keys = {"weight_rule": "constant", "w_max": 0.0}
    x0 = torch.zeros(8, 3, dtype=torch.float64)
    terms = {
        cls.__name__: made.make(cls, cls.Settings(**keys)) for cls in (Equivariance, Invariance)
    }
    losses = run_step(made, [Turn("student", terms)], x0).losses
    assert losses["Equivariance"].max() < 1e-18
    assert losses["Invariance"].min() > 1e-6
    one = AtOneTime(name)
    denoise = denoiser_of(
        made.scene.roles["student"].module, one, parametrization=kind, sigma_data=sigma_data
    )
    t = torch.full((8,), TIMES[name], dtype=torch.float64)
    assert_equivariant(denoise, one, x0=x0, times=t, delta=0.1 * torch.ones(8, 3).double())


class Slope(Backbone):
    """eps_hat = k x_t."""

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.k = nn.Parameter(torch.zeros(()))

    @property
    def taps(self) -> Mapping[str, TapInfo]:
        """None."""
        return {}

    def forward(self, x: Tensor, c_noise: Tensor | None = None, *_: Any, **__: Any) -> Any:
        """Undo the scaling of the input."""
        size = (self.alpha**2 + self.sigma**2) ** 0.5
        return BackboneOutput(self.k * size * x, {})


@pytest.mark.parametrize("name", ["VPCosine", "Flow", "EDM"])
def test_equivariance_is_shrinkage_by_the_effective_weight(name: str) -> None:
    """At the closed-form optimum of Gaussian data the gradient of both terms together is zero."""
    one, lam, size = AtOneTime(name), 0.5, 20_000
    made = build_stage(
        data=DATA, models={"student": Model(Slope)}, views={"adv": Moved("clean", RayRandom)},
        schedule=one,
    )  # fmt: skip
    t = torch.tensor([one.t], dtype=torch.float64)
    alpha, sigma = float(one.alpha(t)), float(one.sigma(t))
    radius = sigma**2 / (alpha**2 + sigma**2) + 8 / 255
    w = lam * radius**2 / 3 / sigma**2
    net = made.scene.roles["student"].module
    net.alpha, net.sigma = alpha, sigma
    slope_of_x0 = alpha / (alpha**2 + (1 + w) * sigma**2)
    best = (1 - alpha * slope_of_x0) / sigma
    keys = Equivariance.Settings(weight_rule="constant", w_max=0.0)
    terms = {"denoise": made.make(Denoise), "equivariance": made.make(Equivariance, keys)}
    turn = Turn("student", terms, weights={"equivariance": lam})
    x0 = torch.randn(size, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    slopes = []
    for k in (best, best * 1.05):
        with torch.no_grad():
            net.k.fill_(k)
        slopes.append(run_step(made, [turn], x0).grads["models.student.k"].abs().item())
    # 60,000 numbers: sampling errors of half a per cent of k.
    assert slopes[0] < 0.15 * slopes[1]
