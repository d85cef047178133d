"""A component under test: found, given settings, built."""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import attrs
import torch
from attrs import evolve
from torch import nn

from advdiff_core.discovery import Catalogue, Entry
from advdiff_core.discovery.contract import settings_complaint
from advdiff_core.draws import keyed_generator
from advdiff_core.interfaces.component import Build, Component
from advdiff_core.interfaces.module import ModuleComponent
from advdiff_core.recipe.components import read_component
from advdiff_core.recipe.problems import Mismatch
from advdiff_core.recipe.structure import Structurer
from advdiff_core.settings import Spec
from advdiff_core.testing.bench import World, first_fitting, plain_worlds, schedule
from advdiff_core.testing.example import Example, MadeExample
from advdiff_core.testing.findings import NotApplicable, wrong
from advdiff_core.testing.guess import NoGuessError, guessed
from advdiff_core.testing.state import TORCH_STATE, changes, world_state

__all__ = ["Subject", "catalogue_with", "read_settings", "references", "worlds_or_skip"]

T = TypeVar("T")

#: How far weights are moved from where they begin: layers that begin at zero hide everything.
SHAKE = 0.05


class Subject:
    """One component with one way to build it.

    Args:
        kind: Registry kind.
        use: What a recipe writes after `use =`, without the distribution.
        catalogue: Where it and what it nests are found.
        owner: Its distribution; the one that `use` means if empty.
        example: How to build it.
    """

    def __init__(
        self,
        kind: str,
        use: str,
        catalogue: Catalogue,
        *,
        owner: str = "",
        example: MadeExample | None = None,
    ) -> None:
        self.kind, self.use, self.catalogue = kind, use, catalogue
        self.entry = catalogue.resolve(kind, f"{owner}:{use}" if owner else use)[0]
        self._made = example
        self._memo: dict[object, Any] = {}
        #: What the first build changed in the process.
        self.effects: list[str] | None = None

    @property
    def title(self) -> str:
        """What a message calls it."""
        return f"{self.kind} {self.use!r} ({self.entry.owner})"

    @property
    def qualified(self) -> str:
        """What a recipe writes to mean just this component."""
        return f"{self.entry.distribution}:{self.use}"

    @cached_property
    def component(self) -> type[Any]:
        """The class, checked as discovery checks it."""
        return self.catalogue.load(self.entry)

    @cached_property
    def settings_class(self) -> type[Any]:
        """The class of its settings."""
        variant = self.catalogue.resolve(self.kind, self.qualified)[1]
        found: type[Any] = self.component.settings_type(variant)
        return found

    @cached_property
    def example(self) -> Example:
        """The example; one that needs files is made in a folder of its own."""
        made = self._made if self._made is not None else Example()
        if callable(made):
            made = made(self.folder)
        return made if isinstance(made, Example) else Example(settings=made)

    @cached_property
    def table(self) -> dict[str, Any]:
        """Its keys as a recipe writes them, required ones guessed where the example has none."""
        table: dict[str, Any] = dict(self.example.settings)
        for one in attrs.fields(self.settings_class):
            if one.init and one.default is attrs.NOTHING and one.alias not in table:
                table[str(one.alias)] = self._guess(one)
        return table

    def _guess(self, one: attrs.Attribute[Any]) -> Any:
        try:
            return guessed(one, self.settings_class, self.component, self.catalogue)
        except NoGuessError as error:
            raise wrong(
                f"no value for its key {one.alias!r}, {error}",
                wanted="a value for each key without default",
                mend=f'write examples={{"{self.kind}:{self.use}": [{{"{one.alias}": ...}}]}}',
            ) from None

    @cached_property
    def settings(self) -> Any:
        """Its settings, read as a recipe's are."""
        return read_settings(self.catalogue, self.kind, {"use": self.qualified, **self.table})

    @cached_property
    def terms(self) -> Mapping[str, Spec]:
        """The other terms of its recipe, read as a recipe's are."""
        reader = Structurer(self.catalogue)
        tables = self.example.terms
        return {
            name: evolve(read_component(reader, "loss_term", table, None)[0], path=f"terms.{name}")
            for name, table in tables.items()
        }

    @cached_property
    def folder(self) -> Path:
        """A folder of its own that lives as long as the process."""
        folder = tempfile.mkdtemp(prefix="advdiff-laws-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)

    @property
    def words(self) -> tuple[str, ...]:
        """Free texts among its settings: one of them may be the name of a tap."""
        fields = attrs.fields(type(self.settings))
        free = [one for one in fields if not one.metadata.get("ref")]
        values = [getattr(self.settings, one.name) for one in free]
        return tuple(dict.fromkeys(v for v in values if isinstance(v, str) and v))

    def variant(self, changes: Mapping[str, Any]) -> Subject:
        """The same component with other settings."""
        example = evolve(self.example, settings={**self.table, **changes})
        owner = self.entry.distribution
        return Subject(self.kind, self.use, self.catalogue, owner=owner, example=example)

    def memo(self, key: object, make: Callable[[], T]) -> T:
        """What `make` returns, made once."""
        if key not in self._memo:
            self._memo[key] = make()
        found: T = self._memo[key]
        return found

    def build(self, build: Build, *, shake: bool = True) -> Any:
        """Build it as the core does, under a keyed random state.

        Args:
            build: What it is told.
            shake: Move its weights from where they begin, lest layers that begin at zero hide it.
        """
        settings, before, modules = self.settings, world_state(), len(sys.modules)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_generator(build.seed, build.path, "init").initial_seed())
            told = evolve(build, make=lambda spec: _nested(spec, build), load=_loader(build))
            made = self.component(settings, told)
        if self.effects is None:
            found = changes(before, world_state())
            # Packages that are imported now do as they like to the environment, but not to torch.
            lazy = len(sys.modules) > modules
            self.effects = [name for name in found if not lazy or name in TORCH_STATE]
        if shake and isinstance(made, ModuleComponent):
            _shake(made)
        return made

    def plain_build(self, world: World, *, seed: int = 0, path: str = "tested") -> Build:
        """A `Build` with data and schedule of a world."""
        known = schedule("vp-linear")
        return Build(
            path=path, seed=seed, data=world.data, schedule=known, c_noise=known.c_noise_range()
        )

    def candidates(self) -> tuple[World, ...]:
        """Worlds to try, that of the example alone if it has one."""
        if self.example.data is not None:
            return (World(name="example", data=self.example.data),)
        return plain_worlds()

    def fit(
        self, trial: Callable[[World], object], candidates: Iterable[World] | None = None
    ) -> tuple[tuple[World, ...], dict[str, str]]:
        """Worlds it works in, and why it does not in others; found out once."""
        tried = candidates if candidates is not None else self.candidates()
        return self.memo("fit", lambda: first_fitting(tried, trial))


