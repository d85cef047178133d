"""Linear probes are at their optimum; sparse autoencoders do what their formulas say."""

import pytest
import torch
from advdiff_dra.probes import fit_probe
from advdiff_dra.sparse import (
    Normaliser,
    Plan,
    TopKSAE,
    fit_sae,
    fvu,
    keep_top,
    relative_error,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from advdiff_core import DataError


def normal(*shape, seed=0):
    """Standard normal numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("classes", [2, 4])
def test_probe_is_where_its_objective_has_no_slope(classes):
    """The gradient of `|W|^2 / 2 + c sum CE` is zero there, for two classes in their own form."""
    x, y = normal(60, 5), torch.arange(60) % classes
    x[:, 0] += y
    probe = fit_probe(x, y, classes=classes, c=0.3)
    assert probe.converged
    weight, bias = probe.head.weight.clone(), probe.head.bias.clone()
    if classes == 2:  # scikit-learn's binary form penalises the difference of the two vectors.
        weight, bias = weight[1:], bias[1:]
    weight.requires_grad_()
    bias.requires_grad_()
    logits = (x - probe.mean) / probe.scale @ weight.T + bias
    if classes == 2:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    loss = weight.square().sum() / 2 + 0.3 * torch.nn.functional.cross_entropy(
        logits, y, reduction="sum"
    )
    for gradient in torch.autograd.grad(loss, (weight, bias)):
        assert float(gradient.abs().max()) < 1e-3 * 60
    torch.testing.assert_close(probe.logits(x).argmax(1), logits.argmax(1))


def test_probe_does_not_see_units_or_constants():
    """Features in other units give the same logits; a constant one changes nothing."""
    x, y = normal(50, 3), torch.arange(50) % 3
    x[:, 1] += y
    other = torch.cat([x * torch.tensor([1e3, 1.0, 1e-3]) + 5, torch.full((50, 1), 0.1)], dim=1)
    first, second = fit_probe(x, y, classes=3), fit_probe(other, y, classes=3)
    torch.testing.assert_close(first.logits(x), second.logits(other), atol=1e-3, rtol=1e-3)
    raw = fit_probe(x, y, classes=3, standardise=False)
    assert torch.equal(raw.mean, torch.zeros(3, dtype=torch.float64))


def test_probe_never_names_a_class_it_has_not_seen():
    """Of five classes two occur; the others have no chance, and one alone is refused."""
    x, y = normal(30, 3), torch.arange(30) % 2 * 3
    probe = fit_probe(x, y, classes=5)
    assert set(probe.logits(100 * normal(200, 3, seed=1)).argmax(1).tolist()) <= {0, 3}
    with pytest.raises(DataError, match="all 30 training images have one label") as caught:
        fit_probe(x, torch.zeros(30, dtype=torch.int64), classes=5)
    assert caught.value.fix == "name data with classes"


def test_probe_says_when_it_did_not_converge():
    """One iteration is not enough, and that is said instead of warned of."""
    probe = fit_probe(normal(60, 5), torch.arange(60) % 3, classes=3, iterations=1)
    assert not probe.converged
    assert probe.iterations == 1


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 10), st.integers(0, 99))
def test_code_has_at_most_k_entries(latents, k, seed):
    """And these are the largest of the row."""
    generator = torch.Generator().manual_seed(seed)
    sae = TopKSAE(normal(4, seed=seed), latents=latents, k=k, generator=generator)
    a = normal(9, 4, seed=seed + 1)
    z, every = sae.encode(a), sae.active(a)
    assert int((z != 0).sum(1).max()) <= k
    largest = every.sort(dim=1, descending=True).values[:, :k]
    torch.testing.assert_close(z.sum(1), largest.sum(1))
    torch.testing.assert_close(sae.decoder.norm(dim=1), torch.ones(latents, dtype=torch.float64))
    torch.testing.assert_close(sae(a), sae.decode(z))


def test_errors_are_normalised_as_named():
    """The mean explains no variance; the relative error is a mean of rows; scales do not matter."""
    a, found = normal(20, 5) + 2, normal(20, 5, seed=1)
    assert float(fvu(a.mean(0).expand(20, 5), a)) == pytest.approx(1, abs=1e-12)
    rows = [float((f - w).square().sum() / w.square().sum()) for f, w in zip(found, a, strict=True)]
    assert float(relative_error(found, a)) == pytest.approx(sum(rows) / 20, abs=1e-12)
    for error in (fvu, relative_error):
        assert float(error(3 * found, 3 * a)) == pytest.approx(float(error(found, a)), rel=1e-12)
    empty = torch.cat([a, torch.zeros(1, 5, dtype=torch.float64)])
    kept = torch.cat([found, found[:1]])
    assert float(relative_error(kept, empty)) == pytest.approx(sum(rows) / 20, abs=1e-12)


def test_normalisers_do_what_their_names_say():
    """One factor to a mean squared length of D; each vector to mean 0 and deviation 1; nothing."""
    a = 3 * normal(50, 6) + 1
    scaled = Normaliser.of("scale", a)(a)
    assert float(scaled.square().sum(1).mean()) == pytest.approx(6, rel=1e-12)
    torch.testing.assert_close(Normaliser.of("scale", 7 * a)(7 * a), scaled)
    layer = Normaliser.of("layer", a)(a)
    assert float(layer.mean(1).abs().max()) < 1e-12
    torch.testing.assert_close(layer.std(1, correction=0), torch.ones(50, dtype=torch.float64))
    assert torch.equal(Normaliser.of("none", a)(a), a)


def sparse_features(count=512, width=8, latents=16):
    """Sums of two of sixteen directions."""
    directions = torch.nn.functional.normalize(normal(latents, width, seed=7), dim=1)
    return keep_top(normal(count, latents, seed=8).abs(), 2) @ directions


def test_training_explains_more_with_more_latents():
    """The error falls with k, far below the untrained one's, and columns keep their length."""
    a = sparse_features()
    plan = Plan(latents=32, k=2, steps=300, lr=3e-3, batch=128)
    errors = []
    for k in (1, 2, 4):
        made = Plan(latents=32, k=k, steps=300, lr=3e-3, batch=128)
        sae = fit_sae(a, made, key=("test",))
        torch.testing.assert_close(sae.decoder.norm(dim=1), torch.ones(32, dtype=torch.float64))
        errors.append(float(fvu(sae(a), a)))
    assert errors[0] > errors[1] > errors[2]
    start = fit_sae(a, Plan(latents=32, k=2, steps=1, lr=1e-9, batch=128), key=("test",))
    assert errors[1] < 0.5 * float(fvu(start(a), a))
    again = fit_sae(a, plan, key=("test",))
    assert torch.equal(again.decoder, fit_sae(a, plan, key=("test",)).decoder)


def test_dead_latents_are_given_the_residual():
    """Latents that do not fire get gradients from the auxiliary loss, and without it none."""
    a = sparse_features(128)
    moved = {}
    for aux in (0.0, 1 / 32):
        plan = Plan(latents=64, k=1, steps=40, lr=1e-3, batch=64, dead_after=64, aux=aux, ema=0.0)
        moved[aux] = fit_sae(a, plan, key=("test",)).encode(a)
    used = {aux: int((codes > 0).any(0).sum()) for aux, codes in moved.items()}
    assert used[1 / 32] != used[0.0]


def test_gradient_of_the_decoder_has_nothing_along_its_columns():
    """What would change their length is taken out."""
    sae = TopKSAE(normal(4), latents=6, k=2, generator=torch.Generator().manual_seed(0))
    relative_error(sae(normal(10, 4)), normal(10, 4, seed=1)).backward()
    sae.straighten()
    along = (sae.decoder.grad * sae.decoder.detach()).sum(1)
    assert float(along.abs().max()) < 1e-12
    assert float(sae.decoder.grad.abs().max()) > 1e-3
