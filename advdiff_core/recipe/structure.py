"""From plain tables to typed objects: a strict cattrs converter that collects every problem.

Each hook either returns a value or raises `Mismatch` with everything wrong below it; tables and
arrays gather what their entries raise, so one pass finds all faults.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import attrs
from attrs import evolve, frozen
from cattrs import Converter

from advdiff_core.discovery import Catalogue
from advdiff_core.recipe import scalars
from advdiff_core.recipe.components import read_component
from advdiff_core.recipe.fields import construct, read_fields
from advdiff_core.recipe.lines import Key
from advdiff_core.recipe.problems import Mismatch, Problem, described, is_clean, refuse
from advdiff_core.settings import Spec

__all__ = ["Context", "Structurer"]

T = TypeVar("T")


@frozen(kw_only=True)
class Context:
    """Where in the recipe a hook is at work.

    Attributes:
        path: Place of the value.
        kind: Registry kind of a `Spec` found there.
        owner: Component whose settings are read; None for the core's own keys.
        plugin: Distribution of that component.
    """

    path: Key = ()
    kind: str = ""
    owner: type[Any] | None = None
    plugin: str = ""


class Structurer:
    """Makes typed objects of the tables of one recipe.

    Args:
        catalogue: Where components are found.
        absent: Distributions that the recipe was frozen with and that are not installed.

    Attributes:
        now: Where in the recipe the current hook is.
        warnings: What a user should know of the components named.
    """

    def __init__(self, catalogue: Catalogue, absent: Sequence[str] = ()) -> None:
        self.catalogue = catalogue
        self.absent = tuple(absent)
        self.warnings: list[Problem] = []
        self.now = Context()
        self._converter = self._make_converter()

    def _make_converter(self) -> Converter:
        converter = Converter()
        for leaf, hook in scalars.HOOKS.items():
            converter.register_structure_hook(leaf, hook)
        rules: list[tuple[Callable[[Any], bool], Callable[[Any, Any], Any]]] = [
            (lambda hint: get_origin(hint) is Literal, _literal),
            (lambda hint: get_origin(hint) in (Union, types.UnionType), self._union),
            (lambda hint: get_origin(hint) is tuple, self._array),
            (lambda hint: get_origin(hint) in (dict, Mapping), self._mapping),
            (lambda hint: isinstance(hint, type) and attrs.has(hint), self._nested),
            (lambda hint: hint is Spec, self._spec),
        ]
        for predicate, rule in rules:
            converter.register_structure_hook_func(predicate, rule)
        return converter

    @contextmanager
    def inside(self, **changes: Any) -> Iterator[None]:
        """Read in a changed context; problems raised inside get its place and owner."""
        before = self.now
        self.now = evolve(before, **changes)
        try:
            yield
        except Mismatch as error:
            raise Mismatch(self.located(error.problems)) from None
        finally:
            self.now = before

    def located(self, problems: Iterable[Problem]) -> list[Problem]:
        """The problems, those without a place put at the current one."""
        now = self.now
        return [
            evolve(one, path=one.path or now.path, plugin=one.plugin or now.plugin)
            for one in problems
        ]

    def entry(self, part: str | int, hint: Any, value: Any, **changes: Any) -> Any:
        """The value of one key or position as the type `hint`.

        Raises:
            Mismatch: With everything that is wrong in it.
        """
        with self.inside(path=(*self.now.path, part), **changes):
            return self._converter.structure(value, hint)

    def table(self, cls: type[T], value: Any, path: Key, kind: str = "") -> T:
        """The table of the core's class `cls` at `path`.

        Args:
            cls: A class of `schema`.
            value: The table.
            path: Its place.
            kind: Registry kind of the component it names; "" if it names none.

        Raises:
            Mismatch: With everything that is wrong in it.
        """
        with self.inside(path=path):
            if not kind:
                return self._nested(value, cls)
            spec, shared = read_component(self, kind, require_table(value), cls)
            return construct(cls, {**shared, "spec": spec})

    def _nested(self, value: Any, cls: type[T]) -> T:
        """A settings class, at the top or nested in another."""
        shorthand = getattr(cls, "SHORTHAND", None)
        if shorthand and not isinstance(value, dict):
            value = {shorthand: value}
        return construct(cls, read_fields(self, cls, require_table(value)))

    def _spec(self, value: Any, _: Any) -> Spec:
        """A component nested in other settings."""
        if isinstance(value, str):
            raise refuse(
                f"found {described(value)}, wanted a table", f'write {{ use = "{value}" }}'
            )
        return read_component(self, self.now.kind, require_table(value), None)[0]

    def _union(self, value: Any, hint: Any) -> Any:
        failures: list[Mismatch] = []
        for option in get_args(hint):
            if option is type(None):
                continue
            try:
                with self.inside():
                    return self._converter.structure(value, option)
            except Mismatch as error:
                failures.append(error)
        raise self._closest(value, failures)

    def _closest(self, value: Any, failures: list[Mismatch]) -> Mismatch:
        """Of several ways not to fit, the one whose type did fit; else all that was wanted."""
        if len(failures) == 1:
            return failures[0]
        for failure in failures:
            if any(one.code != "R07" or one.path != self.now.path for one in failure.problems):
                return failure
        wanted = [one.problems[0].message.partition("wanted ")[2] for one in failures]
        fix = next((one.problems[0].fix for one in failures if one.problems[0].fix), "")
        return refuse(f"found {described(value)}, wanted {' or '.join(wanted)}", fix)

    def _array(self, value: Any, hint: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            fix = "write an array, [ ... ]"
            raise refuse(f"found {described(value)}, wanted an array", fix)
        parts = get_args(hint)
        if parts[-1] is ...:
            parts = (parts[0],) * len(value)
        if len(parts) != len(value):
            message = f"found an array of {len(value)} entries, wanted one of {len(parts)}"
            raise refuse(message)
        return tuple(self._gather(enumerate(parts), value))

    def _mapping(self, value: Any, hint: Any) -> dict[str, Any]:
        table = require_table(value)
        for key in table:
            if not is_clean(key):
                raise refuse(f"found the key {described(key)}, wanted a name", code="R13")
        inner = get_args(hint)[1]
        made = self._gather([(key, inner) for key in table], table)
        return dict(zip(table, made, strict=True))

    def _gather(self, entries: Iterable[tuple[Any, Any]], values: Any) -> list[Any]:
        """Every entry of an array or table, or every problem of all of them."""
        made: list[Any] = []
        problems: list[Problem] = []
        for part, hint in entries:
            try:
                made.append(self.entry(part, hint, values[part]))
            except Mismatch as error:
                problems += error.problems
        if problems:
            raise Mismatch(problems)
        return made


def _literal(value: Any, hint: Any) -> Any:
    return scalars.strict_literal(value, get_args(hint))


def require_table(value: Any) -> dict[str, Any]:
    """`value` if it is a table.

    Raises:
        Mismatch: R07 if it is anything else.
    """
    if isinstance(value, dict):
        return value
    raise refuse(f"found {described(value)}, wanted a table", "write { key = value }")
