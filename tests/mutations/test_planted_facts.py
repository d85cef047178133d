"""Facts of equivariant adversarial training catch planted mistakes, each in its own words.

The laws of perturbations that belong to them (inside the budget, nothing at radius zero, uphill)
have theirs in `planted_perturbations`.
"""

from __future__ import annotations

import pytest
import torch
from advdiff_robustadv.perturbations import RayFGSM, RayRandom
from advdiff_robustadv.terms import Equivariance, Invariance

from advdiff_core import Budget, Build, EpsHat, LossTerm, Prediction, View, expand
from advdiff_core.schedules import EDM, Flow, VPLinear
from advdiff_core.settings import setting, settings
from advdiff_core.testing import (
    LawBroken,
    Moved,
    assert_equivariant,
    assert_explained,
    assert_gap_flat_at_zero,
    assert_invariant,
    assert_off_is_plain,
    assert_radius_grows,
    assert_silent_where_exact,
    point_denoiser,
)
from advdiff_core.testing.bench import gaussian
from advdiff_core.types import Noised

SCHEDULES = [cls(cls.Settings(), Build()) for cls in (VPLinear, Flow, EDM)]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
NOTHING = {"bias": "multiplicative", "gamma": 0.0, "beta_max": 0.0}
RANDOM, STILL = Moved("clean", RayRandom), Moved("clean", RayRandom, RayRandom.Settings(**NOTHING))


def noised(schedule) -> Noised:
    """A view over the training times."""
    t = schedule.quantile((torch.arange(6, dtype=torch.float64) + 0.5) / 6)
    x0, eps = gaussian(0, (6, 3), dtype=torch.float64), gaussian(1, (6, 3), dtype=torch.float64)
    alpha, sigma = expand(schedule.alpha(t), x0), expand(schedule.sigma(t), x0)
    return Noised(alpha * x0 + sigma * eps, x0, eps=eps, t=t, alpha=alpha, sigma=sigma)


@every_schedule
def test_a_noise_that_explains_its_input(schedule) -> None:
    """(a) It moves by delta / sigma; by delta itself, or not at all, it explains nothing."""
    view, delta = noised(schedule), torch.full((6, 3), 0.1, dtype=torch.float64)
    moved = view._replace(x_t=view.x_t + delta)
    assert_explained(view)
    assert_explained(moved._replace(eps=view.eps + delta / view.sigma))
    for mistake in (moved, moved._replace(eps=view.eps + delta)):
        with pytest.raises(LawBroken, match=r"noise does not explain the input: .* delta / sigma"):
            assert_explained(mistake)


@every_schedule
def test_a_gap_that_is_flat_at_zero(schedule) -> None:
    """(b) A denoiser that draws has a slope there: an attack would climb its noise."""
    assert_gap_flat_at_zero(point_denoiser(schedule), schedule, shape=(3,))
    calls = []

    def restless(x_t, t):
        calls.append(t)
        alpha, sigma = expand(schedule.alpha(t), x_t), expand(schedule.sigma(t), x_t)
        return Prediction("eps", x_t * len(calls), x_t, alpha, sigma)

    with pytest.raises(LawBroken, match=r"not flat at 0: .* the same weights, mode and random"):
        assert_gap_flat_at_zero(restless, schedule, shape=(3,))


@every_schedule
def test_the_point_denoiser_is_equivariant_and_not_invariant(schedule) -> None:
    """(d) The exact one."""
    assert_equivariant(point_denoiser(schedule), schedule, shape=(3,))
    with pytest.raises(LawBroken, match="not invariant"):
        assert_invariant(point_denoiser(schedule), schedule, shape=(3,))


class Careless(LossTerm):
    """Adds a constant to the residual, and so counts where nothing is moved."""

    @settings
    class Settings:
        """Keys."""

        view: str = setting("adv", ref="view", help="the perturbed view")

    def __init__(self, settings, build) -> None:
        super().__init__(settings, build)
        self.query, self.view = EpsHat("student", settings.view), View(settings.view)
        self.needs = (self.query, self.view)

    def forward(self, step):
        """Compared with the target, not with the unmoved prediction."""
        return (step.get(self.query) - step.get(self.view).eps).square().flatten(1).mean(1)


def test_a_regulariser_that_is_silent_where_it_should_be() -> None:
    """(d) The invariance and the literal shift cost an exact denoiser something."""
    assert_silent_where_exact(Equivariance, moved=RANDOM)
    assert_silent_where_exact(Equivariance, moved=Moved("clean", RayFGSM))
    literal = Equivariance.Settings(shift="literal")
    for term, keys in ((Equivariance, literal), (Invariance, None)):
        with pytest.raises(LawBroken, match=f"{term.__name__} costs an exactly equivariant"):
            assert_silent_where_exact(term, keys, moved=RANDOM)


def test_a_regulariser_that_is_off_where_nothing_moves() -> None:
    """(e) A loss against the target does not vanish with the radius."""
    assert_off_is_plain(Equivariance, moved=STILL)
    assert_off_is_plain(Invariance, moved=Moved("clean", RayFGSM, RayFGSM.Settings(**NOTHING)))
    for term, moved in ((Careless, STILL), (Equivariance, RANDOM)):
        with pytest.raises(LawBroken, match=f"{term.__name__} counts where nothing is moved"):
            assert_off_is_plain(term, moved=moved)


def ray_of(radius):
    """A ray whose radius is this function of a view."""

    class Planted(RayRandom):
        """Another radius."""

        def budget(self, noised, rng):
            """That one."""
            return Budget("linf", radius(noised).flatten())

    return Planted(RayRandom.Settings(), Build())


@every_schedule
def test_a_radius_that_grows_with_noise(schedule) -> None:
    """(f) With any law of the bias; one that falls, or lacks its bias, is told with its time."""
    for bias in ("constant", "random", "multiplicative"):
        ray = RayRandom(RayRandom.Settings(bias=bias), Build())
        least = 0.0 if bias == "multiplicative" else 8 / 255
        assert_radius_grows(ray, schedule, least=least)
    with pytest.raises(LawBroken, match=r"the radius falls with noise: found .* at t="):
        assert_radius_grows(ray_of(lambda noised: noised.alpha / noised.sigma), schedule)
    with pytest.raises(LawBroken, match=r"too small: found .* wanted at least 0\.1 - add the bias"):
        assert_radius_grows(ray_of(lambda noised: 0 * noised.sigma), schedule, least=0.1)
