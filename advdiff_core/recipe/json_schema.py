"""The JSON Schema of recipes, made from what is installed: editors complete and underline by it.

Everything stands where it is used, but kinds of components that may hold themselves (an attack
that begins with another attack): those stand once, under `definitions`.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

from advdiff_core.discovery import HOOKS, Catalogue
from advdiff_core.recipe.fill import OPTIMIZER
from advdiff_core.recipe.json_choices import choices_of
from advdiff_core.recipe.json_needs import NEEDS, needs, optional, spelt_out
from advdiff_core.recipe.json_tables import (
    QUALIFIED,
    Choice,
    Tables,
    closed,
    is_used,
    named,
    no_such,
)
from advdiff_core.recipe.json_types import Json
from advdiff_core.recipe.recipe import LANGUAGE
from advdiff_core.recipe.schema import ROOT_VIEWS, TABLES, Model, Table

__all__ = ["recipe_schema"]

#: What taplo (Even Better TOML) reads; the keywords used mean the same in draft 2020-12.
DRAFT = "http://json-schema.org/draft-07/schema#"


def recipe_schema(
    catalogue: Catalogue, warn: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """The schema of recipes over the components of a catalogue. Imports all of them.

    A recipe that the loader accepts fits the schema. The reverse does not hold: names that refer
    to each other and rules over several tables are the business of `advdiff check`.

    Args:
        catalogue: The components; those that cannot be imported are left out.
        warn: Told of each that is left out.
    """
    tables = Tables(choices_of(catalogue, warn))
    parts = {name: _table(tables, name, table) for name, table in TABLES.items()}
    root = closed({**_head(catalogue), **parts})
    definitions: Json = {}
    for kind in sorted(tables.recursive):
        whole = tables.component(kind)
        definitions |= {kind: optional(whole), kind + NEEDS: needs(whole)}
    made: dict[str, Any] = spelt_out({
        "$schema": DRAFT,
        "title": "advdiff recipe",
        "description": "Made by 'advdiff schema' from what was installed; make it anew when a "
        "plugin comes, goes or changes.",
        **optional(root),
        # What a recipe leaves out may stand in one that it extends.
        "if": {"required": ["extends"]},
        "then": True,
        "else": needs({**root, "required": ["data", "models"]}),
        **({"definitions": definitions} if definitions else {}),
    })  # fmt: skip
    return made


def _table(tables: Tables, name: str, table: Table) -> Json:
    made = _inner(tables, name, table)
    words = (inspect.getdoc(table.cls) or "").partition("\n")[0].partition(": ")[2]
    if not table.named:
        return {"description": words, **made}
    more: Json = {"names": {"not": {"enum": list(ROOT_VIEWS)}}} if name == "views" else {}
    more |= {"minProperties": 1} if name == "models" else {}
    return {"description": words, **named(made, **more)}


def _inner(tables: Tables, name: str, table: Table) -> Json:
    common = tables.settings(table.cls)
    if table.cls is Model:
        return _model(tables, common)
    if table.kind:
        return tables.choose(tables.choices[table.kind], common, table.default)
    if name == "players":
        properties = common["properties"]
        words = {"description": properties["optimizer"]["description"]}
        properties["optimizer"] = {**tables.component("optimizer", OPTIMIZER), **words}
        # The core fills in what a player leaves out.
        common.pop("required", None)
    return common


def _model(tables: Tables, common: Json) -> Json:
    """`[models.<role>]`: the key `kind` says which components there are."""
    kinds: list[str] = common["properties"]["kind"]["enum"]
    choices = [one for kind in kinds for one in tables.choices[kind]]
    shared = Counter(text for one in choices for text in (one.name, one.pattern) if text)
    steps = [(_is_model(one, shared), _model_body(tables, common, one)) for one in choices]
    for kind in kinds:
        test: Json = {"properties": {"kind": {"enum": [kind]}}, "required": ["kind", "use"]}
        steps.append(no_such(tables.choices[kind], test))
    if all(count == 1 for count in shared.values()):
        steps.append(no_such(choices, {"properties": {"use": QUALIFIED}, "required": ["use"]}))
    return tables.table(choices, common, steps)


def _model_body(tables: Tables, common: Json, one: Choice) -> Json:
    narrowed: Json = {"kind": {"enum": [one.kind]}}
    if one.kind == "backbone":
        return tables.body(one, common, narrowed)
    narrowed["parametrization"] = {"enum": ["none"]}
    required = [*common.get("required", ()), "kind"]
    return tables.body(one, {**common, "required": required}, narrowed)


def _is_model(one: Choice, shared: Counter[str]) -> Json:
    """The model names this component; without `kind`, if no other kind has the name."""
    test = is_used(one)
    test["properties"] = {**test["properties"], "kind": {"enum": [one.kind]}}
    if shared[one.name] > 1 or shared[one.pattern] > 1:
        test["required"] = ["kind", "use"]
    return test


def _head(catalogue: Catalogue) -> Json:
    """Keys of a recipe that are no tables of components."""
    names = {"type": "array", "items": {"enum": catalogue.names(HOOKS)}}
    options = {
        name: {"description": f"options of the listener {name}", "type": "object"}
        for name in catalogue.names(HOOKS)
    }
    bases = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    words = "recipes this one builds on: files beside it, or dist:name"
    off = {"description": "listeners to leave out", **names}
    hooks = closed({"off": off, **options})
    return {
        "advdiff": {"description": "version of the recipe language", "enum": [LANGUAGE]},
        "extends": {"description": words, **bases},
        "hooks": {"description": "listeners to leave out, and options of others", **hooks},
        "lock": {"description": "what the recipe was frozen with; written by advdiff"},
    }
