"""How much a regulariser weighs in a sample: by its radius, and near the data.

The core multiplies these factors by the term's `weight` (lambda) and its `ramp`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from advdiff_core import Budget, Noised, Perturbation, expand
from advdiff_core.interfaces.perturbation import scale_of
from advdiff_core.settings import setting, settings
from advdiff_core.types import Domain
from advdiff_robustadv.baselines import GaussianSmoothing, InputPerturbation
from advdiff_robustadv.perturbations import Ray
from advdiff_robustadv.rays import SQRT3, noise_share, size_of

__all__ = ["WeightKeys", "low_noise_factor", "noise_radius", "rule_weight", "weight_of"]


@settings
class WeightKeys:
    """Keys of the weight of a sample."""

    weight_rule: Literal["inverse-radius", "constant"] = setting(
        "inverse-radius", help="factor per sample: sqrt(3) / r, with the radius used, or 1"
    )
    w_max: float = setting(
        10 / 3, ge=0.0,
        help="cap of that factor at w_max (sigma / r)^2, before the term's weight; 0 for none",
    )  # fmt: skip
    min_sigma: float = setting(
        0.0, ge=0.0, lt=1.0, help="samples with a share of noise s(t) below it weigh less"
    )
    below: Literal["drop", "taper"] = setting(
        "drop", help="what they weigh: nothing, or (s / min_sigma)^2 of the rest"
    )


def weight_of(
    keys: WeightKeys, noised: Noised, perturbation: Perturbation, domain: Domain | None
) -> Tensor:
    """Factor of each sample [B] of a perturbed view.

    Args:
        keys: The keys of the term.
        noised: The perturbed view, with its radius.
        perturbation: What moved it.
        domain: Range of the data, for budgets in pixels.
    """
    assert noised.radius is not None, "a perturbed view records its radius"
    counted = noised.radius
    if isinstance(perturbation, Ray | GaussianSmoothing) and perturbation.settings.relative:
        counted = counted / size_of(noised)
    weight = rule_weight(
        counted,
        noise_radius(noised.radius, noised, perturbation, domain),
        rule=keys.weight_rule,
        w_max=keys.w_max,
        per_std=_per_std(perturbation),
    )
    if keys.min_sigma > 0:
        weight = weight * low_noise_factor(noise_share(noised), keys.min_sigma, keys.below)
    return weight


def noise_radius(
    radius: Tensor, noised: Noised, perturbation: Perturbation, domain: Domain | None
) -> Tensor:
    """A radius [B] in the perturbation's unit, in units of eps."""
    assert noised.sigma is not None, "rays live on noised views"
    scale = scale_of(Budget("linf", 0.0, perturbation.unit), noised, domain)
    return (expand(radius, noised.x_t) * scale / noised.sigma).flatten()


def rule_weight(
    radius: Tensor, noise_radius: Tensor, *, rule: str, w_max: float, per_std: float = SQRT3
) -> Tensor:
    """Factor c(t) of each sample [B]; the core multiplies it by the term's `weight` lambda.

    FOUND: `lambda_t = lambda sqrt(3) / r(t)` (rule "inverse-radius"), that is lambda over the
    standard deviation of a uniform delta. DERIVED: `c <= w_max / noise_radius^2`, so that the
    weight of the regulariser against the denoising loss, `lambda c E[(delta / sigma)^2]`, is at
    most `lambda w_max` at every noise level.

    Args:
        radius: Radius used [B], in the unit it is counted in.
        noise_radius: The same radius in units of eps [B].
        rule: "inverse-radius" or "constant".
        w_max: Cap; 0 for none.
        per_std: Radius over the standard deviation of delta; for other laws than the uniform one
            both rules then see the box of equal standard deviation.

    Returns:
        Factor [B]; 0 where the radius is 0, as nothing was moved there.
    """
    some = radius > 0
    weight = torch.ones_like(radius)
    if rule == "inverse-radius":
        weight = per_std / torch.where(some, radius, 1.0)
    if w_max > 0:
        box = noise_radius * (SQRT3 / per_std)
        weight = torch.minimum(weight, w_max / torch.where(some, box, 1.0).square())
    return torch.where(some, weight, 0.0)


def low_noise_factor(share: Tensor, least: float, below: str) -> Tensor:
    """Factor of samples with little noise [B], 1 from the share `least` on (UNKNOWN, ours).

    Args:
        share: Share of noise s(t) [B].
        least: Share below which a sample weighs less; above 0.
        below: "drop" for 0 there, "taper" for `(share / least)^2`.
    """
    if below == "drop":
        return (share >= least).to(share.dtype)
    return (share / least).square().clamp(max=1.0)


def _per_std(perturbation: Perturbation) -> float:
    if isinstance(perturbation, GaussianSmoothing | InputPerturbation):
        return perturbation.per_std
    return SQRT3
