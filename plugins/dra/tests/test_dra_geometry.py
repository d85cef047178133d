"""Uniformity, alignment, CKNNA, prefix accuracies and spectra against their definitions."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from advdiff_dra import geometry
from advdiff_dra.dimension import (
    AffineHead,
    Basis,
    best_dimension,
    least_dimension,
    prefix_accuracy,
)
from advdiff_dra.geometry import alignment, uniformity
from advdiff_dra.kernel_alignment import _Sparse, cknna, clipped, hsic_unbiased
from advdiff_dra.spectrum import Spectrum, frequencies, radial
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode


def normal(*shape, seed=0):
    """Standard normal numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run it and look at what comes out."""
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(one, torch.Tensor):
                self.numel = max(self.numel, one.numel())
        return found


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 40), st.integers(1, 9), st.integers(1, 50), st.floats(0.1, 5), st.integers(0, 99)
)
def test_uniformity_is_the_mean_over_all_pairs(count, width, rows, t, seed):
    """Whatever the height of the strips: the logarithm of the mean of all pairs, term by term."""
    x = normal(count, width, seed=seed)
    z = (x / x.norm(dim=1, keepdim=True)).numpy()
    terms = [
        math.exp(-t * float(((z[i] - z[j]) ** 2).sum())) for i in range(count) for j in range(i)
    ]
    wanted = math.log(math.fsum(terms) / len(terms))
    assert uniformity(x, t=t, rows=rows) == pytest.approx(wanted, abs=1e-12)


def test_uniformity_and_alignment_reach_their_bounds():
    """0 and -4 t for equal and opposite points, 0 and 4 for equal and opposite pairs."""
    one = normal(1, 5)
    assert uniformity(one.expand(6, 5)) == pytest.approx(0, abs=1e-12)
    assert uniformity(torch.cat([one, -3 * one])) == pytest.approx(-8, abs=1e-12)
    x = normal(7, 5)
    assert alignment(x, 2 * x) == pytest.approx(0, abs=1e-12)
    assert alignment(x, -x) == pytest.approx(4, abs=1e-12)
    z, w = F.normalize(x, dim=1), F.normalize(normal(7, 5, seed=1), dim=1)
    assert alignment(x, w, alpha=1) == pytest.approx(float((z - w).norm(dim=1).mean()), abs=1e-12)


def reference_cknna(first, second, k):
    """The score from whole matrices, K before L."""
    size = len(first)

    def kernel(x):
        z = F.normalize(x, dim=1)
        return z @ z.T

    def mask(matrix):
        found = matrix.clone().fill_diagonal_(-math.inf).topk(k, dim=1).indices
        return torch.zeros_like(matrix).scatter(1, found, 1.0)

    def hsic(one, other):
        one, other = one.clone().fill_diagonal_(0), other.clone().fill_diagonal_(0)
        found = (one * other.T).sum() + one.sum() * other.sum() / ((size - 1) * (size - 2))
        return (found - 2 * (one @ other).sum() / (size - 2)) / (size * (size - 3))

    a, b = kernel(first), kernel(second)
    both = mask(a) * mask(b)
    own = [hsic(mask(m) * m, mask(m) * m) for m in (a, b)]
    return float(hsic(both * a, both * b) / (own[0] * own[1]).sqrt())


@settings(max_examples=15, deadline=None)
@given(st.integers(8, 30), st.integers(1, 7), st.integers(0, 99), st.integers(1, 400))
def test_cknna_is_its_definition_on_whole_matrices(count, k, seed, strip):
    """Lists of neighbours give what masked matrices give, in the mean of both orders."""
    first = normal(count, 5, seed=seed)
    second = first @ normal(5, 6, seed=seed + 100) + 0.5 * normal(count, 6, seed=seed + 200)
    kept, geometry.PAIRS_AT_ONCE = geometry.PAIRS_AT_ONCE, strip
    try:
        found = cknna(first, second, k=k)
    finally:
        geometry.PAIRS_AT_ONCE = kept
    wanted = (reference_cknna(first, second, k) + reference_cknna(second, first, k)) / 2
    assert found == pytest.approx(wanted, abs=1e-10)


def test_hsic_of_lists_is_that_of_matrices():
    """With every place listed: the unbiased estimator, entry by entry."""
    one, other = normal(7, 7), normal(7, 7, seed=1)
    off = ~torch.eye(7, dtype=torch.bool)
    keys = off.flatten().nonzero()[:, 0]
    found = hsic_unbiased(*(_Sparse(keys, m[off], 7) for m in (one, other)))
    k, m = one * off, other * off
    wanted = (k * m.T).sum() + k.sum() * m.sum() / 30 - 2 * (k @ m).sum() / 5
    assert found == pytest.approx(float(wanted) / 28, rel=1e-12)


def test_cknna_has_the_invariants_of_its_authors():
    """1 of itself, turned or scaled; symmetric; about 0 of what has nothing to do with it."""
    x, other = normal(300, 8), normal(300, 8, seed=1)
    turn = torch.linalg.qr(normal(8, 8, seed=2)).Q
    assert cknna(x, x) == pytest.approx(1, abs=1e-12)
    assert cknna(x, 3 * x @ turn) == pytest.approx(1, abs=1e-9)
    near = x + 0.5 * other
    assert cknna(x, near) == cknna(near, x)
    assert cknna(x @ turn, near) == pytest.approx(cknna(x, near), abs=1e-9)
    assert 0.2 < cknna(x, near) < 1
    assert abs(cknna(x, other)) < 0.05


def test_clipping_cuts_at_a_quantile_of_all_magnitudes():
    """The limit is the value at that place of the sorted magnitudes, as NumPy sorts them."""
    x = normal(20, 11)
    limit = np.sort(np.abs(x.numpy()).ravel())[int(0.95 * 220)]
    assert torch.equal(clipped(x, 0.95), x.clamp(-limit, limit))
    assert torch.equal(clipped(x, 1.0), x)


def test_pairs_are_never_all_in_memory(monkeypatch):
    """With many samples no operation makes more numbers than a strip or the features hold."""
    monkeypatch.setattr(geometry, "PAIRS_AT_ONCE", 2**14)
    x = normal(2000, 3)
    head = AffineHead(normal(4, 3), normal(4))
    with Largest() as seen:
        uniformity(x)
        cknna(x, x + 0.1, k=5)
        prefix_accuracy(x, torch.arange(2000) % 4, head=head, basis=Basis.of(x))
    assert seen.numel <= 3 * 2**14 < 2000 * 2000 / 50


@settings(max_examples=15, deadline=None)
@given(st.integers(3, 25), st.integers(1, 8), st.integers(2, 4), st.integers(0, 99))
def test_prefix_accuracy_is_that_of_each_projection(count, width, classes, seed):
    """For every k the accuracy on `m + U_k U_k^T (f - m)`, one projection after the other."""
    x, labels = normal(count, width, seed=seed), torch.arange(count) % classes
    head = AffineHead(normal(classes, width, seed=seed + 1), normal(classes, seed=seed + 2))
    basis = Basis.of(x)
    moved = x + normal(count, width, seed=seed + 3)
    found = prefix_accuracy(moved, labels, head=head, basis=basis)
    for k in range(1, width + 1):
        u = basis.directions[:, :k]
        projected = basis.mean + (moved - basis.mean) @ u @ u.T
        right = head.logits(projected).argmax(1) == labels
        assert float(found[k - 1]) == pytest.approx(float(right.double().mean()), abs=1e-12)
    whole = head.logits(moved).argmax(1) == labels
    assert float(found[-1]) == pytest.approx(float(whole.double().mean()), abs=1e-12)


def test_basis_is_that_of_scikit_learn():
    """Mean and directions are those of its PCA, up to signs."""
    from sklearn.decomposition import PCA

    x = normal(50, 6) @ torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64))
    wanted, found = PCA().fit(x.numpy()), Basis.of(x)
    torch.testing.assert_close(found.mean, torch.from_numpy(wanted.mean_))
    turned = (torch.from_numpy(wanted.components_) @ found.directions).abs()
    torch.testing.assert_close(turned, torch.eye(6, dtype=torch.float64), atol=1e-9, rtol=0)


def test_dimensions_are_the_first_that_suffice():
    """The smallest k at a share of the last accuracy, also where a later one is worse."""
    accuracy = torch.tensor([0.1, 0.78, 0.6, 0.79, 0.8, 0.8], dtype=torch.float64)
    assert least_dimension(accuracy, 0.95) == 2
    assert least_dimension(accuracy, 0.98) == 4
    assert least_dimension(accuracy, 1.0) == 5
    assert best_dimension(accuracy) == 5


def test_spectrum_keeps_the_energy_of_an_image():
    """Parseval: of a single image the energy map is its spectrum over its squared length."""
    x = normal(1, 3, 6, 8)
    spectrum = Spectrum(6, 8)
    spectrum.add(x)
    power = np.abs(np.fft.fftshift(np.fft.fft2(x.numpy()), axes=(-2, -1))) ** 2 / 48
    assert power.sum() == pytest.approx(float(x.square().sum()), rel=1e-12)
    wanted = power[0].mean(0) * 3 / float(x.square().sum())
    np.testing.assert_allclose(spectrum.energy.numpy(), wanted, rtol=1e-10)
    assert float(spectrum.magnitude.sum()) == pytest.approx(1, abs=1e-12)


def test_spectrum_finds_constants_and_waves():
    """A constant is all zero frequency, a checkerboard all high; empty images are left out."""
    flat, board = Spectrum(8, 8), Spectrum(8, 8)
    flat.add(torch.full((2, 1, 8, 8), -0.3))
    assert float(flat.magnitude[4, 4]) == pytest.approx(1, abs=1e-12)
    assert flat.bands(flat.magnitude) == pytest.approx({"low": 1, "mid": 0, "high": 0}, abs=1e-12)
    signs = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    board.add(torch.stack([signs, torch.zeros(8, 8)])[:, None])
    assert board.bands(board.energy) == pytest.approx({"low": 0, "mid": 0, "high": 1}, abs=1e-12)
    assert (board.count, board.empty) == (1, 1)


def test_spectrum_turns_with_the_image():
    """Transposing or mirroring images transposes or mirrors the map."""
    x = normal(4, 2, 7, 7)
    maps = []
    for seen in (x, x.mT, x.flip(-1)):
        spectrum = Spectrum(7, 7)
        spectrum.add(seen)
        maps.append(spectrum.magnitude)
    torch.testing.assert_close(maps[1], maps[0].mT)
    torch.testing.assert_close(maps[2], maps[0].flip(-1))


def test_radial_mean_is_over_rings():
    """Each ring's value is the mean of its places, and every place is in one ring."""
    plane = normal(6, 9).abs()
    rings = (frequencies(6, 9) * 9).round()
    found = dict(radial(plane))
    for ring in rings.unique():
        wanted = float(plane[rings == ring].mean())
        assert found[float(ring) / 9] == pytest.approx(wanted, abs=1e-12)
    assert len(found) == len(rings.unique())
