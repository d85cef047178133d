"""Equivariance of networks to groups acting on images: rotations, flips, shifts, channels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from advdiff_core.interfaces.backbone import Backbone
from advdiff_core.testing.bench import gaussian
from advdiff_core.testing.findings import LawBroken, shown

__all__ = ["GROUPS", "Element", "GroupWitness", "assert_group_equivariant", "group_error"]

Action = Callable[[Tensor], Tensor]
#: Noise-level input that a backbone is run with.
C_NOISE = 250.0
#: Permutations of channels that are tried.
MAX_PERMUTATIONS = 24


@frozen
class Element:
    """An element of a group.

    Attributes:
        name: What a message calls it.
        act: How it acts on images [B, C, H, W].
    """

    name: str
    act: Action


def _rotations(shape: Sequence[int]) -> Iterator[Element]:
    turns = (1, 2, 3) if shape[-1] == shape[-2] else (2,)
    for turn in turns:
        yield Element(f"a rotation by {90 * turn} degrees", partial(_rotate, turn))


def _rotate(turns: int, x: Tensor) -> Tensor:
    return torch.rot90(x, turns, dims=(-2, -1))


def _flips(shape: Sequence[int]) -> Iterator[Element]:
    del shape
    yield Element("a left-right flip", partial(torch.flip, dims=(-1,)))
    yield Element("a top-bottom flip", partial(torch.flip, dims=(-2,)))


def _dihedral(shape: Sequence[int]) -> Iterator[Element]:
    yield from _rotations(shape)
    yield from _flips(shape)
    if shape[-1] == shape[-2]:
        yield Element("a transposition", lambda x: x.transpose(-2, -1))
        yield Element("an anti-transposition", lambda x: _rotate(2, x.transpose(-2, -1)))


def _shifts(shape: Sequence[int]) -> Iterator[Element]:
    for down, right in ((1, 0), (0, 1), (shape[-2] // 2, shape[-1] // 2)):
        name = f"a cyclic shift by {down} down and {right} right"
        yield Element(name, partial(torch.roll, shifts=(down, right), dims=(-2, -1)))


def _channels(shape: Sequence[int]) -> Iterator[Element]:
    orders = itertools.permutations(range(shape[0]))
    for order in itertools.islice(orders, 1, MAX_PERMUTATIONS):
        yield Element(f"the order {list(order)} of channels", partial(_reorder, list(order)))


def _reorder(order: list[int], x: Tensor) -> Tensor:
    return x[:, order]


#: Elements of each group but the identity, for samples of a shape `(C, H, W)`.
GROUPS: Mapping[str, Callable[[Sequence[int]], Iterator[Element]]] = {
    "rotations": _rotations,
    "flips": _flips,
    "dihedral": _dihedral,
    "shifts": _shifts,
    "channel-permutations": _channels,
}


@frozen(kw_only=True)
class GroupWitness:
    """The worst element and input that were found.

    Attributes:
        error: Largest difference, as a share of the largest output.
        element: Name of the element.
        seed: Seed of the input.
    """

    error: float
    element: str
    seed: int


def group_error(
    network: Callable[[Tensor], Tensor] | Backbone,
    group: str,
    x: Tensor,
    *,
    invariant: bool = False,
    seed: int = 0,
) -> GroupWitness:
    """How far `f(g x)` is from `g f(x)`, over all elements g of a group.

    Args:
        network: Any function of images [B, C, H, W], or a backbone.
        group: Name of a group in `GROUPS`.
        x: Images [B, C, H, W].
        invariant: Compare with `f(x)` instead: classifiers.
        seed: What the witness says of the input.

    Raises:
        ValueError: If there is no such group.
    """
    if group not in GROUPS:
        message = f"unknown group {group!r}; wanted one of {', '.join(GROUPS)}"
        raise ValueError(message)
    function = _function(network)
    worst = GroupWitness(error=0.0, element="the identity", seed=seed)
    with torch.no_grad():
        plain = function(x)
        size = float(plain.abs().max().clamp_min(torch.finfo(plain.dtype).tiny))
        for element in GROUPS[group](tuple(x.shape[1:])):
            wanted = plain if invariant else element.act(plain)
            error = float((function(element.act(x)) - wanted).abs().max()) / size
            if not error <= worst.error:
                worst = GroupWitness(error=error, element=element.name, seed=seed)
    return worst


def _function(network: Any) -> Callable[[Tensor], Tensor]:
    if not isinstance(network, Backbone):
        known: Callable[[Tensor], Tensor] = network
        return known

    def run(x: Tensor) -> Tensor:
        out: Tensor | None = network(x, x.new_full((x.shape[0],), C_NOISE)).output
        assert out is not None, "a full forward has an output"
        return out

    return run


def assert_group_equivariant(  # noqa: PLR0913 - what can be chosen.
    network: Callable[[Tensor], Tensor] | Backbone,
    group: str,
    *,
    shape: Sequence[int],
    invariant: bool = False,
    tolerance: float = 1e-4,
    examples: int = 3,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Find fault with a network that does not commute with a group (or is not invariant to it).

    Args:
        network: Any function of images [B, C, H, W], or a backbone.
        group: "rotations", "flips", "dihedral", "shifts" or "channel-permutations".
        shape: Shape `(C, H, W)` of an image.
        invariant: Wanted is `f(g x) = f(x)` instead of `f(g x) = g f(x)`.
        tolerance: Largest difference, as a share of the largest output.
        examples: How many images are tried.
        dtype: Type of the images.

    Raises:
        LawBroken: With the element and the input.
    """
    for seed in range(examples):
        x = gaussian(seed, (1, *shape), dtype=dtype)
        worst = group_error(network, group, x, invariant=invariant, seed=seed)
        if not worst.error <= tolerance:
            word = "invariant" if invariant else "equivariant"
            message = (
                f"not {word} to {group}: found a difference of {shown(100 * worst.error)} % of the "
                f"output, wanted at most {shown(100 * tolerance)} %; witness: {worst.element}, "
                f"seed={seed}, shape={list(shape)}"
            )
            raise LawBroken(message)
