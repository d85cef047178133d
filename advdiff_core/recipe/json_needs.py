"""Splits a schema in what may be written and what must be.

A recipe that extends another need not repeat what that one says: for it a schema holds without
its demands. Arrays are replaced as a whole, so that their entries are complete in any recipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from advdiff_core.recipe.json_types import Json

__all__ = ["ABSENT", "NEEDS", "chain", "needs", "optional", "spelt_out"]

#: Condition of the step that stands for the component a table has if it names none.
ABSENT: Json = {"not": {"required": ["use"]}}
#: Ends the name of a definition that holds the demands of another.
NEEDS = "-needs"
_DEMANDS = ("required", "minProperties")
_TABLE = {"allOf", "if", "minProperties", "properties", "required"}
#: Keywords that hold schemas by name, and those that hold one or a list of them.
_NAMES = ("properties", "definitions")
_INNER = ("if", "then", "else", "not", "items", "anyOf", "allOf", "additionalProperties")
_BRANCHES = ("if", "then", "else")


def chain(steps: list[tuple[Json, Json]]) -> Json:
    """`if ... then ... else if ...` over (condition, schema) pairs; {} without any."""
    made: Json = {}
    for condition, then in reversed(steps):
        head = {"if": condition, "then": then}
        made = {**head, "else": made} if made else head
    return made


def spelt_out(schema: Any) -> Any:
    """The schema with `additionalProperties = true` wherever it is left out of a table.

    It means the same; tombi takes its absence for false, also in conditions and demands.
    """
    if isinstance(schema, list):
        return [spelt_out(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        key: {name: spelt_out(one) for name, one in value.items()} if key in _NAMES
        else spelt_out(value) if key in _INNER else value
        for key, value in schema.items()
    }  # fmt: skip
    if _TABLE & made.keys() or made.get("type") == "object":
        made.setdefault("additionalProperties", True)
    return made


def optional(schema: Json) -> Json:
    """The schema without its demands, but for entries of arrays."""
    made = {key: value for key, value in schema.items() if key not in (*_DEMANDS, *_BRANCHES)}
    if isinstance(made.get("properties"), dict):
        made["properties"] = {key: _optional(one) for key, one in made["properties"].items()}
    for key in ("anyOf", "allOf"):
        if key in made:
            made[key] = [optional(one) for one in made[key]]
    if isinstance(made.get("additionalProperties"), dict):
        made["additionalProperties"] = optional(made["additionalProperties"])
    kept = [(test, optional(then)) for test, then in _steps(schema) if not _is_absent(test)]
    return {**made, **chain(kept)}


def _optional(schema: Json | bool) -> Json | bool:
    return schema if isinstance(schema, bool) else optional(schema)


def needs(schema: Json) -> Json:
    """The demands of a schema alone; {} if it has none."""
    if "$ref" in schema:
        return {"$ref": schema["$ref"] + NEEDS}
    made: Json = {key: schema[key] for key in _DEMANDS if key in schema}
    properties: Mapping[str, Json] = schema.get("properties", {})
    found = {key: needs(one) for key, one in properties.items() if isinstance(one, dict)}
    found = {key: one for key, one in found.items() if one}
    made |= {"properties": found} if found else {}
    inner = {"additionalProperties": schema.get("additionalProperties"), **_referring(schema)}
    for key, one in inner.items():
        if isinstance(one, dict) and (below := needs(one)):
            made[key] = below
    rules = [below for one in schema.get("allOf", ()) if (below := needs(one))]
    made |= {"allOf": rules} if rules else {}
    steps = [(test, then if _is_absent(test) else needs(then)) for test, then in _steps(schema)]
    return {**made, **chain([(test, then) for test, then in steps if then])}


def _referring(schema: Json) -> Json:
    """Entries of an array that stand under `definitions`, where their demands are left out."""
    return {"items": schema["items"]} if "$ref" in schema.get("items", {}) else {}


def _steps(schema: Json) -> Iterator[tuple[Json, Json]]:
    """The (condition, schema) pairs of a chain."""
    while "if" in schema:
        yield schema["if"], schema["then"]
        schema = schema.get("else", {})


def _is_absent(condition: Json) -> bool:
    return condition.get("not") == ABSENT["not"]
