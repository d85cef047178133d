"""JSON Schema of tables: settings classes, and components that `use` chooses among.

A table that names a component is one object that holds the keys of all its components, for editors
to complete, followed by a chain "if `use` is this one, then just these keys, else ...", for them to
underline what is wrong. A chain and no `allOf`: taplo leaves an object with `allOf` out of its
completion.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args, get_origin

import attrs
from attrs import Attribute, define, field, frozen

from advdiff_core.discovery.contract import field_types
from advdiff_core.recipe.fields import keys_of
from advdiff_core.recipe.json_needs import ABSENT, chain
from advdiff_core.recipe.json_types import NAME, Json, any_of, described, scalar, union_options
from advdiff_core.settings import Spec

__all__ = ["QUALIFIED", "Choice", "Tables", "closed", "is_used", "named", "no_such"]

#: A name with its distribution, or a member of a family.
QUALIFIED: Json = {"type": "string", "pattern": ":"}


@frozen(kw_only=True)
class Choice:
    """A component as a schema sees it.

    Attributes:
        kind: Registry kind.
        name: What a recipe writes after `use =` for it alone; "" if only the pattern fits.
        pattern: What else it may write, `dist:name` and members of a family.
        summary: First line of its docstring.
        component: Its class.
        settings: Class of its settings.
        is_open: True for a family whose members have keys that cannot be known.
    """

    kind: str
    name: str = ""
    pattern: str
    summary: str
    component: type[Any]
    settings: type[Any]
    is_open: bool = False


def closed(properties: Mapping[str, Any], required: Iterable[str] = (), **more: Any) -> Json:
    """An object of just these keys."""
    needed = sorted(required)
    return {
        "type": "object",
        **({"required": needed} if needed else {}),
        "properties": dict(properties),
        "additionalProperties": False,
        **more,
    }


def named(inner: Json, **more: Any) -> Json:
    """An object of tables `[table.<name>]`."""
    names = {"pattern": NAME, **more.pop("names", {})}
    return {"type": "object", "propertyNames": names, "additionalProperties": inner, **more}


def _union(tables: Iterable[Json]) -> Json:
    """The keys of several tables; a key of more than one takes what any of them takes."""
    found: dict[str, list[Json]] = {}
    for table in tables:
        for key, schema in table["properties"].items():
            if isinstance(schema, dict):
                found.setdefault(key, []).append(schema)
    return {key: any_of(schemas) for key, schemas in sorted(found.items())}


@define
class Tables:
    """Makes the schemas of settings classes.

    Attributes:
        choices: The components by kind.
        recursive: Kinds that may hold themselves: they stand once, under `definitions`.
    """

    choices: Mapping[str, Sequence[Choice]]
    recursive: frozenset[str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Find the kinds that hold themselves."""
        self.recursive = frozenset(kind for kind in self.choices if kind in self._held_by(kind))

    def settings(self, cls: type[Any], owner: type[Any] | None = None) -> Json:
        """The table of a settings class.

        Args:
            cls: attrs class; of the core's tables the component itself is left out.
            owner: The component it is nested in.
        """
        hints, fields = field_types(cls, owner), keys_of(cls)
        properties = {
            key: described(self._value(hints[one.name], one.metadata, owner), one)
            for key, one in fields.items()
        }
        needed = [key for key, one in fields.items() if one.default is attrs.NOTHING]
        return closed(properties, needed, **_forms(cls), **_rules(fields))

    def component(self, kind: str, default: str = "") -> Json:
        """A table that names a component of a kind.

        Args:
            kind: Registry kind.
            default: Component used if `use` is left out.
        """
        return self.choose(self.choices.get(kind, ()), closed({}), default)

    def choose(self, choices: Sequence[Choice], common: Json, default: str = "") -> Json:
        """A table of the keys in `common` beside a component that `use` names.

        Args:
            choices: The components.
            common: Table of the core's own keys.
            default: Component used if `use` is left out; required if "".
        """
        bodies = {id(one): self.body(one, common) for one in choices}
        steps = [(is_used(one), bodies[id(one)]) for one in choices]
        chosen = next((one for one in choices if default and one.name == default), None)
        if chosen is not None:
            steps.append((ABSENT, bodies[id(chosen)]))
        steps.append(no_such(choices, {"properties": {"use": QUALIFIED}, "required": ["use"]}))
        return self.table(choices, common, steps, required=chosen is None)

    def body(self, one: Choice, common: Json, narrowed: Mapping[str, Json] | None = None) -> Json:
        """Just the keys of one component and of the core; the core's are described elsewhere.

        Args:
            one: The component.
            common: Table of the core's own keys.
            narrowed: What some of those take beside this component.
        """
        own = self.settings(one.settings, one.component)
        needed = set(common.get("required", ()))
        keys: Json = {"use": True, **dict.fromkeys(common["properties"], True), **(narrowed or {})}
        if one.is_open:
            return {**closed(keys, needed), "additionalProperties": True}
        needed |= set(own.get("required", ()))
        made = closed({**keys, **own["properties"]}, needed)
        return {**made, "if": own["if"], "then": own["then"]} if "if" in own else made

    def table(
        self, choices: Sequence[Choice], common: Json, steps: list[tuple[Json, Json]],
        *, required: bool = True,
    ) -> Json:  # fmt: skip
        """The object of all keys, with the chain that narrows it.

        Args:
            choices: The components that `use` may name.
            common: Table of the core's own keys.
            steps: The chain; its tables hold the keys of the components.
            required: True if `use` must be there.
        """
        own = _union(then for _, then in steps)
        keys = {**own, **common["properties"], "use": used(choices)}
        whole = closed(keys, ["use"] if required else [])
        # Any key may belong to a family whose members' keys are not known.
        if any(one.is_open for one in choices):
            whole["additionalProperties"] = True
        return {**whole, **chain(steps)}

    def _value(self, hint: Any, metadata: Mapping[str, Any], owner: type[Any] | None) -> Json:
        return any_of(self._one(part, metadata, owner) for part in union_options(hint))

    def _one(self, hint: Any, metadata: Mapping[str, Any], owner: type[Any] | None) -> Json:
        origin, parts = get_origin(hint), get_args(hint)
        if hint is Spec:
            return self._nested(str(metadata["kind"]))
        if origin is tuple:
            return self._array(parts, metadata, owner)
        if origin in (dict, Mapping):
            # Bounds are those of the field itself, and a table has none.
            return {"type": "object", "additionalProperties": self._value(parts[1], {}, owner)}
        if isinstance(hint, type) and attrs.has(hint):
            return self._short(hint, self.settings(hint, owner))
        return scalar(hint, metadata)

    def _nested(self, kind: str) -> Json:
        if kind in self.recursive:
            return {"$ref": f"#/definitions/{kind}"}
        return self.component(kind)

    def _array(
        self, parts: tuple[Any, ...], metadata: Mapping[str, Any], owner: type[Any] | None
    ) -> Json:
        if parts[-1] is ...:
            return {"type": "array", "items": self._value(parts[0], metadata, owner)}
        size = {"minItems": len(parts), "maxItems": len(parts)}
        entries = any_of(self._value(part, metadata, owner) for part in parts)
        return {"type": "array", "items": entries, **size}

    def _short(self, cls: type[Any], table: Json) -> Json:
        """A class that a single value may stand for, as a rate for an average."""
        shorthand = getattr(cls, "SHORTHAND", None)
        return {"anyOf": [table["properties"][shorthand], table]} if shorthand else table

    def _held_by(self, kind: str) -> set[str]:
        """Kinds inside the settings of a kind's components, at any depth."""
        found: set[str] = set()
        waiting = [kind]
        while waiting:
            for one in self.choices.get(waiting.pop(), ()):
                new = _kinds_in(one.settings, one.component) - found
                found |= new
                waiting += new
        return found


