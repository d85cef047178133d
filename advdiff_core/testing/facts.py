"""Facts of equivariant adversarial training, to hold a ray, a regulariser or a denoiser to.

Together with the laws `inside-the-budget`, `zero-budget-is-identity` and `climbs-what-it-derives`
of perturbations they are what makes Robust_adv work, whatever its authors' code does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from advdiff_core.draws import Draws
from advdiff_core.interfaces.backbone import Backbone, BackboneOutput
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.loss_term import LossTerm
from advdiff_core.interfaces.noise_schedule import NoiseSchedule
from advdiff_core.interfaces.perturbation import Perturbation
from advdiff_core.interfaces.sampler import Denoise
from advdiff_core.schedules import VPLinear
from advdiff_core.terms import Denoise as DenoiseTerm
from advdiff_core.testing.bench import gaussian
from advdiff_core.testing.findings import LawBroken, shown
from advdiff_core.testing.parts import BenchNet
from advdiff_core.testing.steps import Model, Moved, Stage, Turn, build_stage, run_step
from advdiff_core.types import DataInfo, Noised, Prediction, TapInfo, expand

__all__ = [
    "assert_explained", "assert_gap_flat_at_zero", "assert_off_is_plain", "assert_radius_grows",
    "assert_silent_where_exact", "point_denoiser",
]  # fmt: skip

#: The one clean sample that exact denoisers know, in each entry.
POINT = 0.3
DATA = DataInfo(shape=(3,), count=64)
SIZE = 8


def point_denoiser(schedule: NoiseSchedule, x0_hat: float = POINT) -> Denoise:
    """The exact denoiser of data that are one point: every displacement is noise.

    Args:
        schedule: The noise schedule.
        x0_hat: Every entry of the point.
    """

    def denoise(x_t: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = expand(schedule.alpha(t), x_t), expand(schedule.sigma(t), x_t)
        return Prediction("x0", torch.full_like(x_t, x0_hat), x_t, alpha, sigma)

    return denoise


def assert_explained(noised: Noised, *, tolerance: float = 1e-9) -> None:
    """A view's noise explains its input: `x_t = alpha x0 + sigma eps`, so that x0 is unchanged.

    Args:
        noised: A noised view, perturbed or not.
        tolerance: Largest error, as a share of the size of `x_t`; for float64.

    Raises:
        LawBroken: With the sample that is furthest off.
    """
    assert noised.eps is not None, "a view of images has no noise"
    assert noised.alpha is not None
    assert noised.sigma is not None
    error = (noised.alpha * noised.x0 + noised.sigma * noised.eps - noised.x_t).abs()
    share = error.flatten(1).amax(1) / (1 + noised.x_t.abs().flatten(1).amax(1))
    worst = int(share.argmax())
    if not bool(share[worst] <= tolerance):
        raise LawBroken(
            f"noise does not explain the input: found x_t off by {shown(float(share[worst]))} of "
            f"its size in sample {worst}, wanted at most {shown(tolerance)} - move eps by delta / "
            f"sigma where the target follows"
        )


def assert_gap_flat_at_zero(
    denoiser: Denoise, schedule: NoiseSchedule, *, shape: Sequence[int], seed: int = 0
) -> None:
    """The gradient of the prediction gap `|eps_hat(x_t + delta) - eps_hat(x_t)|^2` is 0 at 0.

    So an attack on it has to start elsewhere. Broken by denoisers that do not repeat themselves,
    for which the gap measures something else than the perturbation.

    Args:
        denoiser: Any function of `x_t` [B, ...] and `t` [B] that returns a `Prediction`.
        schedule: The noise schedule.
        shape: Shape of a sample.
        seed: Seed of the samples.

    Raises:
        LawBroken: With the largest slope.
    """
    x_t = gaussian(seed, (SIZE, *shape), dtype=torch.float64)
    t = schedule.quantile((torch.arange(SIZE, dtype=torch.float64) + 0.5) / SIZE)
    reference = denoiser(x_t, t).eps.detach()
    delta = torch.zeros_like(x_t).requires_grad_()
    gap = (denoiser(x_t + delta, t).eps - reference).square().sum()
    (slope,) = torch.autograd.grad(gap, delta)
    steepest = float(slope.abs().max())
    if not steepest <= 1e-9:
        raise LawBroken(
            f"the prediction gap is not flat at 0: found a slope of {shown(steepest)}, wanted 0 - "
            f"take the reference from the same weights, mode and random numbers"
        )


def assert_radius_grows(
    perturbation: Perturbation,
    schedule: NoiseSchedule,
    *,
    shape: Sequence[int] = (2,),
    least: float = 0.0,
    times: int = 33,
) -> None:
    """The radius of a ray never falls with noise, and is at least `least` (its bias gamma).

    Args:
        perturbation: What is moved by; each time is asked for with the same random numbers.
        schedule: The noise schedule.
        shape: Shape of a sample.
        least: Smallest radius, in the unit of the budget.
        times: Times that are tried, evenly spread over the training times.

    Raises:
        LawBroken: With the time at which it falls, or is too small.
    """
    grid = schedule.quantile((torch.arange(times, dtype=torch.float64) + 0.5) / times)
    radii = [_radius_at(perturbation, schedule, t, shape) for t in grid]
    for number, (t, radius) in enumerate(zip(grid, radii, strict=True)):
        if not radius >= least * (1 - 1e-9):
            what = f"found {shown(radius)} at t={shown(float(t))}, wanted at least {shown(least)}"
            raise LawBroken(f"the radius is too small: {what} - add the bias to it")
        if number and not radius >= radii[number - 1] * (1 - 1e-9):
            what = f"found {shown(radius)} at t={shown(float(t))}, below {shown(radii[number - 1])}"
            where = f"t={shown(float(grid[number - 1]))}"
            raise LawBroken(
                f"the radius falls with noise: {what} at {where} - let it follow the noise level"
            )


def _radius_at(
    perturbation: Perturbation, schedule: NoiseSchedule, t: Tensor, shape: Sequence[int]
) -> float:
    x0 = torch.zeros((1, *shape), dtype=torch.float64)
    time = t.reshape(1)
    alpha, sigma = expand(schedule.alpha(time), x0), expand(schedule.sigma(time), x0)
    noised = Noised(x0, x0, eps=torch.zeros_like(x0), t=time, alpha=alpha, sigma=sigma)
    rng = Draws(("facts", "radius"), start=0, size=1, total=1, device="cpu")
    return float(torch.as_tensor(perturbation.budget(noised, rng).radius).max())


class _PointNet(Backbone):
    """Predicts one clean sample; worn as x0 it is exactly equivariant."""

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.point = nn.Parameter(torch.tensor(POINT))

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
        """The sample [B, ...]."""
        del c_noise, labels, taps, stop_at
        return BackboneOutput(self.point.expand_as(x), {})


def assert_silent_where_exact(
    term: type[LossTerm], settings: Any = None, *, moved: Moved, seed: int = 0
) -> None:
    """A regulariser towards equivariance costs nothing for an exactly equivariant denoiser.

    Args:
        term: Its class; it looks at the view "adv" of the role "student".
        settings: Its settings; their defaults if None.
        moved: What moves that view.
        seed: Seed of samples and draws.

    Raises:
        LawBroken: With the largest loss.
    """
    stage = _stage(Model(_PointNet, parametrization="x0"), moved, seed)
    found = run_step(
        stage, [Turn("student", {"tested": stage.make(term, settings)})], _points(seed)
    )
    largest = float(found.losses["tested"].abs().max())
    if not largest <= 1e-12:
        raise LawBroken(
            f"{term.__name__} costs an exactly equivariant denoiser {shown(largest)}, wanted 0 - "
            f"let eps_hat move by delta / sigma, in units of x_t"
        )


def assert_off_is_plain(
    term: type[LossTerm], settings: Any = None, *, moved: Moved, seed: int = 0
) -> None:
    """With nothing moved, a regulariser adds no bit to loss and gradient of denoising alone.

    Args:
        term: Its class; it looks at the view "adv" of the role "student".
        settings: Its settings; their defaults if None.
        moved: What moves that view, with a radius of zero.
        seed: Seed of samples and draws.

    Raises:
        LawBroken: With the loss, or the parameter whose gradient differs.
    """
    stage = _stage(Model(BenchNet), moved, seed)
    denoise = {"denoise": stage.make(DenoiseTerm)}
    alone = run_step(stage, [Turn("student", denoise)], _points(seed))
    terms = {**denoise, "tested": stage.make(term, settings)}
    both = run_step(stage, [Turn("student", terms)], _points(seed))
    largest = float(both.losses["tested"].abs().max())
    differ = [name for name, grad in alone.grads.items() if not torch.equal(grad, both.grads[name])]
    if largest != 0 or differ:
        what = f"a loss of {shown(largest)}" if largest else f"another gradient of {differ[0]}"
        raise LawBroken(
            f"{term.__name__} counts where nothing is moved: found {what}, wanted the bits of "
            f"denoising alone - measure it from the unmoved prediction, with a finite weight"
        )


def _stage(model: Model, moved: Moved, seed: int) -> Stage:
    schedule = VPLinear(VPLinear.Settings(), Build())
    return build_stage(
        data=DATA, models={"student": model}, views={"adv": moved}, schedule=schedule, seed=seed
    )


def _points(seed: int) -> Tensor:
    return gaussian(seed, (SIZE, *DATA.shape), dtype=torch.float64)
