"""Steps and balls: one size in every norm, uphill, and blind to the scale of a loss."""

from __future__ import annotations

import pytest
import torch
from advdiff_atdiff import balls
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core.math import norms

NORMS = st.sampled_from(("l2", "linf", "l1"))
SEEDS = st.integers(0, 10_000)


def gaussian(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@examples(max_examples=40)
@given(norm=NORMS, seed=SEEDS, alpha=st.floats(1e-4, 10.0), top=st.integers(1, 12))
def test_a_step_has_the_length_alpha_in_every_norm(
    norm: str, seed: int, alpha: float, top: int
) -> None:
    """The L2 length over a whole image, so that one alpha is one root mean square."""
    delta, gradient = gaussian(seed, 3, 1, 3, 4), gaussian(seed + 1, 3, 1, 3, 4)
    step = balls.ascend(delta, gradient, alpha=alpha, norm=norm, top=top) - delta
    length = step.flatten(1).norm(dim=1)
    torch.testing.assert_close(length, torch.full_like(length, alpha), rtol=1e-9, atol=1e-12)
    assert ((step * gradient).flatten(1).sum(1) > 0).all()


@examples(max_examples=40)
@given(norm=NORMS, seed=SEEDS, power=st.sampled_from((-100, -20, 20, 100)))
def test_a_loss_of_any_scale_gives_the_same_step_bit_for_bit(
    norm: str, seed: int, power: int
) -> None:
    """Trap 1 of the released code: there a factor of 2^-20 leaves 1 % of the step."""
    delta, gradient = gaussian(seed, 2, 8).float(), gaussian(seed + 1, 2, 8).float()
    steps = [
        balls.ascend(delta, factor * gradient, alpha=0.1, norm=norm, top=3)
        for factor in (1.0, 2.0**power)
    ]
    assert torch.equal(*steps)


@examples(max_examples=40)
@given(norm=NORMS, seed=SEEDS, rms=st.floats(1e-3, 10.0))
def test_a_ball_of_any_norm_ends_at_the_same_even_perturbation(
    norm: str, seed: int, rms: float
) -> None:
    """What has the root mean square rho in each entry lies on the boundary of all three."""
    entries = 12
    even = rms * gaussian(seed, 4, 3, 4).sign()
    radius = balls.radius(torch.full((4,), rms, dtype=torch.float64), norm, entries)
    torch.testing.assert_close(norms.norm(even, norm), radius, rtol=1e-12, atol=0)


def test_the_sizes_of_the_released_script() -> None:
    """CIFAR-10: |delta|_2 <= 5.54, and .0018 for each pixel where all move alike."""
    rho = torch.tensor([0.1], dtype=torch.float64)
    assert balls.radius(rho, "l2", 3072).item() == pytest.approx(5.54, abs=0.005)
    step = balls.ascend(torch.zeros(1, 3072), torch.ones(1, 3072), alpha=0.1, norm="linf")
    assert step.unique().item() == pytest.approx(0.0018, abs=5e-5)


def test_an_l1_step_moves_the_largest_entries() -> None:
    """As many as asked for, all by the same amount; one is the steepest."""
    gradient = torch.tensor([[0.1, -3.0, 2.0, 0.5]], dtype=torch.float64)
    zero = torch.zeros_like(gradient)
    one = balls.ascend(zero, gradient, alpha=0.2, norm="l1")
    two = balls.ascend(zero, gradient, alpha=0.2, norm="l1", top=2)
    assert torch.equal(one, torch.tensor([[0.0, -0.2, 0.0, 0.0]], dtype=torch.float64))
    half = 0.2 / 2**0.5
    torch.testing.assert_close(two, torch.tensor([[0.0, -half, half, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_a_sample_whose_gradient_is_not_finite_stays(norm: str, bad: float) -> None:
    """The others move; so does none with a gradient of zero."""
    delta, gradient = gaussian(0, 3, 4), gaussian(1, 3, 4)
    gradient[0, 2], gradient[1] = bad, 0.0
    moved = balls.ascend(delta, gradient, alpha=0.1, norm=norm)
    assert torch.equal(moved[:2], delta[:2])
    assert not torch.equal(moved[2], delta[2])
