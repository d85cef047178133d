"""Frechet distance, moments, sliced Wasserstein and noise levels against closed forms and scipy."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st

from advdiff_core.math.statistics import (
    Moments,
    frechet_distance,
    gaussian_frechet,
    noise_levels,
    root_mean_square,
    sliced_wasserstein,
    wasserstein_1d_squared,
)

seeds = st.integers(0, 10**6)


def _generator(seed):
    return torch.Generator().manual_seed(seed)


def _normal(*shape, seed=0):
    return torch.randn(*shape, generator=_generator(seed), dtype=torch.float64)


def _covariance(width, seed, rank=None):
    root = _normal(width, rank or 2 * width, seed=seed)
    return root @ root.T / width


def _scipy_frechet(mean_a, a, mean_b, b):
    product = scipy.linalg.sqrtm(a.numpy() @ b.numpy())
    shift = np.square(mean_a.numpy() - mean_b.numpy()).sum()
    return shift + np.trace(a.numpy()) + np.trace(b.numpy()) - 2 * np.trace(product.real)


@given(seeds, st.integers(1, 40))
def test_gaussian_frechet_equals_scipy_sqrtm(seed, width):
    """Within 1e-6 of the formula with scipy's matrix root."""
    a, b = _covariance(width, seed), _covariance(width, seed + 1)
    mean_a, mean_b = _normal(width, seed=seed + 2), _normal(width, seed=seed + 3)
    ours = gaussian_frechet(mean_a, a, mean_b, b)
    assert ours == pytest.approx(_scipy_frechet(mean_a, a, mean_b, b), rel=1e-6)


