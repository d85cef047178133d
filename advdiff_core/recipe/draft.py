"""A recipe whose tables have been read and whose names have not been compared yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs
from attrs import field, frozen

from advdiff_core.errors import nearest
from advdiff_core.recipe.lines import Key
from advdiff_core.recipe.problems import Problem
from advdiff_core.recipe.schema import (
    Data,
    Evaluate,
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

__all__ = ["Draft", "listed", "references"]


@frozen(kw_only=True)
class Draft:
    """The tables of a recipe that could be read, and the names of all.

    Attributes:
        names: Declared names by what refers to them: "role", "view", "term", "player". They hold
            those of tables with problems too, so that one fault does not cause another; what is
            no table at all is missing.
    """

    names: Mapping[str, list[str]]
    run: Run | None = None
    data: Data | None = None
    schedule: Schedule | None = None
    models: Mapping[str, Model] = field(factory=dict)
    views: Mapping[str, View] = field(factory=dict)
    terms: Mapping[str, Term] = field(factory=dict)
    players: Mapping[str, Player] = field(factory=dict)
    sample: Sample | None = None
    validate: Validate | None = None
    evaluate: Evaluate | None = None

    @property
    def knows_players(self) -> bool:
        """True if every player could be read."""
        return set(self.players) == set(self.names.get("player", ["?"]))


def references(draft: Draft) -> Iterator[Problem]:
    """Every key with `ref` names something that exists."""
    for table in ("data", "schedule", "sample", "validate", "evaluate"):
        yield from _walk(draft, getattr(draft, table), (table,))
    for table in ("models", "views", "terms", "players"):
        for name, value in getattr(draft, table).items():
            yield from _walk(draft, value, (table, name))


def _walk(draft: Draft, value: Any, path: Key) -> Iterator[Problem]:
    if isinstance(value, Spec):
        yield from _walk(draft, value.settings, path)
    elif isinstance(value, tuple):
        for position, inner in enumerate(value):
            yield from _walk(draft, inner, (*path, position))
    elif attrs.has(type(value)):
        for one in attrs.fields(type(value)):
            yield from _field(draft, one, getattr(value, one.name), path)


def _field(draft: Draft, one: attrs.Attribute[Any], value: Any, path: Key) -> Iterator[Problem]:
    own = one.name == "spec"
    here = path if own else (*path, key_of(one))
    ref = str(one.metadata.get("ref") or "")
    if ref not in draft.names:
        yield from _walk(draft, value, here)
        return
    for position, name in enumerate(value if isinstance(value, tuple) else [value]):
        at = (*here, position) if isinstance(value, tuple) else here
        if name and name not in draft.names[ref]:
            yield _unknown_name(draft, ref, name, at)


def _unknown_name(draft: Draft, ref: str, name: str, path: Key) -> Problem:
    table = {"role": "models", "view": "views", "term": "terms", "player": "players"}[ref]
    known = draft.names[ref]
    near = nearest(name, known)
    fix = (
        f"did you mean {near!r}?" if near else f"declare [{table}.{name}]; there is {listed(known)}"
    )
    return Problem(path=path, code="R11", message=f"there is no {ref} {name!r}", fix=fix)


def listed(names: Iterable[str]) -> str:
    """Names as a message shows them."""
    return ", ".join(names) or "none"
