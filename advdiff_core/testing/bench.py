"""What components under test are built for: data, schedules, and the places of a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache

import torch
from attrs import field, frozen
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from advdiff_core.draws import Draws, keyed_generator
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.noise_schedule import NoiseSchedule
from advdiff_core.schedules import EDM, VE, Flow, VPCosine, VPLinear
from advdiff_core.types import Batch, DataInfo, Domain

__all__ = [
    "PARAMETRIZATIONS",
    "SCHEDULES",
    "World",
    "batch_of",
    "draws",
    "gaussian",
    "labels",
    "plain_worlds",
    "schedule",
    "seeds",
]

PARAMETRIZATIONS = ("eps", "x0", "v", "flow", "edm")

SCHEDULES: Mapping[str, type[NoiseSchedule]] = {
    "vp-linear": VPLinear, "flow": Flow, "edm": EDM, "vp-cosine": VPCosine, "ve": VE,
}  # fmt: skip


@frozen(kw_only=True, repr=False)
class World:
    """Data, and for views and terms the cast of models, that a component is built for.

    Attributes:
        name: What a message calls it; of several with one name the first that fits is used.
        data: Description of the data.
        root: Root of the view looked at, for perturbations and terms: "clean" or "image".
        roles: Kind by model role: "denoiser", "classifier", "discriminator", "alignment_target".
    """

    name: str
    data: DataInfo
    root: str = ""
    roles: Mapping[str, str] = field(factory=dict)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.data.shape))
        return f"{self.name}({shape})"


def _images(name: str, shape: tuple[int, ...], low: float, classes: int) -> World:
    data = DataInfo(shape=shape, count=64, domain=Domain(low, 1.0), classes=classes)
    return World(name=name, data=data)


@cache
def plain_worlds() -> tuple[World, ...]:
    """Images in [-1, 1], images in [0, 1] and points; a larger size where the small one fails."""
    points = World(name="points", data=DataInfo(shape=(2,), count=64, classes=3))
    return (
        points,
        _images("images", (3, 8, 8), -1.0, 3),
        _images("grey-images", (1, 8, 8), 0.0, 10),
        World(name="points", data=DataInfo(shape=(3,), count=64, classes=3)),
        _images("images", (3, 32, 32), -1.0, 3),
        _images("grey-images", (1, 28, 28), 0.0, 10),
    )


def first_fitting(
    candidates: Iterable[World], trial: Callable[[World], object]
) -> tuple[tuple[World, ...], dict[str, str]]:
    """The first candidate of each name for which `trial` raises nothing, and why others failed."""
    found: dict[str, World] = {}
    reasons: dict[str, str] = {}
    for world in candidates:
        if world.name in found:
            continue
        try:
            trial(world)
        except Exception as error:
            reasons.setdefault(repr(world), f"{type(error).__name__}: {error}")
        else:
            found[world.name] = world
    return tuple(found.values()), reasons


@cache
def schedule(name: str) -> NoiseSchedule:
    """One of the core's schedules with its defaults."""
    cls = SCHEDULES[name]
    return cls(cls.Settings(), Build(path="schedule"))


def schedules() -> SearchStrategy[str]:
    """Names of schedules of all families: variance preserving, exploding, flow."""
    return st.sampled_from(tuple(SCHEDULES))


def seeds() -> SearchStrategy[int]:
    """Seeds of generators; shrink to 0."""
    return st.integers(0, 999)


def scales() -> SearchStrategy[float]:
    """Sizes of inputs; shrink to 1."""
    return st.sampled_from((1.0, 0.1, 3.0, 1e-3, 30.0))


def sizes(low: int = 2, high: int = 4) -> SearchStrategy[int]:
    """Batch sizes."""
    return st.integers(low, high)


def gaussian(
    seed: int, shape: Sequence[int], *, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Normal numbers from a generator of their own, any shape."""
    numbers = torch.randn(tuple(shape), generator=keyed_generator("law", seed), dtype=torch.float64)
    return (scale * numbers).to(dtype)


def batch_of(
    world: World, seed: int, size: int, *, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> Batch:
    """Samples [B, ...] inside the domain, where there is one, and labels [B], where there are."""
    x = gaussian(seed, (size, *world.data.shape), scale=scale)
    domain = world.data.domain
    if domain is not None:
        x = domain.low + domain.span * (x / 2).sigmoid()
    return Batch(x.to(dtype), labels(world, seed, size))


def labels(world: World, seed: int, size: int) -> Tensor | None:
    """Labels [B], int64, or None for data without classes."""
    if not world.data.classes:
        return None
    generator = keyed_generator("labels", seed)
    return torch.randint(0, world.data.classes, (size,), generator=generator)


def draws(seed: int, size: int, *, start: int = 0, total: int = 0) -> Draws:
    """Random numbers as a step hands them out."""
    whole = total or start + size
    return Draws(("law", seed), start=start, size=size, total=whole, device="cpu")


def numel(world: World) -> int:
    """Numbers in one sample."""
    return math.prod(world.data.shape)
