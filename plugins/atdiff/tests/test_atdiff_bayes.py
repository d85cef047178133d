"""On a perfect denoiser, exactly: what the `full` and the `frozen` ascent do to the loss."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from advdiff_atdiff.perturbations import Free
from torch import Tensor

from advdiff_core import Budget, Build, Noised

DIMS, STEP, SAMPLES = 64, 0.05, 1024
LEVELS = [0.9999, 0.999, 0.99, 0.9, 0.5, 0.05]


class Bayes(NamedTuple):
    """The best denoiser of Gaussian data at one noise level.

    Attributes:
        noised: Samples.
        jacobian: `d eps_hat / d x_t = s (ab C + s^2)^-1` [64, 64].
    """

    noised: Noised
    jacobian: Tensor

    def loss(self, view: Noised) -> Tensor:
        """Squared error of each sample [B] against the view's target."""
        assert view.eps is not None
        return (view.x_t @ self.jacobian - view.eps).square().sum(1)


def bayes(alpha_bar: float) -> Bayes:
    """Data whose variances fall by a power law, in a basis of their own."""
    generator = torch.Generator().manual_seed(3)
    draws = torch.randn(2 * SAMPLES + DIMS, DIMS, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(draws[:DIMS]).Q
    variances = 4.0 / torch.arange(1, DIMS + 1, dtype=torch.float64) ** 2
    root = basis @ torch.diag(variances.sqrt()) @ basis.T
    x0, eps = draws[DIMS : DIMS + SAMPLES] @ root, draws[DIMS + SAMPLES :]
    a, s = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    one = torch.eye(DIMS, dtype=torch.float64)
    jacobian = s * torch.linalg.inv(alpha_bar * root @ root + s**2 * one)
    scales = (torch.full((SAMPLES, 1), value, dtype=torch.float64) for value in (a, s))
    alpha, sigma = scales
    t = torch.zeros(SAMPLES, dtype=torch.float64)
    return Bayes(Noised(a * x0 + s * eps, x0, eps=eps, t=t, alpha=alpha, sigma=sigma), jacobian)


def moved(found: Bayes, delta: Tensor, ascent: str = "full") -> tuple[Noised, Tensor, Free]:
    """The view moved by delta, which is a leaf, as the core makes it."""
    keys = Free.Settings(alpha=STEP, rho=1.0, ascent=ascent)
    perturbation = Free(keys, Build(path="views.adv.perturb"))
    leaf = delta.clone().requires_grad_()
    radius = torch.full((SAMPLES,), 8.0, dtype=torch.float64)
    budget = Budget("l2", radius)
    return perturbation.apply(found.noised, leaf, budget, None), leaf, perturbation


def climbed(found: Bayes, ascent: str) -> Tensor:
    """Delta after one free step."""
    view, leaf, perturbation = moved(found, torch.zeros_like(found.noised.x_t), ascent)
    found.loss(view).sum().backward()
    assert leaf.grad is not None
    return perturbation.update(leaf.detach(), leaf.grad, Budget("l2", 8.0))


def grows(found: Bayes, delta: Tensor) -> float:
    """Loss with the moved target over the loss at the unmoved input."""
    with torch.no_grad():
        view, _, _ = moved(found, delta)
        return float(found.loss(view).mean() / found.loss(found.noised).mean())


@pytest.mark.parametrize("alpha_bar", LEVELS)
def test_the_full_ascent_raises_the_loss_and_the_frozen_one_lowers_it(alpha_bar: float) -> None:
    """At every noise level; a random step of that length lies between (trap 2)."""
    found = bayes(alpha_bar)
    generator = torch.Generator().manual_seed(9)
    noise = torch.randn(SAMPLES, DIMS, generator=generator, dtype=torch.float64)
    random = STEP * noise / noise.norm(dim=1, keepdim=True)
    full, frozen = climbed(found, "full"), climbed(found, "frozen")
    for delta in (full, frozen):
        torch.testing.assert_close(delta.norm(dim=1), torch.full_like(delta[:, 0], STEP))
    low, middle, high = (grows(found, delta) for delta in (frozen, random, full))
    assert low < 1 < high
    assert low < middle < high


@pytest.mark.parametrize("alpha_bar", LEVELS)
def test_the_two_directions_never_agree(alpha_bar: float) -> None:
    """`J r` against `(J - 1 / s) r`: J is symmetric with eigenvalues between 0 and 1 / s."""
    found = bayes(alpha_bar)
    full, frozen = climbed(found, "full") / STEP, climbed(found, "frozen") / STEP
    s = (1 - alpha_bar) ** 0.5
    residual = found.noised.x_t @ found.jacobian - found.noised.eps
    for direction, slope in (
        (frozen, found.jacobian), (full, found.jacobian - torch.eye(DIMS).double() / s),
    ):  # fmt: skip
        gradient = residual @ slope
        expected = gradient / gradient.norm(dim=1, keepdim=True)
        torch.testing.assert_close(direction, expected, rtol=1e-6, atol=1e-9)
    cosine = (full * frozen).sum(1)
    assert (cosine < 0).all()


def test_little_noise_shows_it_most() -> None:
    """At alpha_bar = .9999, where the step is five times the noise of a pixel.

    Measured once on other data of this kind: frozen .72, random 1.39, full 2.64.
    """
    found = bayes(0.9999)
    frozen, full = (grows(found, climbed(found, ascent)) for ascent in ("frozen", "full"))
    assert 0.4 < frozen < 0.8
    assert 2.3 < full < 2.9
