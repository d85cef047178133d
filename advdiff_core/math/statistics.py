"""Distances between sets of samples and estimates of noise: pure functions, exact in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Moments",
    "frechet_distance",
    "gaussian_frechet",
    "batches",
    "noise_levels",
    "root_mean_square",
    "sliced_wasserstein",
    "wasserstein_1d_squared",
    "wilson",
]

#: Median of |z| for a standard normal z.
MEDIAN_ABS_NORMAL = 0.6744897501960817


class Moments:
    """Mean and covariance of vectors that come in batches, in float64.

    Batches are merged by the pairwise update of Chan et al. (1979), which loses no digits when the
    mean is far from 0.

    Attributes:
        count: Vectors seen.
        mean: Their mean [D].
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self._scatter = torch.zeros(width, width, dtype=torch.float64)
        self._root: Tensor | None = None

    @classmethod
    def known(cls, count: int, mean: Tensor, covariance: Tensor) -> Moments:
        """Moments of `count` vectors with this mean [D] and unbiased covariance [D, D]."""
        moments = cls(len(mean))
        moments.count, moments.mean = count, mean.to(moments.mean)
        moments._scatter = covariance.to(moments.mean) * max(count - 1, 1)
        return moments

    @classmethod
    def of(cls, x: Tensor, *, rows: int = 4096) -> Moments:
        """Moments of the flattened samples `x` [N, ...], read `rows` at a time."""
        moments = cls(math.prod(x.shape[1:]))
        for part in batches(x.flatten(1), rows):
            moments.update(part)
        return moments

    def update(self, x: Tensor) -> None:
        """Add vectors [N, D]."""
        if len(x) == 0:
            return
        x = x.to(self.mean)
        mean = x.mean(dim=0)
        centred, shift = x - mean, mean - self.mean
        total = self.count + len(x)
        self._scatter += centred.T @ centred
        self._scatter += torch.outer(shift, shift) * (self.count * len(x) / total)
        self.mean = self.mean + shift * (len(x) / total)
        self.count = total
        self._root = None

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance [D, D] (divided by count - 1); 0 for fewer than two vectors."""
        return self._scatter / max(self.count - 1, 1)

    @property
    def root(self) -> Tensor:
        """R [D, r] with `R R^T` the covariance; kept until the next update."""
        if self._root is None:
            self._root = _root(self.covariance)
        return self._root

    @property
    def is_deficient(self) -> bool:
        """True if there are too few vectors for a covariance of full rank."""
        return self.count <= len(self.mean)


def batches(x: Tensor, rows: int) -> Iterator[Tensor]:
    """`x` [N, ...] in parts of at most `rows` samples."""
    for start in range(0, len(x), rows):
        yield x[start : start + rows]


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Frechet distance of two Gaussians with these moments; see `gaussian_frechet`."""
    return _frechet(a.mean, a.root, b.mean, b.root)


def gaussian_frechet(
    mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor
) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians, as in FID (Heusel et al. 2017).

    `|m_a - m_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a C_b)^(1/2))` (Dowson & Landau 1982). The last
    trace is the sum of the singular values of `R_a^T R_b` for any `C = R R^T`: no matrix root is
    taken, and directions without variance are dropped, so singular covariances lose no accuracy.

    Args:
        mean_a: Mean [D].
        covariance_a: Covariance [D, D], symmetric and positive semi-definite up to rounding.
        mean_b: Mean [D].
        covariance_b: Covariance [D, D].
    """
    roots = _root(covariance_a.double()), _root(covariance_b.double())
    return _frechet(mean_a.double(), roots[0], mean_b.double(), roots[1])


def _frechet(mean_a: Tensor, root_a: Tensor, mean_b: Tensor, root_b: Tensor) -> float:
    shift = (mean_a - mean_b).square().sum()
    overlap = torch.linalg.svdvals(root_a.T @ root_b).sum()
    traces = root_a.square().sum() + root_b.square().sum()
    return max(0.0, float(shift + traces - 2 * overlap))


def _root(covariance: Tensor) -> Tensor:
    """R [D, r] with `R R^T = covariance`; directions below rounding are left out."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    pivots = factor.diagonal()
    # Rounding moves the standard deviation s of a direction by eps s_max^2 / s: below 1e-9 of the
    # largest one where this holds.
    if not int(failed) and float(pivots.min()) > 1e-6 * float(pivots.max()):
        return factor
    return _pivoted_root((covariance + covariance.T) / 2)


