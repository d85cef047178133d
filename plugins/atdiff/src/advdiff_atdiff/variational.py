"""Terms of the variational bound of a discrete chain whose variance is learned, in bits."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from advdiff_core import Domain, NoiseSchedule, expand

__all__ = ["Links", "density_bits", "kl_bits", "level_bits", "links"]

#: Difference of log-masses below which an interval's mass is its density times its width.
THIN = 1e-2


class Links(NamedTuple):
    """Steps of the chain from times t down to the training times before them; float64, [B].

    Attributes:
        first: True where the step ends at the data.
        precision: `(m - m_hat)^2 / v = precision (x0 - x0_hat)^2` for the means of the true and the
            model's posterior and the true variance v; 0 at the first time.
        log_variance: Logarithm of the smaller variance: the posterior's, which at the first time
            is 0 and is taken from the second (Nichol and Dhariwal, 2021, section 3.1).
        log_range: Logarithm of the larger variance, beta, over the smaller one.
    """

    first: Tensor
    precision: Tensor
    log_variance: Tensor
    log_range: Tensor


def links(schedule: NoiseSchedule, t: Tensor) -> Links:
    """The steps down from training times `t` [B] of a discrete schedule.

    With `f = 1 - snr(t) / snr(s)` for the time s before t: the posterior's mean is
    `alpha(s) f x0` plus a multiple of `x_t`, its variance `sigma(s)^2 f`; that of the forward step
    is `sigma(t)^2 f`.
    """
    count = schedule.num_steps
    assert count, "refused for continuous schedules"
    number = (t.double() * count).round()
    first = number < 1.5
    # The first step has no posterior: the second one stands in for it.
    second = number.clamp_min(2)
    log_snr, before = schedule.log_snr(second / count), schedule.log_snr((second - 1) / count)
    forgotten = -torch.expm1(log_snr - before)
    log_sigma = schedule.sigma((second - 1) / count).log()
    log_variance = 2 * log_sigma + forgotten.log()
    sigma, here = schedule.sigma(second / count), schedule.sigma(number / count)
    log_range = torch.where(
        # beta of the first step is sigma^2 itself.
        first,
        2 * here.log() - log_variance,
        2 * (sigma.log() - log_sigma),
    )
    precision = torch.where(first, 0.0, before.exp() * forgotten)
    return Links(first, precision, log_variance, log_range)


def kl_bits(error: Tensor, excess: Tensor, precision: Tensor) -> Tensor:
    """Divergence of the model's reverse step from the true posterior, in bits of each entry.

    Args:
        error: `x0 - x0_hat` [B, ...].
        excess: Logarithm of the model's variance over the true one [B, ...].
        precision: See `Links` [B].
    """
    scaled = (-excess).exp()
    gap = expand(precision, error).to(error) * error.square()
    return (excess + torch.expm1(-excess) + gap * scaled) / (2 * math.log(2))


def density_bits(error: Tensor, log_variance: Tensor) -> Tensor:
    """Negative log-density of `error` [B, ...] under N(0, exp(log_variance)), in bits of each."""
    squared = error.square() * (-log_variance).exp()
    return (math.log(2 * math.pi) + log_variance + squared) / (2 * math.log(2))


def level_bits(
    x: Tensor, mean: Tensor, log_variance: Tensor, *, domain: Domain, levels: int
) -> Tensor:
    """Negative log-probability that a Gaussian rounds to the values of images, in bits of each.

    The decoder of Ho et al. (2020, eq. 13): a value stands for the interval of its level, the least
    and the largest one for all that lies beyond them, too. The intervals are those of the data's
    domain, and the normal integral is exact, where released code takes an approximation by tanh.

    Args:
        x: Images [B, ...] whose values are levels.
        mean: Mean [B, ...].
        log_variance: Logarithm of the variance [B, ...].
        domain: Range of the values.
        levels: Number of levels in it.
    """
    half = domain.span / (levels - 1) / 2
    scale = (-log_variance / 2).exp()
    place, reach = (x - mean) * scale, half * scale
    low = torch.where(x < domain.low + half, -math.inf, place - reach)
    high = torch.where(x > domain.high - half, math.inf, place + reach)
    return -_log_mass(low, high, place, 2 * reach) / math.log(2)


def _log_mass(low: Tensor, high: Tensor, middle: Tensor, width: Tensor) -> Tensor:
    """Logarithm of the standard normal mass of [low, high], in both tails and of thin intervals."""
    # By symmetry the interval is moved to the tail where both ends have all their digits.
    above = low + high > 0
    low, high = torch.where(above, -high, low), torch.where(above, -low, high)
    top, bottom = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    apart = top - bottom
    mass = top + torch.log(-torch.expm1(-apart.clamp_min(THIN)))
    thin = width.log() - (middle.square() + math.log(2 * math.pi)) / 2
    return torch.where(apart < THIN, thin, mass)
