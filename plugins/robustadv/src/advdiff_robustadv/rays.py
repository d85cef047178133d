"""The radius schedule r(t) of Robust_adv: how far an input may be moved at a noise level.

FOUND: r follows sqrt(1 - alpha_bar) with exponent 2, plus a random bias of at least 8/255 that
keeps it from vanishing near t = 0. The closed form and the law of the bias are UNKNOWN; this one is
DERIVED.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from advdiff_core import Draws, Noised
from advdiff_core.settings import setting, settings

__all__ = [
    "RELATIVE", "SOURCE", "SQRT3", "RaySettings", "bias_of", "noise_share", "radius", "size_of",
]  # fmt: skip

#: The paper, for `advdiff explain`; the README says how certain each part is.
SOURCE = "What Is Adversarial Training for Diffusion Models? (arXiv 2505.21742)"

#: Radius of a box over the standard deviation of what is uniform in it.
SQRT3 = 3**0.5

_RANDOM = ("random", "multiplicative")

#: A key of every ray.
RELATIVE = setting(
    False, applies=("unit", ("image",)),
    help="count r(t) in sqrt(alpha^2 + sigma^2), the size of x_t, which is 1 on vp schedules",
)  # fmt: skip


@settings
class RaySettings:
    """Keys of the radius `r(t) = s(t)^omega + beta`, with `s = sigma / sqrt(alpha^2 + sigma^2)`."""

    omega: float = setting(2.0, gt=0.0, help="exponent of the noise share s(t)")
    gamma: float = setting(8 / 255, ge=0.0, help="smallest bias beta, which remains near t = 0")
    bias: Literal["constant", "random", "multiplicative"] = setting(
        "constant", help="beta is gamma; uniform in [gamma, beta_max]; or that as factor of s^omega"
    )
    beta_max: float | None = setting(
        None, ge=0.0, applies=("bias", _RANDOM),
        help="largest bias; 2 gamma if random and 1 if multiplicative when left out",
    )  # fmt: skip
    unit: Literal["image", "noise"] = setting(
        "image", help="add delta to x_t as it is, or to eps, which moves x_t by sigma delta"
    )
    relative: bool = RELATIVE

    def __attrs_post_init__(self) -> None:
        """Check the bounds of the bias.

        Raises:
            ValueError: If the largest bias is below the smallest.
        """
        if self.bias != "constant" and self.largest_bias < self.gamma:
            message = f"beta_max: {self.largest_bias} must be at least gamma, {self.gamma}"
            raise ValueError(message)

    @property
    def largest_bias(self) -> float:
        """Upper end of the law of beta."""
        if self.beta_max is not None:
            return self.beta_max
        return {"constant": self.gamma, "random": 2 * self.gamma, "multiplicative": 1.0}[self.bias]


def noise_share(noised: Noised) -> Tensor:
    """Share of noise `s = sigma / sqrt(alpha^2 + sigma^2)` of each sample [B], in [0, 1].

    On a variance-preserving schedule this is the paper's `sqrt(1 - alpha_bar)`; on others it is the
    same number at the same signal-to-noise ratio (DERIVED).
    """
    assert noised.sigma is not None, "rays live on noised views"
    return noised.sigma.flatten() / size_of(noised)


def size_of(noised: Noised) -> Tensor:
    """Root mean square `sqrt(alpha^2 + sigma^2)` of `x_t` for data of unit variance [B]."""
    assert noised.alpha is not None, "rays live on noised views"
    assert noised.sigma is not None
    return (noised.alpha.square() + noised.sigma.square()).sqrt().flatten()


def bias_of(keys: RaySettings, like: Tensor, rng: Draws) -> Tensor:
    """Bias beta of each sample [B]; `like` [B] gives its type."""
    if keys.bias == "constant":
        return torch.full_like(like, keys.gamma)
    return rng.uniform(like.shape, keys.gamma, keys.largest_bias).to(like.dtype)


def radius(keys: RaySettings, noised: Noised, rng: Draws) -> Tensor:
    """Radius r(t) of each sample [B], in the perturbation's unit."""
    share = noise_share(noised)
    shape, beta = share**keys.omega, bias_of(keys, share, rng)
    found = beta * shape if keys.bias == "multiplicative" else shape + beta
    return found * size_of(noised) if keys.relative else found
