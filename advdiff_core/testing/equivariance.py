"""Equivariance of denoisers: a moved input is explained as more noise, and x0_hat stays.

A denoiser is equivariant to perturbations if `eps_hat(x_t + delta) = eps_hat(x_t) + delta / sigma`,
which says the same as `x0_hat(x_t + delta) = x0_hat(x_t)` (Robust_adv's regulariser in image
units). It is invariant, as a classifier should be and a denoiser should not, if eps_hat stays.

The error is a share of the perturbation: 0 for an equivariant denoiser, 1 for an invariant one (and
the other way round for `assert_invariant`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import hypothesis
import torch
from attrs import frozen
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from advdiff_core.interfaces.backbone import Backbone
from advdiff_core.interfaces.noise_schedule import NoiseSchedule
from advdiff_core.interfaces.sampler import Denoise
from advdiff_core.math import norms
from advdiff_core.step.denoiser import Wear
from advdiff_core.testing.bench import gaussian
from advdiff_core.testing.findings import LawBroken, shown
from advdiff_core.testing.strategies import budgets, delta_in
from advdiff_core.types import Budget, Prediction, expand

__all__ = [
    "Witness",
    "assert_equivariant",
    "assert_invariant",
    "denoiser_of",
    "equivariance_error",
]

Rule = Literal["equivariant", "invariant"]

#: Errors below so many units in the last place of the numbers involved are rounding.
ROUNDING = 256
#: Length of a step of gradient ascent, as a share of the radius.
STEP = 0.5

WORDS = {
    "equivariant": "x0_hat stays and eps_hat moves by delta / sigma",
    "invariant": "eps_hat stays",
}


@frozen(kw_only=True, eq=False)
class Witness:
    """The worst sample that was found.

    Attributes:
        rule: What was asked of the denoiser.
        error: How far it is from that, as a share of the perturbation.
        t: Time.
        alpha: Signal scale.
        sigma: Noise scale.
        budget: Norm, radius and unit of the perturbation.
        seed: Seed of noise and perturbation.
        x_t: Input before it was moved [...].
        delta: Perturbation in units of `x_t` [...].
    """

    rule: Rule
    error: float
    t: float
    alpha: float
    sigma: float
    budget: Budget
    seed: int
    x_t: Tensor
    delta: Tensor

    def __str__(self) -> str:
        budget = f"{self.budget.norm} radius {shown(float(self.budget.radius))}"
        return (
            f"t={shown(self.t)}, alpha={shown(self.alpha)}, sigma={shown(self.sigma)}, "
            f"{budget} in {self.budget.unit} units, seed={self.seed}, shape={list(self.x_t.shape)}"
        )


def denoiser_of(
    backbone: Backbone,
    schedule: NoiseSchedule,
    *,
    parametrization: str = "eps",
    sigma_data: float = 1.0,
    c_noise: str = "index",
) -> Denoise:
    """A backbone worn as a denoiser, as a recipe's model of the same keys is.

    Args:
        backbone: The network; its mode is left as it is.
        schedule: The noise schedule.
        parametrization: What its output means: "eps", "x0", "v", "flow" or "edm".
        sigma_data: Standard deviation of the data that it assumes.
        c_noise: "index" or "log-sigma".
    """
    wear = Wear(
        schedule=schedule, parametrization=parametrization, sigma_data=sigma_data, c_noise=c_noise
    )

    def denoise(x_t: Tensor, t: Tensor) -> Prediction:
        return wear(backbone, x_t, t)

    return denoise


def equivariance_error(  # noqa: PLR0913 - what can be fixed or searched.
    denoiser: Denoise,
    schedule: NoiseSchedule,
    x0: Tensor,
    *,
    t: Tensor | None = None,
    delta: Tensor | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    ascent: int = 0,
    rule: Rule = "equivariant",
) -> Witness:
    """How far a denoiser is from the rule on a batch, with the worst sample as witness.

    Args:
        denoiser: Any function of `x_t` [B, ...] and `t` [B] that returns a `Prediction`.
        schedule: The noise schedule.
        x0: Clean samples [B, ...].
        t: Times [B]; spread evenly over the training times if None.
        delta: Perturbation [B, ...] in units of the budget; drawn on its boundary if None.
        budget: Norm, radius and unit; an L2 ball of radius 0.5 in units of `x_t` if None.
        seed: Seed of noise and perturbation.
        ascent: Steps of gradient ascent that make the error larger, inside the budget.
        rule: "equivariant" or "invariant".
    """
    budget = budget if budget is not None else Budget("l2", 0.5)
    count = x0.shape[0]
    if t is None:
        u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        t = schedule.quantile(u)
    t = t.to(x0.dtype)
    alpha, sigma = expand(schedule.alpha(t), x0), expand(schedule.sigma(t), x0)
    x_t = alpha * x0 + sigma * gaussian(seed, x0.shape, dtype=x0.dtype)
    scale = sigma if budget.unit == "noise" else torch.ones_like(sigma)
    start = delta if delta is not None else delta_in(budget, x0.shape, seed, boundary=True)
    if delta is not None:
        budget = budget._replace(radius=norms.norm(start, budget.norm).max())
    base = denoiser(x_t, t)

    def errors(inside: Tensor) -> Tensor:
        return _errors(denoiser, base, t, inside * scale, rule)

    found, worst = _climb(errors, start.to(x0.dtype), budget, ascent)
    row = int(worst.argmax())
    return Witness(
        rule=rule, error=float(worst[row]), t=float(t[row]), alpha=float(alpha[row].flatten()[0]),
        sigma=float(sigma[row].flatten()[0]), budget=_of_row(budget, row), seed=seed,
        x_t=x_t[row].detach(), delta=(found * scale)[row].detach(),
    )  # fmt: skip


def _of_row(budget: Budget, row: int) -> Budget:
    radius = torch.as_tensor(budget.radius)
    return budget._replace(radius=float(radius if radius.dim() == 0 else radius[row]))


def _errors(denoiser: Denoise, base: Prediction, t: Tensor, delta: Tensor, rule: Rule) -> Tensor:
    """Error of each sample [B] for a perturbation [B, ...] in units of `x_t`."""
    assert base.sigma is not None
    moved = denoiser(base.x_t + delta, t)
    change = base.sigma * (moved.eps - base.eps)
    residual = change - delta if rule == "equivariant" else change
    length = _length(delta).clamp_min(torch.finfo(delta.dtype).tiny)
    size = _length(base.x_t) + _length(base.sigma * base.eps) + length
    rounding = ROUNDING * torch.finfo(delta.dtype).eps * size
    return (_length(residual) - rounding).clamp_min(0) / length


def _length(x: Tensor) -> Tensor:
    flat: Tensor = x.flatten(1).square().sum(1)
    # The slope of a root at 0 is infinite: an exact denoiser must not give NaN.
    return torch.where(flat > 0, flat, 1.0).sqrt() * (flat > 0)


def _climb(
    errors: Callable[[Tensor], Tensor], start: Tensor, budget: Budget, steps: int
) -> tuple[Tensor, Tensor]:
    """The perturbation [B, ...] of largest error per sample, and that error [B]."""
    with torch.no_grad():
        best, worst = start, errors(start)
    delta = start
    radius = torch.as_tensor(budget.radius).to(start).expand(start.shape[0])
    for _ in range(steps):
        leaf = delta.detach().requires_grad_()
        (slope,) = torch.autograd.grad(errors(leaf).sum(), leaf)
        ahead = leaf.detach() + STEP * expand(radius, slope) * norms.steepest_ascent(
            slope.nan_to_num(), budget.norm
        )
        delta = norms.project(ahead, norm=budget.norm, radius=radius)
        with torch.no_grad():
            now = errors(delta)
        better = now > worst
        best = torch.where(expand(better, best), delta, best)
        worst = torch.where(better, now, worst)
    return best, worst


def assert_equivariant(denoiser: Denoise, schedule: NoiseSchedule, **how: Any) -> None:
    """Look for a perturbation that a denoiser does not explain as more noise.

    Args:
        denoiser: Any function of `x_t` [B, ...] and `t` [B] that returns a `Prediction`.
        schedule: The noise schedule.
        how: `shape` of a sample, or `x0` [B, ...]; `budget` (drawn if left out), `times` [B]
            (drawn), `delta` [B, ...], `tolerance` (0.01), `examples` (25), `ascent` (0 steps).
            With `x0`, `times` and `budget` or `delta` nothing is drawn, so that it can be used
            inside `@given`.

    Raises:
        LawBroken: With the shrunk witness.
    """
    _assert("equivariant", denoiser, schedule, **how)


def assert_invariant(denoiser: Denoise, schedule: NoiseSchedule, **how: Any) -> None:
    """Look for a perturbation that moves a denoiser's eps_hat; keys as in `assert_equivariant`.

    Raises:
        LawBroken: With the shrunk witness.
    """
    _assert("invariant", denoiser, schedule, **how)


def _assert(  # noqa: PLR0913 - what can be fixed or searched.
    rule: Rule,
    denoiser: Denoise,
    schedule: NoiseSchedule,
    *,
    shape: Sequence[int] | None = None,
    x0: Tensor | None = None,
    times: Tensor | None = None,
    delta: Tensor | None = None,
    budget: Budget | None = None,
    tolerance: float = 0.01,
    examples: int = 25,
    ascent: int = 0,
) -> None:
    if x0 is None and shape is None:
        message = "give the shape of a sample, or samples x0"
        raise ValueError(message)

    def attempt(seed: int, share: float, ball: Budget) -> None:
        __tracebackhide__ = True
        x = x0 if x0 is not None else gaussian(seed + 1, (1, *(shape or (2,))), dtype=torch.float64)
        t = times if times is not None else _time(schedule, share, x.shape[0])
        worst = equivariance_error(
            denoiser,
            schedule,
            x,
            t=t,
            delta=delta,
            budget=ball,
            seed=seed,
            ascent=ascent,
            rule=rule,
        )
        if not worst.error <= tolerance:
            raise LawBroken(_line(rule, worst, tolerance))

    if x0 is not None and times is not None and (budget is not None or delta is not None):
        # Nothing is left to search: fit for use inside a test with @given of its own.
        attempt(0, 0.0, budget if budget is not None else Budget("l2", 0.0))
        return
    balls: SearchStrategy[Budget] = budgets() if budget is None else st.just(budget)
    shares = st.integers(0, 100).map(lambda n: n / 100)
    search = hypothesis.given(seed=st.integers(0, 999), share=shares, ball=balls)(attempt)
    hypothesis.settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, print_blob=False,
        report_multiple_bugs=False, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )(search)()  # fmt: skip


def _time(schedule: NoiseSchedule, share: float, count: int) -> Tensor:
    """One time `count` times [B]; share 0 is the least noisy."""
    t = schedule.t_min + share * (schedule.t_max - schedule.t_min)
    return schedule.snap(torch.full((count,), t, dtype=torch.float64).clamp(max=schedule.t_max))


def _line(rule: Rule, worst: Witness, tolerance: float) -> str:
    other = "x0_hat" if rule == "equivariant" else "eps_hat"
    return (
        f"not {rule}: found {shown(100 * worst.error)} % of a perturbation in {other}, wanted at "
        f"most {shown(100 * tolerance)} % ({WORDS[rule]}); witness: {worst}"
    )
