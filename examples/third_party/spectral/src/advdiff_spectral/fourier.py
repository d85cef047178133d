"""The norm of the largest Fourier amplitude: its ball, its projection, its steepest ascent.

For images [B, C, H, W], `F` is the orthonormal two-dimensional DFT of each channel. White noise has
`E|F(k)|^2 = 1` at every frequency k, so an amplitude is a share of the noise there. The norm of a
sample is `max_k |F(k)|` over its channels and frequencies.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ascent", "band", "norm", "project"]

NYQUIST = 0.5
#: Amplitudes below this share of a sample's largest are rounding.
ROUNDING = 1e-5


def band(size: tuple[int, int], low: float, high: float) -> Tensor:
    """Which frequencies of an image lie in a ring [H, W], bool.

    Args:
        size: Height and width.
        low: Inner radius, as a share of the Nyquist frequency; 0 takes the mean in.
        high: Outer radius; the corners of the spectrum lie at sqrt(2).
    """
    rows, columns = (torch.fft.fftfreq(count, dtype=torch.float64) for count in size)
    radius = (rows[:, None].square() + columns.square()).sqrt() / NYQUIST
    # A frequency is inside however its radius is rounded.
    return (radius >= low - 1e-9) & (radius <= high + 1e-9)


def norm(delta: Tensor) -> Tensor:
    """Largest Fourier amplitude of each sample [B]; delta is [B, C, H, W]."""
    return _forward(delta).abs().flatten(1).amax(1)


def project(delta: Tensor, inside: Tensor, amplitude: Tensor) -> Tensor:
    """The nearest images [B, C, H, W] with frequencies inside a band and amplitudes of a bound.

    The set is a product of discs in an orthonormal basis, so that its (Euclidean) projection treats
    each frequency on its own.

    Args:
        delta: Images [B, C, H, W].
        inside: The band [H, W], bool.
        amplitude: Bound of each sample [B, 1, 1, 1].
    """
    spectrum = _forward(delta)
    size = spectrum.abs()
    shrunk = torch.where(size > amplitude, amplitude / _nonzero(size), 1.0)
    return _backward(spectrum * (shrunk * inside), delta)


def ascent(gradient: Tensor, inside: Tensor) -> Tensor:
    """The step [B, C, H, W] of norm 1 inside a band along which a linear function grows fastest.

    `<g, delta> = sum_k Re conj(G(k)) D(k)` is largest at `D(k) = G(k) / |G(k)|` (the dual norm is
    the sum of amplitudes). Zero where the gradient has nothing but rounding, whose phase is chance.

    Args:
        gradient: Gradient [B, C, H, W].
        inside: The band [H, W], bool.
    """
    # Gradients of a saturated network are as small as 1e-30: their squares would vanish.
    largest = gradient.abs().flatten(1).amax(1).reshape(-1, 1, 1, 1)
    spectrum = _forward(gradient / _nonzero(largest))
    size = spectrum.abs()
    heard = size > ROUNDING * size.flatten(1).amax(1).reshape(-1, 1, 1, 1)
    return _backward(spectrum * (inside & heard) / _nonzero(size), gradient)


def _forward(x: Tensor) -> Tensor:
    # The transform knows no 16-bit floats.
    return torch.fft.fft2(x.to(torch.promote_types(x.dtype, torch.float32)), norm="ortho")


def _backward(spectrum: Tensor, like: Tensor) -> Tensor:
    # Real up to rounding: the spectrum of a real image is symmetric, and so is a ring.
    return torch.fft.ifft2(spectrum, norm="ortho").real.to(like.dtype)


def _nonzero(x: Tensor) -> Tensor:
    return torch.where(x == 0, 1.0, x)
