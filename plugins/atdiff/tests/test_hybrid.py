"""The hybrid loss against independent readings: distributions of torch, diffusers, closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from advdiff_atdiff import variational
from advdiff_atdiff.hybrid import Hybrid
from advdiff_atdiff.perturbations import Free
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from advdiff_core import (
    Budget,
    Build,
    ContractError,
    DataInfo,
    Domain,
    ModelInfo,
    Noised,
    Prediction,
    RecipeError,
    ViewInfo,
)
from advdiff_core.schedules import EDM, VPCosine, VPLinear

# Converted tensors inside diffusers, under the newest numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

UNIT = Domain(-1.0, 1.0)
SHAPE = (2, 3, 3)
SCHEDULES = {
    "linear": VPLinear(VPLinear.Settings(), Build()),
    "cosine": VPCosine(VPCosine.Settings(), Build()),
    "short": VPLinear(VPLinear.Settings(num_steps=2, beta_start=0.1, beta_end=0.5), Build()),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def told(schedule: Any = SCHEDULES["linear"], domain: Domain | None = UNIT, **keys: Any) -> Build:
    """What the term is told."""
    data = DataInfo(shape=SHAPE, count=10, domain=domain)
    return Build(path="terms.hybrid", data=data, **{"schedule": schedule, **keys})


def term(schedule: Any = SCHEDULES["linear"], domain: Domain | None = UNIT, **keys: Any) -> Hybrid:
    """The loss with these settings."""
    settings: Any = Hybrid.Settings
    return Hybrid(settings(**keys), told(schedule, domain))


def noised(schedule: Any, numbers: list[int], seed: int = 0) -> Noised:
    """Images of 256 levels at the times of these numbers, from 1."""
    t = torch.tensor(numbers, dtype=torch.float64) / schedule.num_steps
    levels = torch.randint(0, 256, (len(t), *SHAPE), generator=torch.Generator().manual_seed(seed))
    x0, eps = levels.double() / 127.5 - 1, normal(len(t), *SHAPE, seed=seed + 1)
    alpha, sigma = (s.reshape(-1, 1, 1, 1) for s in (schedule.alpha(t), schedule.sigma(t)))
    return Noised(alpha * x0 + sigma * eps, x0, eps=eps, t=t, alpha=alpha, sigma=sigma)


def predicted(view: Noised, seed: int = 7, error: float = 0.3) -> Prediction:
    """Noise that is nearly right, and a head that says something, also outside of [-1, 1]."""
    assert view.eps is not None
    eps = view.eps + error * normal(*view.eps.shape, seed=seed)
    head = 1.2 * normal(*view.eps.shape, seed=seed + 1)
    return Prediction("eps", eps, view.x_t, view.alpha, view.sigma, variance=head)


def bits_by_hand(schedule: Any, number: int, view: Noised, prediction: Prediction) -> Tensor:
    """The bound's term [1, ...] from tables of betas, as the papers write them."""
    count = schedule.num_steps
    times = torch.arange(count + 1, dtype=torch.float64) / count
    bar = schedule.alpha(times).square()
    beta = 1 - bar[1:] / bar[:-1]
    posterior = beta * (1 - bar[:-1]) / (1 - bar[1:])
    clipped = torch.cat([posterior[1:2], posterior[1:]])
    i, x, x0 = number - 1, view.x_t, view.x0
    # Ho et al. (2020), eq. 7.
    of_x0 = bar[i].sqrt() * beta[i] / (1 - bar[i + 1])
    of_x = (1 - beta[i]).sqrt() * (1 - bar[i]) / (1 - bar[i + 1])
    x0_hat = (x - (1 - bar[i + 1]).sqrt() * prediction.value) / bar[i + 1].sqrt()
    assert prediction.variance is not None
    share = (prediction.variance + 1) / 2
    std = (share * beta[i].log() + (1 - share) * clipped[i].log()).exp().sqrt()
    ours = Normal(of_x0 * x0_hat + of_x * x, std)
    if number > 1:
        true = Normal(of_x0 * x0 + of_x * x, posterior[i].sqrt().expand_as(x))
        return kl_divergence(true, ours) / math.log(2)
    low, high = ours.cdf(x0 - 1 / 255), ours.cdf(x0 + 1 / 255)
    mass = torch.where(x0 < -0.999, high, torch.where(x0 > 0.999, 1 - low, high - low))
    return -mass.log2()