def _pivoted_root(covariance: Tensor) -> Tensor:
    """The factor of Cholesky with diagonal pivoting (Higham 1990), which ends at the rank.

    Eigenvectors would do, but take longer, and LAPACK's solver gives up on some covariances of
    few samples, whose eigenvalues are 0 a thousand times.
    """
    left = covariance.diagonal().clone()
    floor = float(left.max()) * len(left) * torch.finfo(left.dtype).eps
    root, rank = torch.zeros_like(covariance), 0
    while rank < len(left):
        pivot = int(left.argmax())
        if float(left[pivot]) <= floor:
            break
        known = root[:, :rank]
        column = (covariance[:, pivot] - known @ known[pivot]) / left[pivot].sqrt()
        root[:, rank] = column
        left -= column.square()
        left[pivot] = 0
        rank += 1
    return root[:, :rank]


def sliced_wasserstein(a: Tensor, b: Tensor, directions: Tensor) -> float:
    """Sliced 2-Wasserstein distance of two sets of samples (Rabin et al. 2012), in their units.

    The root of the mean over directions of the squared, exact 1-D distance of the projections.

    Args:
        a: Samples [N, ...].
        b: Samples [M, ...]; N and M may differ.
        directions: Directions [P, D]; scaled to length 1.
    """
    directions = F.normalize(directions.double(), dim=1)
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    squared = [
        wasserstein_1d_squared(flat_a @ part.T, flat_b @ part.T) for part in batches(directions, 32)
    ]
    return math.sqrt(float(torch.cat(squared).mean()))


def wasserstein_1d_squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared 2-Wasserstein distances [P] of the columns of `a` [N, P] and `b` [M, P].

    Both quantile functions are steps, constant between the breakpoints `i / N` and `j / M`.
    """
    a, b = a.sort(dim=0).values, b.sort(dim=0).values
    n, m = len(a), len(b)
    if n == m:
        return (a - b).square().mean(dim=0)
    ends = torch.unique(torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]))
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    widths = (ends - starts).to(a) / (n * m)
    return widths @ (a[starts // m] - b[starts // n]).square()


def noise_levels(x: Tensor, estimator: str = "mean-square") -> Tensor:
    """Standard deviation of white noise in each image [N], from its second differences.

    The mask of Immerkaer (1996), the difference of two Laplacians, answers neither to constants nor
    to ramps nor to straight edges along an axis; what else an image holds (corners, texture) counts
    as noise. The mask is scaled to answer white noise with its own standard deviation.

    Args:
        x: Images [N, C, H, W], at least 3x3.
        estimator: "mean-square": root mean square of the answers; on average its square is the sum
            of those of image and noise. "immerkaer": mean absolute answer, as in the paper. "mad":
            median absolute answer, which edges move least.
    """
    line = torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64, device=x.device)
    mask = torch.outer(line, line)[None, None] / 6
    planes = x.double().flatten(0, 1)[:, None]
    answers = F.conv2d(planes, mask).reshape(len(x), -1)
    if estimator == "mean-square":
        return answers.square().mean(dim=1).sqrt()
    if estimator == "immerkaer":
        return math.sqrt(math.pi / 2) * answers.abs().mean(dim=1)
    return answers.abs().quantile(0.5, dim=1) / MEDIAN_ABS_NORMAL


def root_mean_square(values: Tensor) -> float:
    """Root mean square of values of any shape."""
    return float(values.double().square().mean().sqrt())


def wilson(hits: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927): true shares that `hits` of `count` do not reject.

    Args:
        hits: Successes.
        count: Trials, at least one.
        confidence: Coverage, for example 0.95.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, scale = hits / count, 1 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)
