"""Spectral norm that moves with the optimizer."""

from __future__ import annotations

import copy

import pytest
import torch
from advdiff_adt.spectral import SpectralNorm, advance, normed
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

LAYERS = {
    "linear": lambda: nn.Linear(7, 5),
    "conv": lambda: nn.Conv2d(3, 4, 3),
}


def layer(name: str) -> nn.Module:
    """A layer with fixed weights."""
    torch.manual_seed(0)
    return LAYERS[name]().double()


def largest(weight: Tensor) -> Tensor:
    """Largest singular value of a weight [O, I, ...] as a matrix."""
    return torch.linalg.svdvals(weight.flatten(1))[0]


@pytest.mark.parametrize("name", LAYERS)
def test_the_largest_singular_value_becomes_one(name: str) -> None:
    """Exactly so after enough iterations, and roughly from the start."""
    made = normed(layer(name), spectral=True)
    assert abs(float(largest(made.weight.detach())) - 1) < 0.02
    for _ in range(200):
        advance(made)
    torch.testing.assert_close(largest(made.weight), torch.ones((), dtype=torch.float64))
    plain = normed(layer(name), spectral=False)
    assert torch.equal(plain.weight, layer(name).weight)


@pytest.mark.parametrize("name", LAYERS)
def test_it_is_the_spectral_norm_of_torch(name: str) -> None:
    """With the same vectors: same weight, same gradient, same iteration."""
    ours, theirs = normed(layer(name), spectral=True), spectral_norm(layer(name))
    own, peer = ours.parametrizations.weight[0], theirs.parametrizations.weight[0]
    own.left.copy_(peer._u)
    own.right.copy_(peer._v)
    for found in (ours, theirs.eval()):
        found.weight.square().sum().backward()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        ours.parametrizations.weight.original.grad, theirs.parametrizations.weight.original.grad
    )
    advance(ours)
    moved = theirs.train().weight
    torch.testing.assert_close(ours.weight, moved, rtol=1e-12, atol=1e-14)


def test_forwards_change_nothing_in_train_mode() -> None:
    """Torch's iterates in each; a step that runs a forward again would find another weight."""
    made = normed(layer("conv"), spectral=True).train()
    x = torch.zeros(1, 3, 5, 5, dtype=torch.float64)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    for _ in range(3):
        made(x)
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in before.items())


def test_the_norm_is_taken_in_full_precision_under_autocast() -> None:
    """The weight is that of float32; only the product with the input is not."""
    made = normed(layer("linear").float(), spectral=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = made.weight
    assert torch.equal(found, made.weight)


def test_copies_have_vectors_of_their_own() -> None:
    """A twin is not moved by its original."""
    made = nn.Sequential(normed(layer("linear"), spectral=True))
    twin = copy.deepcopy(made)
    with torch.no_grad():
        made[0].parametrizations.weight.original.mul_(torch.linspace(1, 9, 7))
    for _ in range(50):
        advance(made)
    parts = (made[0].parametrizations.weight[0], twin[0].parametrizations.weight[0])
    assert all(isinstance(part, SpectralNorm) for part in parts)
    assert not torch.allclose(parts[0].right, parts[1].right)
    torch.testing.assert_close(
        largest(twin[0].weight), torch.ones((), dtype=torch.float64), rtol=0.02, atol=0
    )
