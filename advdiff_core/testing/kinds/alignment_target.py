"""Laws of alignment targets."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core.interfaces.alignment_target import AlignmentTarget
from advdiff_core.testing.bench import World, batch_of, draws, scales, seeds, sizes
from advdiff_core.testing.compare import finite, same_bits, same_values
from advdiff_core.testing.findings import wrong
from advdiff_core.testing.kinds.rigs import rig, worlds
from advdiff_core.testing.law import Laws
from advdiff_core.testing.state import leaves
from advdiff_core.testing.subject import Subject

__all__ = ["LAWS"]

LAWS = Laws("alignment_target")
law = LAWS.law


def made(subject: Subject, world: World) -> AlignmentTarget:
    """The target as the core runs it: frozen, in eval mode; built once per world."""
    found: AlignmentTarget = subject.memo(
        ("target", world.name), lambda: rig(subject).build(subject, world)
    )
    return found.requires_grad_(requires_grad=False).eval()


def features(  # noqa: PLR0913 - the coordinates of a batch.
    target: AlignmentTarget,
    world: World,
    seed: int,
    size: int,
    *,
    rows: slice = slice(None),
    scale: float = 1.0,
) -> Tensor:
    """Features of rows of a batch, with the numbers those rows would get in a step."""
    batch = batch_of(world, seed, size, scale=scale)
    part = range(size)[rows]
    labels = None if batch.y is None else batch.y[rows]
    rng = draws(seed, len(part), start=part.start, total=size)
    with torch.no_grad():
        found: Tensor = target(batch.x[rows], labels, rng)
    return found


@law("width-and-shape", world=worlds, seed=seeds(), size=sizes(1, 4))
def width_and_shape(subject: Subject, world: World, seed: int, size: int) -> None:
    """Features are [B, D] or [B, N, D], finite, with D as `width` says."""
    target = made(subject, world)
    found = features(target, world, seed, size)
    if found.dim() not in (2, 3) or found.shape[0] != size:
        raise wrong(
            f"features of shape {list(found.shape)} for {size} samples",
            wanted="[B, D] or [B, N, D]",
            mend="flatten positions into N",
        )
    if found.shape[-1] != target.width:
        raise wrong(
            f"features of width {found.shape[-1]}",
            wanted=f"width = {target.width}, as declared",
            mend="mend `width`, or the projection",
        )
    finite(found, what="features", mend="look for divisions by a norm of zero")


@law("is-detached", world=worlds, seed=seeds())
def is_detached(subject: Subject, world: World, seed: int) -> None:
    """Features carry no graph, whoever asks and whatever its input requires."""
    target = made(subject, world)
    batch = batch_of(world, seed, 2)
    with torch.no_grad():
        found = target(batch.x, batch.y, draws(seed, 2))
    if found.requires_grad or found.grad_fn is not None:
        raise wrong(
            "features with a graph",
            wanted="detached features",
            mend="do not switch gradients on in forward; keep no trainable leaf",
        )
    if any(parameter.requires_grad for parameter in target.parameters()):
        raise wrong(
            "parameters that ask for gradients after a forward",
            wanted="frozen ones",
            mend="leave requires_grad to the core",
        )


@law("samples-are-independent", world=worlds, seed=seeds(), scale=scales(), size=sizes(2, 5))
def samples_are_independent(
    subject: Subject, world: World, seed: int, scale: float, size: int
) -> None:
    """The features of a sample depend neither on the others nor on the size of the batch."""
    target = made(subject, world)
    whole = features(target, world, seed, size, scale=scale)
    for row in range(size):
        alone = features(target, world, seed, size, rows=slice(row, row + 1), scale=scale)
        same_values(
            whole[row : row + 1], alone, rtol=1e-3, atol=1e-5,
            what=f"features of sample {row} in a batch against alone",
            mend="no statistics over the batch; draw per sample with rng.normal((B, ...))",
        )  # fmt: skip


@law("leaves-everything-alone", world=worlds, seed=seeds())
def leaves_everything_alone(subject: Subject, world: World, seed: int) -> None:
    """A forward edits no input and no weight, and draws from its own stream alone."""
    target, batch = made(subject, world), batch_of(world, seed, 3)
    with leaves("a forward", target, inputs={"x0": batch.x}), torch.no_grad():
        target(batch.x, batch.y, draws(seed, 3))


@law("has-no-memory", world=worlds, seed=seeds(), other=st.integers(1000, 1999))
def has_no_memory(subject: Subject, world: World, seed: int, other: int) -> None:
    """The same images and numbers give the same features, whatever was asked before.

    An adversarial input can then not reach it: the core hands it clean images alone.
    """
    target = made(subject, world)
    first = features(target, world, seed, 3)
    features(target, world, other, 3, scale=30.0)
    again = features(target, world, seed, 3)
    same_bits(
        again,
        first,
        what="features asked for again after another batch",
        mend="keep nothing from one forward to the next; draw from rng alone",
    )