def references(settings: Any, ref: str) -> list[str]:
    """Names of roles or views that settings refer to."""
    found: list[str] = []
    for one in attrs.fields(type(settings)):
        if one.metadata.get("ref") == ref:
            value = getattr(settings, one.name)
            found += [value] if isinstance(value, str) else list(value or ())
    return [name for name in found if name]


def worlds_or_skip(found: tuple[World, ...]) -> tuple[World, ...]:
    """The worlds; a law is skipped where there are none, as law `builds` says why."""
    if not found:
        message = "it does not build: see law 'builds'"
        raise NotApplicable(message)
    return found


def _loader(build: Build) -> Callable[[nn.Module, str, Path, str], object]:
    """What gives nested networks their weights, as in a run."""

    def load(network: nn.Module, role: str, path: Path, key: str) -> None:
        from advdiff_core.engine.initial import load_init

        load_init(network, role, path, build.data, key=key)

    return load


def _nested(spec: Spec, build: Build) -> Component:
    made: Component = spec.component(spec.settings, evolve(build, path=f"{build.path}.nested"))
    return made


def _shake(module: ModuleComponent) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.is_floating_point():
                generator = keyed_generator("shake", name)
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(SHAKE * noise.to(parameter))


def read_settings(catalogue: Catalogue, kind: str, table: Mapping[str, Any]) -> Any:
    """The settings that a recipe's table means.

    Raises:
        Mismatch: With everything that is wrong in it.
    """
    return read_component(Structurer(catalogue), kind, table, None)[0].settings


def settings_or_finding(subject: Subject) -> Any:
    """Its settings.

    Raises:
        Finding: If the example's do not fit.
    """
    complaint = settings_complaint(subject.component, subject.settings_class)
    if complaint:
        raise wrong(complaint, wanted="settings a recipe can fill", mend="mend its Settings class")
    try:
        return subject.settings
    except Mismatch as error:
        key = next((".".join(map(str, one.path)) for one in error.problems if one.path), "")
        raise wrong(
            f"settings that are refused: {key}: {error}" if key else str(error),
            wanted="settings it can be built with",
            mend=f'mend examples["{subject.kind}:{subject.use}"]',
        ) from None


def catalogue_with(catalogue: Catalogue, kind: str, name: str, component: type[Any]) -> Catalogue:
    """A catalogue that also holds a class of no distribution, in the name of "unregistered"."""
    value = f"{component.__module__}:{component.__qualname__.replace('<locals>', 'local')}"
    entry = Entry(kind=kind, name=name, value=value, distribution="unregistered", version="0")
    return Catalogue(
        entries=(*catalogue.entries, entry),
        allowed=catalogue.allowed,
        loaded={(kind, value, "unregistered"): component},
    )