@given(seeds, st.integers(1, 20))
def test_gaussian_frechet_is_symmetric_and_zero_for_equals(seed, width):
    """d(a, b) = d(b, a) and d(a, a) = 0."""
    a, b = _covariance(width, seed), _covariance(width, seed + 1, rank=max(1, width // 2))
    mean_a, mean_b = _normal(width, seed=seed + 2), _normal(width, seed=seed + 3)
    there, back = gaussian_frechet(mean_a, a, mean_b, b), gaussian_frechet(mean_b, b, mean_a, a)
    assert there == pytest.approx(back, rel=1e-9)
    assert gaussian_frechet(mean_a, a, mean_a, a) == pytest.approx(0, abs=1e-10 * float(a.trace()))


@given(seeds, st.integers(2, 20))
def test_gaussian_frechet_is_exact_for_commuting_covariances(seed, width):
    """With shared axes it is |m|^2 + sum (sqrt(a_i) - sqrt(b_i))^2, singular ones included."""
    axes, _ = torch.linalg.qr(_normal(width, width, seed=seed))
    a, b = (torch.rand(width, generator=_generator(seed + k), dtype=torch.float64) for k in (1, 2))
    a[0], b[-1] = 0, 0
    zero = torch.zeros(width)
    ours = gaussian_frechet(zero, axes * a @ axes.T, zero + 0.5, axes * b @ axes.T)
    wanted = 0.25 * width + float((a.sqrt() - b.sqrt()).square().sum())
    assert ours == pytest.approx(wanted, rel=1e-9)


def test_gaussian_frechet_loses_nothing_on_singular_covariances():
    """64 dimensions of rank 3: the distance of a set to itself moved by 1e-4 is 64e-8, to 1e-6."""
    covariance = _covariance(64, 0, rank=3)
    zero = torch.zeros(64, dtype=torch.float64)
    ours = gaussian_frechet(zero, covariance, zero + 1e-4, covariance)
    assert ours == pytest.approx(64e-8, rel=1e-6)


@given(seeds, st.integers(2, 60), st.integers(1, 8), st.floats(-1e4, 1e4))
def test_moments_do_not_depend_on_batches_or_order(seed, count, width, far):
    """Streaming equals numpy's mean and covariance, also far from 0."""
    x = _normal(count, width, seed=seed) + far
    cuts = sorted(torch.randint(0, count, (3,), generator=_generator(seed)).tolist())
    moments = Moments(width)
    shuffled = x[torch.randperm(count, generator=_generator(seed + 1))]
    for part in torch.tensor_split(shuffled, cuts):
        moments.update(part)
    assert moments.count == count
    torch.testing.assert_close(moments.mean, x.mean(dim=0), rtol=1e-12, atol=1e-12)
    wanted = torch.from_numpy(np.atleast_2d(np.cov(x.numpy(), rowvar=False)))
    torch.testing.assert_close(moments.covariance, wanted, rtol=1e-7, atol=1e-10)


@given(seeds, st.integers(2, 12), st.integers(1, 12))
def test_moments_can_be_put_together_from_their_parts(seed, count, width):
    """Count, mean and covariance are all there is; further vectors continue from them."""
    x, more = _normal(count, width, seed=seed), _normal(3, width, seed=seed + 1)
    moments = Moments.of(x)
    again = Moments.known(moments.count, moments.mean, moments.covariance)
    assert frechet_distance(moments, again) == pytest.approx(0, abs=1e-12)
    for one in (moments, again):
        one.update(more)
    torch.testing.assert_close(again.covariance, Moments.of(torch.cat([x, more])).covariance)
    torch.testing.assert_close(again.root @ again.root.T, moments.covariance)


@pytest.mark.parametrize(("count", "deficient"), [(5, True), (6, False)])
def test_moments_know_when_there_are_too_few_vectors(count, deficient):
    """N vectors span N - 1 directions around their mean."""
    moments = Moments.of(_normal(count, 5))
    assert moments.is_deficient is deficient
    assert (int(torch.linalg.matrix_rank(moments.covariance)) < 5) is deficient


def test_frechet_distance_follows_an_update():
    """A distance asked for before does not keep the moments of then."""
    a, b, moments = _normal(50, 4), _normal(50, 4, seed=1), Moments.of(_normal(50, 4))
    frechet_distance(moments, Moments.of(b))
    moments.update(b)
    wanted = frechet_distance(Moments.of(torch.cat([a, b])), Moments.of(b))
    assert frechet_distance(moments, Moments.of(b)) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("count", [3, 24])
def test_moments_of_few_wide_vectors_have_a_thin_root(count):
    """24 vectors of 1280 features, half of them dead: LAPACK's eigenvectors do not always come."""
    x = _normal(count, 1280).clamp(min=0) * (torch.arange(1280) % 2)
    moments = Moments.of(x)
    assert moments.root.shape == (1280, count - 1)
    torch.testing.assert_close(moments.root @ moments.root.T, moments.covariance)
    assert frechet_distance(moments, Moments.of(x.flip(0))) == pytest.approx(0, abs=1e-9)


def test_moments_without_variance_have_an_empty_root():
    """The distance of two points is that of their means."""
    a, b = Moments.of(torch.zeros(3, 4)), Moments.of(torch.ones(5, 4))
    assert a.root.shape == (4, 0)
    assert frechet_distance(a, b) == 4


def test_gaussian_frechet_stays_exact_on_badly_scaled_covariances():
    """Standard deviations over five decades: the closed form for shared axes, within 1e-8."""
    axes, _ = torch.linalg.qr(_normal(60, 60))
    scales = torch.logspace(0, -5, 60, dtype=torch.float64)
    a, b = axes * scales.square() @ axes.T, axes * (1.01 * scales).square() @ axes.T
    zero = torch.zeros(60, dtype=torch.float64)
    wanted = float((0.01 * scales).square().sum())
    assert gaussian_frechet(zero, a, zero, b) == pytest.approx(wanted, rel=1e-8)


def test_moments_of_images_flatten_them():
    """[N, C, H, W] gives moments of C H W values, whatever the read-ahead."""
    x = _normal(10, 2, 3, 4)
    whole, parts = Moments.of(x), Moments.of(x, rows=3)
    assert whole.mean.shape == (24,)
    torch.testing.assert_close(parts.covariance, whole.covariance)
    assert frechet_distance(whole, parts) == pytest.approx(0, abs=1e-10)


@given(seeds, st.integers(1, 9), st.integers(1, 9))
def test_wasserstein_1d_is_the_best_assignment(seed, n, m):
    """Equals the optimal assignment of points repeated to a common count (scipy)."""
    a, b = _normal(n, 1, seed=seed), _normal(m, 1, seed=seed + 1)
    common = math.lcm(n, m)
    repeated_a = a.repeat_interleave(common // n)
    repeated_b = b.repeat_interleave(common // m)
    cost = (repeated_a[:, None] - repeated_b[None]).square().numpy()
    rows, columns = scipy.optimize.linear_sum_assignment(cost)
    wanted = cost[rows, columns].mean()
    assert float(wasserstein_1d_squared(a, b)) == pytest.approx(wanted, rel=1e-9, abs=1e-15)


@given(seeds, st.integers(2, 30), st.integers(2, 30), st.integers(1, 5))
def test_sliced_wasserstein_is_symmetric_and_ignores_order(seed, n, m, width):
    """d(a, b) = d(b, a), permuted samples change nothing, d(a, a) = 0."""
    a, b = _normal(n, width, seed=seed), _normal(m, width, seed=seed + 1)
    directions = _normal(40, width, seed=seed + 2)
    wanted = sliced_wasserstein(a, b, directions)
    shuffled = a[torch.randperm(n, generator=_generator(seed))]
    assert sliced_wasserstein(b, shuffled, directions) == pytest.approx(wanted, rel=1e-9)
    assert sliced_wasserstein(a, shuffled, directions) == pytest.approx(0, abs=1e-12)


@given(seeds, st.integers(1, 6))
def test_sliced_wasserstein_of_a_shift_is_its_mean_projection(seed, width):
    """Moving all samples by c gives sqrt(mean (theta . c)^2), whatever the length of theta."""
    a, move = _normal(20, width, seed=seed), _normal(width, seed=seed + 1)
    directions = 3 * _normal(70, width, seed=seed + 2)
    unit = directions / directions.norm(dim=1, keepdim=True)
    wanted = root_mean_square(unit @ move)
    assert sliced_wasserstein(a, a + move, directions) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("estimator", ["mean-square", "immerkaer", "mad"])
@pytest.mark.parametrize("std", [0.1, 0.4])
def test_noise_levels_find_the_std_of_white_noise(estimator, std):
    """On constants, ramps and straight edges the level is the noise, to the sampling error."""
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    images = torch.stack([0 * rows, rows - 2 * columns, (rows > 7).float()])[:, None].double()
    assert noise_levels(images, estimator).abs().max() < 1e-12
    noisy = images.repeat(200, 3, 1, 1) + std * _normal(600, 3, 16, 16)
    assert root_mean_square(noise_levels(noisy, estimator)) == pytest.approx(std, rel=0.02)


def test_noise_levels_add_in_squares_by_default():
    """On textured images the mean-square level is sqrt(clean^2 + std^2)."""
    images = torch.rand(4000, 1, 8, 8, generator=_generator(0), dtype=torch.float64)
    noisy = images + 0.4 * _normal(4000, 1, 8, 8, seed=1)
    clean, level = (root_mean_square(noise_levels(x)) for x in (images, noisy))
    assert level == pytest.approx(math.hypot(clean, 0.4), rel=0.01)


@given(seeds, st.floats(0.1, 10), st.floats(-5, 5))
def test_noise_levels_scale_with_contrast_and_ignore_brightness(seed, scale, shift):
    """level(scale x + shift) = scale level(x), image by image, for each estimator."""
    x = _normal(3, 2, 5, 6, seed=seed)
    for estimator in ("mean-square", "immerkaer", "mad"):
        torch.testing.assert_close(
            noise_levels(scale * x + shift, estimator), scale * noise_levels(x, estimator)
        )
        torch.testing.assert_close(noise_levels(x[1:2], estimator), noise_levels(x, estimator)[1:2])
