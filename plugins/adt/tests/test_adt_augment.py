"""Differentiable augmentation: what it does, to whom, and by which numbers."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from advdiff_adt.augment import POLICIES, DiffAugmented, diff_augment
from advdiff_adt.rollout import Real
from advdiff_toys.networks import ToyNet
from hypothesis import given, settings
from torch import Tensor

from advdiff_core import DataInfo, Domain, Draws
from advdiff_core.step.plan import Phase, Plan
from advdiff_core.testing import Model, build_stage

BOTH = Domain(-1.0, 1.0)
DATA = DataInfo(shape=(2, 8, 12), count=64, domain=BOTH)


class Given(Draws):
    """Draws that are told what to give: fractions in [0, 1], one after the other."""

    def __init__(self, size: int, *fractions: float) -> None:
        super().__init__(("given",), start=0, size=size, total=size, device="cpu")
        self.fractions = list(fractions)

    def child(self, *words: object) -> Given:
        """Itself."""
        del words
        return self

    def uniform(self, shape: Any, low: float = 0.0, high: float = 1.0) -> Tensor:
        """The next fraction for every sample."""
        return torch.full(tuple(shape), low + (high - low) * self.fractions.pop(0))

    def integers(self, shape: Any, low: int, high: int) -> Tensor:
        """The next fraction of the range for every sample."""
        at = min(int(low + (high - low) * self.fractions.pop(0)), high - 1)
        return torch.full(tuple(shape), at)


def draws(seed: int, size: int) -> Draws:
    """Random numbers as a step gives them."""
    return Draws((seed,), start=0, size=size, total=size, device="cpu")


def images(size: int = 3, seed: int = 0) -> Tensor:
    """Images [size, 2, 8, 12] in [-1, 1], float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(size, *DATA.shape, generator=generator, dtype=torch.float64) * 2 - 1


def test_numbers_in_the_middle_leave_colours_alone() -> None:
    """Half of each range is no brightness added, and saturation and contrast of 1."""
    x = images()
    found = diff_augment(x, ("color",), Given(3, 0.5, 0.5, 0.5), BOTH)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("fractions", "wanted"),
    [
        ((1.0, 0.5, 0.5), lambda x: x + 0.5),
        ((0.0, 0.5, 0.5), lambda x: x - 0.5),
        ((0.5, 0.0, 0.5), lambda x: x.mean(1, keepdim=True).expand_as(x)),
        ((0.5, 1.0, 0.5), lambda x: 2 * x - x.mean(1, keepdim=True)),
        ((0.5, 0.5, 0.0), lambda x: (x + x.mean((1, 2, 3), keepdim=True)) / 2),
        ((0.5, 0.5, 1.0), lambda x: 1.5 * x - x.mean((1, 2, 3), keepdim=True) / 2),
    ],
    ids=["bright", "dark", "grey", "vivid", "flat", "sharp"],
)
def test_colours_at_the_ends_of_their_ranges(fractions: tuple[float, ...], wanted: Any) -> None:
    """Brightness by 0.5 either way, saturation 0 to 2, contrast 0.5 to 1.5 (Zhao et al. 2020)."""
    x = images()
    found = diff_augment(x, ("color",), Given(3, *fractions), BOTH)
    torch.testing.assert_close(found, wanted(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("fraction", "rows", "columns"), [(0.0, -1, -2), (0.5, 0, 0), (0.99, 1, 2)]
)
def test_translation_moves_by_up_to_an_eighth_over_grey(
    fraction: float, rows: int, columns: int
) -> None:
    """It equals a roll of the image in a grey frame; sides of 8 and 12 move by at most 1 and 2."""
    x = images()
    found = diff_augment(x, ("translation",), Given(3, fraction, fraction), BOTH)
    framed = F.pad(x, (2, 2, 1, 1)).roll((rows, columns), (2, 3))
    torch.testing.assert_close(found, framed[:, :, 1:-1, 2:-2], rtol=0, atol=1e-12)


def test_cutout_greys_a_span_of_half_the_size() -> None:
    """In the middle it is 4 by 6 pixels of 8 by 12; at a corner a quarter of that remains."""
    x = images() + 5.0
    inside = diff_augment(x, ("cutout",), Given(3, 0.5, 0.5), BOTH)
    wanted = x.clone()
    wanted[:, :, 2:6, 3:9] = 0.0
    torch.testing.assert_close(inside, wanted, rtol=0, atol=1e-12)
    corner = diff_augment(x, ("cutout",), Given(3, 0.0, 0.0), BOTH)
    wanted = x.clone()
    wanted[:, :, :2, :3] = 0.0
    torch.testing.assert_close(corner, wanted, rtol=0, atol=1e-12)
    opposite = diff_augment(x, ("cutout",), Given(3, 0.999, 0.999), BOTH)
    wanted = x.clone()
    wanted[:, :, -2:, -3:] = 0.0
    torch.testing.assert_close(opposite, wanted, rtol=0, atol=1e-12)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 99), low=st.floats(-3, 3), span=st.floats(0.1, 255))