def used(choices: Sequence[Choice]) -> Json:
    """What may follow `use =`: a name, with the summary of each, or anything with a colon."""
    # Where a name is that of two kinds, the first one's summary is shown.
    words = {one.name: one.summary for one in reversed(choices) if one.name}
    docs = {"docs": {"enumValues": [words[name] for name in bare_names(choices)]}}
    options: list[Json] = [{"enum": bare_names(choices), "x-taplo": docs}]
    options += [QUALIFIED] if any(one.pattern for one in choices) else []
    return {"description": "name of the component", **any_of(options)}


def bare_names(choices: Sequence[Choice]) -> list[str]:
    """The names without a distribution that a recipe may write, in order."""
    return list(dict.fromkeys(one.name for one in choices if one.name))


def no_such(choices: Sequence[Choice], condition: Json) -> tuple[Json, Json]:
    """The step of a chain that refuses names none of its other steps took."""
    return condition, {"properties": {"use": {"enum": bare_names(choices)}}}


def is_used(one: Choice) -> Json:
    """The condition that `use` names this component."""
    options: list[Json] = [{"enum": [one.name]}] if one.name else []
    options += [{"type": "string", "pattern": one.pattern}] if one.pattern else []
    return {"properties": {"use": any_of(options)}, "required": ["use"]}


def _forms(cls: type[Any]) -> Json:
    """A class of which exactly one of some keys is written."""
    keys = getattr(cls, "EXCLUSIVE", ())
    return {"oneOf": [{"required": [key]} for key in keys]} if keys else {}


def _rules(fields: Mapping[str, Attribute[Any]]) -> Json:
    """Keys that mean something only beside certain values of another one."""
    rules = [
        _applies(key, one, fields) for key, one in fields.items() if one.metadata.get("applies")
    ]
    # Behind a condition that always holds, as an `allOf` beside the keys hides them from taplo.
    return chain([({"type": "object"}, {"allOf": rules})]) if rules else {}


def _applies(key: str, one: Attribute[Any], fields: Mapping[str, Attribute[Any]]) -> Json:
    other, allowed = one.metadata["applies"]
    then: Json = {"properties": {other: {"enum": list(allowed)}}}
    if fields[other].default not in allowed:
        then["required"] = [other]
    return chain([({"required": [key]}, then)])


def _kinds_in(cls: type[Any], owner: type[Any] | None) -> set[str]:
    fields = [one for one in attrs.fields(cls) if one.init]
    found = {str(one.metadata["kind"]) for one in fields if one.metadata.get("kind")}
    for hint in field_types(cls, owner).values():
        for nested in _classes_in(hint):
            found |= _kinds_in(nested, owner)
    return found


def _classes_in(hint: Any) -> list[type[Any]]:
    if isinstance(hint, type) and attrs.has(hint) and hint is not Spec:
        return [hint]
    return [cls for part in get_args(hint) for cls in _classes_in(part)]
