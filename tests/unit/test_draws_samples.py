"""Streams of single samples: nothing else in a batch changes a sample's numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core.draws import BLOCK, Draws, SampleDraws, content_ids

IDS = tuple(range(40, 57))
KINDS: dict[str, Callable[[Draws, int], Tensor]] = {
    "normal": lambda draws, count: draws.normal((count, 3)),
    "uniform": lambda draws, count: draws.uniform((count, 2, 2), -1.0, 2.0),
    "integers": lambda draws, count: draws.integers((count,), 3, 9),
}


def draws(size: int = 50, start: int = 0, total: int = 100) -> Draws:
    """A stream of blocks."""
    return Draws(("seed", 1), start=start, size=size, total=total, device="cpu")


@pytest.mark.parametrize("kind", KINDS)
@given(order=st.permutations(IDS), cuts=st.sets(st.integers(1, len(IDS) - 1)))
def test_samples_get_their_numbers_in_any_order_and_batch(
    kind: str, order: list[int], cuts: set[int]
) -> None:
    """Batches of any make-up give each sample what it gets alone."""
    draw = KINDS[kind]
    alone = {one: draw(SampleDraws((7,), [one]), 1)[0] for one in IDS}
    edges = [0, *sorted(cuts), len(order)]
    for low, high in itertools.pairwise(edges):
        part = order[low:high]
        for one, numbers in zip(part, draw(SampleDraws((7,), part), len(part)), strict=True):
            assert torch.equal(numbers, alone[one])


def test_samples_keys_and_identities_differ() -> None:
    """Another key or another sample, other numbers; a second draw is fresh."""
    first = SampleDraws((7,), [1, 2])
    numbers = first.normal((2, 4))
    again = SampleDraws((7,), [1, 2]).normal((2, 4))
    assert torch.equal(numbers, again)
    assert not torch.equal(numbers, first.normal((2, 4)))
    assert not torch.equal(numbers, SampleDraws((8,), [1, 2]).normal((2, 4)))
    assert not torch.equal(numbers[0], numbers[1])


def test_uniform_numbers_of_samples_fill_their_range() -> None:
    """In [low, high), mean in the middle."""
    numbers = SampleDraws((3,), range(64)).uniform((64, 500), -1.0, 3.0)
    assert float(numbers.min()) >= -1.0
    assert float(numbers.max()) < 3.0
    assert abs(float(numbers.mean()) - 1.0) < 0.03


def test_samples_rows_go_on_with_their_own_streams_alone() -> None:
    """What some samples draw does not move the streams of the others."""
    whole, part = SampleDraws((7,), IDS), SampleDraws((7,), IDS)
    rows = torch.tensor([4, 0, 9])
    first = part.rows(rows).normal((3, 5))
    assert torch.equal(first, whole.normal((len(IDS), 5))[rows])
    rest = torch.tensor([1, 2, 3])
    fresh = SampleDraws((7,), [IDS[place] for place in rest]).normal((3, 5))
    assert torch.equal(part.rows(rest).normal((3, 5)), fresh)
    assert part.rows(rows).ids == (44, 40, 49)


def test_samples_child_is_keyed_by_the_words() -> None:
    """A child has a stream of its own and leaves its parent's alone."""
    parent = SampleDraws((7,), IDS)
    child = parent.child("restart", 1).normal((len(IDS), 2))
    assert torch.equal(child, SampleDraws((7, "restart", 1), IDS).normal((len(IDS), 2)))
    assert torch.equal(parent.normal((len(IDS), 2)), SampleDraws((7,), IDS).normal((len(IDS), 2)))


def test_samples_have_no_strata_and_no_partners() -> None:
    """Both are shared by a batch, which these numbers know nothing of."""
    for ask in (SampleDraws((7,), IDS).stratified, SampleDraws((7,), IDS).partners):
        with pytest.raises(NotImplementedError):
            ask()


def test_draws_child_is_a_fresh_stream_of_the_same_samples() -> None:
    """Keyed by the words behind the parent's key, in the same place of the batch."""
    parent = draws(start=5)
    wanted = Draws(("seed", 1, "a"), start=5, size=50, total=100, device="cpu").normal((50, 2))
    assert torch.equal(parent.child("a").normal((50, 2)), wanted)
    assert torch.equal(parent.normal((50, 2)), draws(start=5).normal((50, 2)))


@given(rows=st.lists(st.integers(0, 49), min_size=1, max_size=8, unique=True))
def test_draws_rows_are_those_of_the_whole_stream(rows: list[int]) -> None:
    """Normal, uniform, integers and strata, rows of rows and children of rows."""
    chosen = torch.tensor(rows)
    for draw in KINDS.values():
        assert torch.equal(draw(draws().rows(chosen), len(rows)), draw(draws(), 50)[chosen])
    assert torch.equal(draws().rows(chosen).stratified(), draws().stratified()[chosen])
    last = torch.tensor([len(rows) - 1])
    inner: Any = draws().rows(chosen).rows(last)
    assert torch.equal(inner.normal((1, 2)), draws().normal((50, 2))[chosen[last]])
    child = draws().rows(chosen).child("a").normal((len(rows), 2))
    assert torch.equal(child, draws().child("a").normal((50, 2))[chosen])


def test_draws_rows_move_the_stream_on_for_all_samples() -> None:
    """The second draw is fresh for the rows taken and for all others."""
    stream = draws(size=BLOCK)
    stream.rows(torch.tensor([3])).normal((1, 2))
    second = draws(size=BLOCK)
    second.normal((BLOCK, 2))
    assert torch.equal(stream.normal((BLOCK, 2)), second.normal((BLOCK, 2)))


def test_draws_rows_have_no_partners() -> None:
    """A partner may be missing among some rows."""
    with pytest.raises(NotImplementedError):
        draws().rows(torch.tensor([0, 1])).partners()


def test_content_ids_belong_to_contents_whatever_the_order() -> None:
    """Equal samples have equal ids, others have others, in any order and batch."""
    x = torch.arange(12.0).reshape(4, 3)
    ids = content_ids(x)
    assert len(set(ids)) == 4
    assert content_ids(x.flip(0)) == ids[::-1]
    assert content_ids(torch.cat([x[1:2], x[1:2]])) == [ids[1]] * 2