def test_augmenting_commutes_with_a_change_of_range(seed: int, low: float, span: float) -> None:
    """In any range the same is done to the same picture."""
    x = images(seed=seed)
    domain = Domain(low, low + span)

    def moved(values: Tensor) -> Tensor:
        return low + span * (values + 1) / 2

    found = diff_augment(moved(x), POLICIES, draws(seed, 3), domain)
    wanted = moved(diff_augment(x, POLICIES, draws(seed, 3), BOTH))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6 * span)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 99), policy=st.sets(st.sampled_from(POLICIES)))
def test_images_are_augmented_on_their_own(seed: int, policy: set[str]) -> None:
    """No image depends on another; the order of a policy's words never matters."""
    x, chosen = images(3, seed), tuple(sorted(policy))
    whole = diff_augment(x, chosen, draws(seed, 3), BOTH)
    other = torch.cat([x[:1], images(2, seed + 1)])
    torch.testing.assert_close(diff_augment(other, chosen, draws(seed, 3), BOTH)[0], whole[0])
    again = diff_augment(x, chosen[::-1], draws(seed, 3), BOTH)
    assert torch.equal(whole, again)


def test_what_is_added_to_a_policy_changes_no_other_numbers() -> None:
    """Each change has a stream of its own."""
    x = images()
    alone = diff_augment(x, ("cutout",), draws(0, 3), BOTH)
    both = diff_augment(x, ("translation", "cutout"), draws(0, 3), BOTH)
    moved = diff_augment(x, ("translation",), draws(0, 3), BOTH)
    kept = alone != 0
    assert torch.equal(both[kept], moved[kept])


def test_gradients_pass_as_finite_differences_say() -> None:
    """Also twice, for a penalty on the gradient; input and output are different tensors."""
    x = images(2)[:, :, :5, :5].clone().requires_grad_()
    held = x.detach().clone()

    def run(values: Tensor) -> Tensor:
        return diff_augment(values, POLICIES, draws(1, 2), BOTH)

    assert torch.autograd.gradcheck(run, (x,))
    assert torch.equal(x.detach(), held)


def test_neither_parts_of_a_batch_nor_other_queries_change_the_numbers() -> None:
    """They are keyed by step, stream and sample: two streams differ, two steps differ."""
    made = build_stage(data=DATA, models={"student": Model(ToyNet)})
    query = DiffAugmented(Real(), POLICIES, BOTH, "judged")
    other = DiffAugmented(Real(), POLICIES, BOTH, "reference")
    x = images(4)

    def asked(needs: tuple[Any, ...], rows: slice = slice(None), **place: int) -> Tensor:
        phase = Phase(player="student", roles=frozenset({"student"}), needs=needs)
        step = made.step(Plan([phase], made.scene), x[rows], total=4, **place)
        step.enter(phase, [])
        return step.get(needs[-1])

    whole = asked((query,))
    parts = [asked((other, query), slice(0, 1)), asked((query,), slice(1, 4), start=1)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(asked((other,)), whole)
    assert not torch.equal(asked((query,), index=1), whole)
