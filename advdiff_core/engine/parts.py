"""Building components one by one, and those that come before any model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from attrs import define, evolve, field, frozen
from torch import nn

from advdiff_core.draws import keyed_generator
from advdiff_core.engine.augment import Pipeline
from advdiff_core.engine.initial import load_init
from advdiff_core.engine.source import BadSamples, Source
from advdiff_core.errors import AdvdiffError, PluginError
from advdiff_core.interfaces.augmentation import Augmentation
from advdiff_core.interfaces.component import Build, Component
from advdiff_core.interfaces.dataset import Corruption, Dataset
from advdiff_core.interfaces.noise_schedule import NoiseSchedule
from advdiff_core.interfaces.time_sampler import TimeSampler
from advdiff_core.recipe import Recipe
from advdiff_core.settings import Spec
from advdiff_core.types import Domain

__all__ = ["DataParts", "Maker", "assemble_data", "data_parts", "make"]


@define(kw_only=True)
class Maker:
    """A recipe while it is built.

    Attributes:
        recipe: The checked recipe.
        build: What the next component is told.
        inits: What identifies the initial weights of a role, by role; see `initial.load_init`.
    """

    recipe: Recipe
    build: Build = field(factory=Build)
    inits: dict[str, dict[str, str]] = field(factory=dict)

    @classmethod
    def of(cls, recipe: Recipe) -> Maker:
        """A recipe of which nothing is built yet."""
        terms = {name: term.spec for name, term in recipe.terms.items()}
        run = recipe.run
        return cls(recipe=recipe, build=Build(seed=run.seed, images=run.images, terms=terms))

    def make(self, spec: Spec) -> Component:
        """Build the next component."""
        return make(spec, self.build)


def make(spec: Spec, build: Build) -> Component:
    """Build one component under a keyed random state.

    Raises:
        PluginError: P13 if its constructor fails, naming component, distribution and cause.
    """

    def nested(inner: Spec) -> Component:
        return make(inner, told)

    def load(network: nn.Module, role: str, path: Path, key: str) -> None:
        load_init(network, role, path, build.data, key=key)

    told = evolve(build, path=spec.path, make=nested, load=load)
    try:
        with keyed_init(build.seed, spec.path):
            made = spec.component(spec.settings, told)
    except AdvdiffError:
        raise
    except Exception as cause:
        message = f"{spec.kind} {spec.use!r} could not be built: {type(cause).__name__}: {cause}"
        owner = f"{spec.distribution} {spec.version}".strip()
        raise PluginError(message, code="P13", where=f"{spec.path} ({owner})") from cause
    return cast("Component", made)


@contextmanager
def keyed_init(seed: int, path: str) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_generator(seed, path, "init").initial_seed())
        yield


@frozen(kw_only=True)
class DataParts:
    """What is built before any model.

    Attributes:
        source: The data.
        augment: The augmentations.
        schedule: The noise schedule.
        times: What draws the training times; None for a law of the core.
    """

    source: Source
    augment: Pipeline
    schedule: NoiseSchedule
    times: TimeSampler | None = None


def assemble_data(recipe: Recipe) -> DataParts:
    """Build what a run reads, and no model.

    Raises:
        PluginError: If a component cannot be built.
        DataError: If the data are missing or damaged.
    """
    return data_parts(Maker.of(recipe))


def data_parts(maker: Maker) -> DataParts:
    """Build data, augmentations, schedule and law of times, in this order."""
    source = _data(maker)
    maker.build = evolve(maker.build, data=source.info)
    augment = _augmentations(maker)
    schedule = cast("NoiseSchedule", maker.make(maker.recipe.schedule.spec))
    maker.build = evolve(maker.build, schedule=schedule)
    sampler = maker.recipe.schedule.density.sampler
    times = cast("TimeSampler", maker.make(sampler)) if sampler else None
    maker.build = evolve(maker.build, times=times)
    return DataParts(source=source, augment=augment, schedule=schedule, times=times)


def _data(maker: Maker) -> Source:
    data = maker.recipe.data
    dataset = cast("Dataset", maker.make(data.spec))
    bad = BadSamples(on_bad=data.on_bad, limit=data.max_bad)
    wanted = Domain(*data.domain) if data.domain else None
    plain = Source(dataset, domain=wanted, bad=bad)
    maker.build = evolve(maker.build, data=plain.info)
    corruptions = [cast("Corruption", maker.make(spec)) for spec in data.corrupt]
    return Source(dataset, corruptions=corruptions, domain=wanted, bad=bad)


def _augmentations(maker: Maker) -> Pipeline:
    parts: list[tuple[str, Augmentation]] = []
    for spec in maker.recipe.data.augment:
        # The name, not the place in the list, keys the numbers: others may be put before it.
        count = sum(name.partition("#")[0] == spec.use for name, _ in parts)
        name = f"{spec.use}#{count + 1}" if count else spec.use
        parts.append((name, cast("Augmentation", maker.make(spec))))
    run = maker.recipe.run
    return Pipeline(parts=tuple(parts), seed=run.seed, batch=run.batch)
