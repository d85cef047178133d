"""The checked recipe: typed tables, where each key was written, and its canonical text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import tomli_w
from attrs import field, frozen

from advdiff_core.errors import Fault
from advdiff_core.recipe.layers import Place
from advdiff_core.recipe.schema import (
    Data,
    Evaluate,
    Hooks,
    Model,
    Player,
    Run,
    Sample,
    Schedule,
    Term,
    Validate,
    View,
    key_of,
)
from advdiff_core.settings import Spec

__all__ = ["LANGUAGE", "Recipe", "plain"]

#: Version of the recipe language: the key `advdiff` of a recipe.
LANGUAGE = 1


@frozen(kw_only=True)
class Recipe:
    """A recipe with every default filled in and every component checked, nothing built.

    Tables with names are sorted by name: the order of a recipe never matters.

    Attributes:
        run: Length, seed and machine.
        data: The samples.
        schedule: The noise schedule.
        models: Networks by role.
        views: Perturbed views by name; "clean" and "image" are always there and not listed.
        terms: Loss terms by name.
        players: Players by name.
        sample: How to sample; None in recipes without a denoiser.
        validate: What is measured during the training; None for nothing.
        evaluate: What is measured at its end.
        hooks: Listeners.
        source: Where each key was written, by dotted key; keys that were filled in are missing.
        warnings: What does not stop a run but should be known.
        locked: Of a frozen recipe: path and SHA-256 of the initial weights, by role.
        locked_data: Of a frozen recipe: fingerprint of the data, and hash of the dataset's keys.
    """

    run: Run
    data: Data
    schedule: Schedule
    models: Mapping[str, Model]
    views: Mapping[str, View]
    terms: Mapping[str, Term]
    players: Mapping[str, Player]
    sample: Sample | None
    # Measuring changes no weights: a run may go on with other measurements.
    validate: Validate | None = field(default=None, metadata={"safe": True})
    evaluate: Evaluate
    hooks: Hooks
    source: Mapping[str, Place] = field(factory=dict, eq=False, repr=False)
    warnings: tuple[Fault, ...] = field(default=(), eq=False, repr=False)
    locked: Mapping[str, Mapping[str, Any]] = field(factory=dict, eq=False, repr=False)
    locked_data: Mapping[str, Any] = field(factory=dict, eq=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The whole recipe as plain tables: what its TOML text holds."""
        tables = {one.name: getattr(self, one.name) for one in attrs.fields(Recipe) if one.eq}
        hooks = tables.pop("hooks")
        made = {name: plain(value) for name, value in tables.items() if value is not None}
        made = {name: value for name, value in made.items() if value != {}}
        listeners = {**({"off": list(hooks.off)} if hooks.off else {}), **plain(hooks.options)}
        return {"advdiff": LANGUAGE, **made, **({"hooks": listeners} if listeners else {})}

    def dumps(self, lock: Mapping[str, Any] | None = None) -> str:
        """The canonical TOML text; loading it gives an equal recipe.

        Args:
            lock: Table `[lock]` to put at its end, from `recipe.lock.lock_table`.
        """
        tables = self.to_dict()
        return tomli_w.dumps({**tables, "lock": dict(lock)} if lock else tables)

    @property
    def recipe_hash(self) -> str:
        """SHA-256 of everything but the run's name.

        Order, comments, line ends and defaults written out or not make no difference.
        """
        tables = self.to_dict()
        tables["run"].pop("name")
        return _hash(tables)

    @property
    def data_hash(self) -> str:
        """SHA-256 of the dataset's name and keys."""
        return _hash(plain(self.data.spec))

    def specs(self) -> Iterator[Spec]:
        """Every component the recipe names, nested ones included."""
        for one in attrs.fields(Recipe):
            if one.eq:
                yield from _specs(getattr(self, one.name))


def _hash(tables: Mapping[str, Any]) -> str:
    text = json.dumps(tables, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _specs(value: Any) -> Iterator[Spec]:
    if isinstance(value, Spec):
        yield value
        yield from _specs(value.settings)
    elif attrs.has(type(value)):
        for one in attrs.fields(type(value)):
            yield from _specs(getattr(value, one.name))
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _specs(inner)
    elif isinstance(value, tuple):
        for inner in value:
            yield from _specs(inner)


def plain(value: Any) -> Any:
    """Typed settings as plain TOML values; keys without value or meaning are left out."""
    if isinstance(value, Spec):
        return {"use": value.use, **plain(value.settings)}
    if attrs.has(type(value)):
        return _plain_settings(value)
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in sorted(value.items())}
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _plain_settings(value: Any) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for one in attrs.fields(type(value)):
        held = getattr(value, one.name)
        if held is None or not one.init or not _applies(value, one):
            continue
        if one.name == "spec" and hasattr(type(value), "KIND"):
            made |= plain(held)
        else:
            made[key_of(one)] = plain(held)
    return made


def _applies(value: Any, one: attrs.Attribute[Any]) -> bool:
    """False for a key that means nothing beside the value of another."""
    applies = one.metadata.get("applies")
    return applies is None or getattr(value, applies[0]) in applies[1]