@pytest.mark.parametrize("name", SCHEDULES)
def test_bound_equals_the_papers_formulas(name: str) -> None:
    """Divergence and likelihood from tables of betas and torch's distributions, float64."""
    schedule = SCHEDULES[name]
    count = schedule.num_steps
    for number in sorted({1, 2, min(3, count), count // 2, count - 1, count} - {0}):
        view = noised(schedule, [number], seed=number)
        prediction = predicted(view, error=0.01 if number == 1 else 0.3)
        found = term(schedule).bound(prediction, view)
        wanted = bits_by_hand(schedule, number, view, prediction).mean().reshape(1)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_mean_and_variance_are_those_of_diffusers(name: str) -> None:
    """Its DDPMScheduler's step with next to no variance is the mean; its variance is ours."""
    schedule = SCHEDULES[name]
    beta_schedule = "linear" if name == "linear" else "squaredcos_cap_v2"
    theirs = DDPMScheduler(
        beta_schedule=beta_schedule, clip_sample=False, variance_type="learned_range"
    )
    for number in (2, 50, 400, 900):
        view = noised(schedule, [number])
        prediction = predicted(view)
        head = prediction.variance
        assert head is not None
        found = variational.links(schedule, view.t)
        ours = ((head + 1) / 2 * found.log_range + found.log_variance).exp()
        wanted = theirs._get_variance(number - 1, head).exp()
        torch.testing.assert_close(ours, wanted, rtol=2e-3, atol=0)
        means = [
            theirs.step(
                torch.cat([eps, torch.full_like(eps, -1e7)], dim=1),
                number - 1,
                view.x_t,
                generator=torch.Generator(),
            ).prev_sample
            for eps in (view.eps, prediction.value)
        ]
        gap = (means[0] - means[1]).square() / found.log_variance.exp()
        error = (view.x0 - prediction.x0).square()
        # Its tables are in float32.
        torch.testing.assert_close(found.precision * error, gap, rtol=1e-2, atol=1e-6)


def test_the_loss_is_the_squared_error_and_the_bound_times_its_weight() -> None:
    """`vb T / 1000`, from a step that answers its two queries; in any space."""
    view = noised(SCHEDULES["linear"], [1, 30, 1000])
    prediction = predicted(view, error=0.01)

    class Answers:
        """A step."""

        def get(self, query: Any) -> Any:
            """The prediction or the view."""
            return prediction if type(query).__name__ == "Forward" else view

    assert view.eps is not None
    made = term()
    error = (prediction.value - view.eps).square().flatten(1).mean(1)
    wanted = error + made.bound(prediction, view)
    torch.testing.assert_close(made(Answers()), wanted, rtol=1e-12, atol=0)
    wanted = (prediction.v - view.truth("v")).square().flatten(1).mean(1)
    torch.testing.assert_close(term(vb_weight=0.0, space="v")(Answers()), wanted)
    half = term(vb_weight=0.0005)(Answers()) - error
    torch.testing.assert_close(half, made.bound(prediction, view) / 2, rtol=1e-9, atol=1e-12)


def test_the_bound_trains_the_head_alone() -> None:
    """No gradient reaches the prediction; one reaches the head, at the first time, too."""
    view = noised(SCHEDULES["cosine"], [1, 2, 700])
    prediction = predicted(view, error=0.01)
    value = prediction.value.requires_grad_()
    head = prediction.variance.requires_grad_()  # type: ignore[union-attr]
    loss = term(SCHEDULES["cosine"]).bound(prediction._replace(value=value, variance=head), view)
    assert torch.autograd.grad(loss.sum(), value, allow_unused=True, retain_graph=True) == (None,)
    (gradient,) = torch.autograd.grad(loss.sum(), head)
    assert bool((gradient.abs().flatten(1).amax(1) > 0).all())


def test_a_perfect_prediction_with_the_posteriors_variance_costs_nothing() -> None:
    """The divergence is 0 there, and above 0 elsewhere."""
    view = noised(SCHEDULES["linear"], [2, 500, 1000])
    right = predicted(view, error=0.0)
    least = right._replace(variance=torch.full_like(view.x_t, -1.0))
    torch.testing.assert_close(term().bound(least, view), torch.zeros(3).double())
    assert bool((term().bound(right, view) > 0).all())


@given(variance=st.floats(1e-3, 1.0), number=st.sampled_from([2, 10, 200, 1000]))
def test_the_best_variance_holds_what_the_denoiser_does_not_know(
    variance: float, number: int
) -> None:
    """For Gaussian data: posterior variance plus that of its mean over x0; the gradient is 0."""
    schedule = SCHEDULES["linear"]
    t = torch.tensor([number / 1000], dtype=torch.float64)
    found = variational.links(schedule, t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    left = 1 / (1 / variance + (alpha / sigma).square())  # Var(x0 | x_t)
    best = torch.log1p(found.precision * left).requires_grad_()
    error = left.sqrt() * torch.tensor([[-1.0], [1.0]]).double()
    bits = variational.kl_bits(error, best.expand(2, 1), found.precision.expand(2)).mean()
    (gradient,) = torch.autograd.grad(bits, best)
    assert float(gradient.abs()) < 1e-9
    assert float(best.detach()) >= 0


@given(
    mean=st.floats(-1.5, 1.5),
    log_std=st.floats(-9, 4),
    levels=st.sampled_from([2, 17, 256]),
    domain=st.sampled_from([UNIT, Domain(0.0, 1.0), Domain(0.0, 255.0)]),
)
def test_levels_share_the_whole_probability(
    mean: float, log_std: float, levels: int, domain: Domain
) -> None:
    """Over all levels of any domain it sums to 1: narrow, wide, and beyond the ends."""
    x = torch.linspace(domain.low, domain.high, levels, dtype=torch.float64)
    middle = domain.low + (mean + 1) / 2 * domain.span
    log_variance = torch.full_like(x, 2 * (log_std + math.log(domain.span / 2)))
    bits = variational.level_bits(
        x, torch.full_like(x, middle), log_variance, domain=domain, levels=levels
    )
    total = torch.logsumexp(-bits * math.log(2), dim=0)
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_far_from_the_mean_keep_a_finite_gradient(dtype: torch.dtype) -> None:
    """A hundred deviations away, at the ends, and in thin intervals: about `z^2 / 2` nats."""
    x = torch.tensor([-1.0, 1.0, 0.0, 0.00392157], dtype=dtype)
    mean = torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=dtype)
    for log_variance in (math.log(0.01**2), 8.0):
        leaf = torch.full_like(x, log_variance).requires_grad_()
        bits = variational.level_bits(x, mean, leaf, domain=UNIT, levels=256)
        (gradient,) = torch.autograd.grad(bits.sum(), leaf)
        assert bool(bits.isfinite().all() & gradient.isfinite().all())
        assert bool((bits > 0).all())
    leaf = torch.full_like(x, math.log(0.01**2))
    far = variational.level_bits(x, mean, leaf, domain=UNIT, levels=256)[0]
    z = (2 - 1 / 255) / 0.01
    assert float(far) * math.log(2) == pytest.approx(z * z / 2, rel=1e-2)


def test_data_without_a_range_have_a_density() -> None:
    """At the first time: that of a Gaussian around the estimate, in bits."""
    schedule = SCHEDULES["linear"]
    view = noised(schedule, [1])
    prediction = predicted(view, error=0.01)
    found = term(schedule, None).bound(prediction, view)
    links = variational.links(schedule, view.t)
    assert prediction.variance is not None
    log_variance = (prediction.variance + 1) / 2 * links.log_range + links.log_variance
    wanted = -Normal(prediction.x0, (log_variance / 2).exp()).log_prob(view.x0) / math.log(2)
    torch.testing.assert_close(found, wanted.mean().reshape(1), rtol=1e-9, atol=0)


def moved(schedule: Any, delta: Tensor, **keys: Any) -> Noised:
    """A view that `free` moved by a leaf."""
    settings: Any = Free.Settings
    made = Free(settings(**keys), told(schedule))
    budget = Budget("l2", torch.full((len(delta),), 1e3).double(), "image")
    return made.apply(noised(schedule, [40, 300]), delta, budget, UNIT)


@pytest.mark.parametrize("ascent", ["full", "frozen"])
def test_the_bound_is_at_the_moved_input_and_the_ascent_goes_through_it_or_not(
    ascent: str,
) -> None:
    """Released table: `x_t + delta` with its gradient, or as a constant; x0 is the original."""
    schedule = SCHEDULES["cosine"]
    delta = (0.05 * normal(2, *SHAPE, seed=3)).requires_grad_()
    view = moved(schedule, delta, ascent=ascent)
    fixed = predicted(noised(schedule, [40, 300]))._replace(x_t=view.x_t)
    loss = term(schedule).bound(fixed, view)
    clean = noised(schedule, [40, 300])
    shifted = clean._replace(x_t=clean.x_t + delta.detach())
    wanted = [
        bits_by_hand(
            schedule, number,
            shifted._replace(x_t=shifted.x_t[i : i + 1], x0=clean.x0[i : i + 1]),
            fixed._replace(
                value=fixed.value[i : i + 1], variance=fixed.variance[i : i + 1]  # type: ignore[index]
            ),
        ).mean()
        for i, number in enumerate((40, 300))
    ]  # fmt: skip
    torch.testing.assert_close(loss.detach(), torch.stack(wanted), rtol=1e-6, atol=0)
    if ascent == "frozen":
        assert not loss.requires_grad
        return
    (gradient,) = torch.autograd.grad(loss.sum(), delta)
    links = variational.links(schedule, view.t)
    # d/dx of precision (x0 - x0_hat)^2 / (2 exp(excess)), x0_hat = (x - sigma eps) / alpha.
    assert fixed.variance is not None
    excess = (fixed.variance + 1) / 2 * links.log_range.reshape(2, 1, 1, 1)
    error = view.x0 - (view.x_t.detach() - view.sigma * fixed.value) / view.alpha
    slope = -links.precision.reshape(2, 1, 1, 1) * error / view.alpha * (-excess).exp()
    wanted_gradient = slope / math.log(2) / math.prod(SHAPE)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-6, atol=1e-9)


def test_with_a_fixed_target_the_bound_stays_at_the_unmoved_input() -> None:
    """Released table, `original`: the clean `x_t`, whatever the input was moved by."""
    schedule = SCHEDULES["cosine"]
    delta = (0.05 * normal(2, *SHAPE, seed=3)).requires_grad_()
    view = moved(schedule, delta, target="fixed")
    clean = noised(schedule, [40, 300])
    prediction = predicted(clean)
    found = term(schedule).bound(prediction._replace(x_t=view.x_t), view)
    torch.testing.assert_close(found, term(schedule).bound(prediction, clean))
    assert not found.requires_grad


def test_recipes_without_such_a_loss_are_refused() -> None:
    """Continuous and exploding schedules, views of images, classifiers, models without a head."""
    continuous = VPLinear(VPLinear.Settings(num_steps=0), Build())
    settings: Any = Hybrid.Settings
    for schedule in (continuous, EDM(EDM.Settings(), Build()), None):
        with pytest.raises(RecipeError, match="of a discrete variance-preserving schedule"):
            term(schedule)
    image = {"image": ViewInfo(base=None, root="image")}
    with pytest.raises(RecipeError, match="'image' is a view of images") as caught:
        Hybrid(settings(view="image"), told(views=image))
    assert caught.value.faults[0].key == "terms.hybrid.view"
    known = {"kind": "backbone", "frozen": False}
    with pytest.raises(RecipeError, match="model 'student' is no denoiser"):
        Hybrid(settings(), told(models={"student": ModelInfo(**known)}))
    plain = ModelInfo(**known, parametrization="eps")
    with pytest.raises(RecipeError, match="model 'student' has no variance head") as caught:
        Hybrid(settings(), told(models={"student": plain}))
    assert "learn_sigma = true" in caught.value.faults[0].fix
    view = noised(SCHEDULES["linear"], [5])
    with pytest.raises(ContractError, match="model 'student' gave no variance"):
        term().bound(predicted(view)._replace(variance=None), view)
