"""The JSON Schema of recipes agrees with the loader, as far as a schema can say what it says."""

from __future__ import annotations

import copy
import random
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import jsonschema
import pytest
import tomli_w
from helpers_dists import Site
from helpers_recipes import FULL, LEAST, load
from hypothesis import given
from hypothesis import strategies as st

from advdiff_core.discovery import Catalogue, scan
from advdiff_core.errors import RecipeError
from advdiff_core.recipe import load_recipe, lock_text, recipe_from_dict
from advdiff_core.recipe.json_schema import recipe_schema

ROOT = Path(__file__).parents[2]
SHIPPED = sorted([
    *ROOT.glob("examples/*.toml"),
    *ROOT.glob("plugins/*/src/*/recipes/*.toml"),
    *ROOT.glob("tests/recipes/*.toml"),
])  # fmt: skip
DRAFTS = (jsonschema.Draft7Validator, jsonschema.Draft202012Validator)

#: Unknown key, wrong type, out of bounds or no choice, nothing of that name, no name.
EXPRESSIBLE = {"R06", "R07", "R08", "R11", "R13", "Q03", "Q04"}
#: Keywords that mean the same in both drafts.
KEYWORDS = {
    "$schema", "$ref", "additionalProperties", "allOf", "anyOf", "default", "definitions",
    "description", "else", "enum", "exclusiveMaximum", "exclusiveMinimum", "if", "items",
    "maxItems", "maxLength", "maxProperties", "maximum", "minItems", "minLength", "minProperties",
    "minimum", "not", "oneOf", "pattern", "properties", "propertyNames", "required", "then",
    "title", "type", "x-taplo",
}  # fmt: skip

Path_ = tuple[str | int, ...]
#: What was done to a recipe, and its tables after that.
Edit = tuple[str, dict[str, Any]]
#: Recipes that need no other: a base would fill what an edit takes out.
WHOLE = [one for one in SHIPPED if "extends" not in tomllib.loads(one.read_text("utf-8"))]


def label(path: Path) -> str:
    """A recipe's name in the names of tests."""
    return f"{path.parents[3].name}-{path.stem}"


@cache
def installed() -> tuple[Catalogue, dict[str, Any]]:
    """What is installed, and its schema."""
    catalogue = scan(environ={})
    left_out: list[str] = []
    made = recipe_schema(catalogue, left_out.append)
    assert left_out == []
    return catalogue, made


@pytest.fixture(scope="session")
def toy_schema(toys: Catalogue) -> jsonschema.Draft7Validator:
    """The schema over the toy components."""
    return jsonschema.Draft7Validator(recipe_schema(toys))


def schemas_in(schema: Any) -> Iterator[dict[str, Any]]:
    """A schema and every one inside it."""
    if not isinstance(schema, dict):
        return
    yield schema
    for key in ("if", "then", "else", "not", "items", "additionalProperties", "propertyNames"):
        yield from schemas_in(schema.get(key))
    for key in ("anyOf", "allOf"):
        for one in schema.get(key, ()):
            yield from schemas_in(one)
    for key in ("properties", "definitions"):
        for one in schema.get(key, {}).values():
            yield from schemas_in(one)


@pytest.mark.parametrize("draft", DRAFTS)
def test_schema_is_one_in_the_drafts_that_editors_read(toys: Catalogue, draft: type) -> None:
    """Both meta-schemas hold, and no keyword is used that one of them does not know."""
    for made in (recipe_schema(toys), installed()[1]):
        draft.check_schema(made)
        assert {key for one in schemas_in(made) for key in one} <= KEYWORDS


def test_schema_refers_only_to_kinds_that_hold_themselves(toys: Catalogue) -> None:
    """All stands where it is used; attacks, one of which may begin with another, stand once."""
    made = recipe_schema(toys)
    assert list(made["definitions"]) == ["attack", "attack-needs"]
    used = {one["$ref"] for one in schemas_in(made) if "$ref" in one}
    assert used == {"#/definitions/attack", "#/definitions/attack-needs"}


def test_schema_closes_every_table(toys: Catalogue) -> None:
    """An object with keys has no others."""
    made = recipe_schema(toys)
    tables = [one for one in schemas_in(made) if one.get("type") == "object"]
    open_ones = [one for one in tables if one.get("additionalProperties", True) is True]
    assert [one.get("description", "") for one in open_ones if "properties" in one] == []


def test_schema_describes_every_key(toys: Catalogue) -> None:
    """Help, unit, bounds, default and choices of each key are there."""
    made = recipe_schema(toys)["properties"]
    assert made["run"]["properties"]["images"] == {
        "description": "length of the training [images]",
        "type": "integer", "minimum": 1, "maximum": 2**53, "default": 400_000,
    }  # fmt: skip
    net = made["models"]["additionalProperties"]["properties"]
    assert net["dropout"]["exclusiveMaximum"] == 1.0
    assert net["norm"] == {"description": "norm", "enum": ["group", "layer"], "default": "group"}
    assert net["use"]["anyOf"][0]["enum"] == ["net", "other", "judge", "teacher"]
    assert made["terms"]["additionalProperties"]["properties"]["view"]["description"].endswith(
        "(a view of the recipe)"
    )


@pytest.mark.parametrize("source", SHIPPED, ids=label)
def test_shipped_recipes_and_their_lock_files_fit(source: Path) -> None:
    """Recipes as they are shipped, resolved with every default, and frozen."""
    catalogue, made = installed()
    recipe = load_recipe(source, (), catalogue)
    texts = [source.read_text(encoding="utf-8"), recipe.dumps(), lock_text(recipe, source.parent)]
    for draft in DRAFTS:
        for text in texts:
            draft(made).validate(tomllib.loads(text))


def paths_in(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """The place of everything below a value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in entries:
        yield (*at, key)
        if isinstance(inner, dict | list):
            yield from paths_in(inner, (*at, key))


def at(value: Any, path: Path_) -> Any:
    """What is at a place."""
    for part in path:
        value = value[part]
    return value


def mutations(tables: dict[str, Any]) -> Iterator[Edit]:
    """Every single edit: a wrong value in each place, one key less, one key more."""
    for path in list(paths_in(tables)):
        if path[0] in ("lock", "hooks", "extends"):
            continue
        for wrong in (True, -1.5, 10**12, "no such thing", [], {}, ["a"], [1.5]):
            made = copy.deepcopy(tables)
            at(made, path[:-1])[path[-1]] = wrong
            yield f"{path} = {wrong!r}", made
        made = copy.deepcopy(tables)
        del at(made, path[:-1])[path[-1]]
        yield f"del {path}", made
        if isinstance(at(tables, path), dict):
            made = copy.deepcopy(tables)
            at(made, path)["unheard-of"] = 1
            yield f"{path}.unheard-of", made


def inexpressible(error: RecipeError) -> bool:
    """Refused for what a schema cannot say: rules over several tables, a class's own validators."""
    words = ("do not go together", "no terms", "trains no model", "no player", "names no", "is no ")
    return any(
        fault.code not in EXPRESSIBLE or any(word in fault.message for word in words)
        for fault in error.faults
    )


def verdicts(catalogue: Catalogue, schema: Any, edits: list[Edit]) -> tuple[int, int]:
    """Number of edited recipes that both accept, and that both refuse; fails where they differ."""
    validator = jsonschema.Draft7Validator(schema)
    accepted = refused = 0
    for edit, made in edits:
        fits = validator.is_valid(made)
        error = refusal(catalogue, made)
        if error is None:
            assert fits, (edit, next(validator.iter_errors(made)).message)
        else:
            assert not fits or inexpressible(error), (edit, error.lines())
        accepted += error is None
        refused += error is not None and not fits
    return accepted, refused


def refusal(catalogue: Catalogue, tables: dict[str, Any]) -> RecipeError | None:
    """What the loader says of a recipe; None if it takes it."""
    try:
        recipe_from_dict(tables, (), catalogue)
    except RecipeError as error:
        return error
    return None


def test_schema_and_loader_agree_on_edits_of_a_recipe(toys: Catalogue) -> None:
    """What check accepts fits; what check refuses by one key alone does not fit."""
    schema = recipe_schema(toys)
    edits = random.Random(0).sample(list(mutations(tomllib.loads(FULL))), 150)
    accepted, refused = verdicts(toys, schema, edits)
    assert accepted >= 10
    assert refused >= 75
    assert verdicts(toys, schema, list(mutations(tomllib.loads(LEAST))))[1] >= 30


@pytest.mark.parametrize("source", WHOLE, ids=label)
def test_schema_and_loader_agree_on_edits_of_a_shipped_recipe(source: Path) -> None:
    """The same over what is installed, for some of the edits."""
    edits = list(mutations(tomllib.loads(source.read_text(encoding="utf-8"))))
    chosen = random.Random(source.stem).sample(edits, 30)
    assert verdicts(*installed(), chosen)[1] >= 15


VALUES = st.one_of(
    st.sampled_from([
        "net", "other", "judge", "teacher", "digits", "denoise", "fool", "torch:AdamW", "torch:no",
        "torch", "adamw", "push", "steps", "auto", "linf", "l2", "log-normal", "uniform", "cosine",
        "student", "critic", "clean", "adv", "none", "eps", "backbone", "discriminator", "1/2",
        " 8 / 255 ", "1/0", "-1/3", "advdiff-core:net", "Advdiff_Core:net", "ADVDIFF.CORE:adamw",
        "advdiff-core:torch:Lion", "", "a b", "x" * 65,
    ]),
    st.booleans(), st.integers(-2, 3), st.sampled_from([2**31, 2**53 + 1, 2**63]),
    st.floats(-2, 2), st.lists(st.integers(-1, 10), max_size=3), st.just({}),
    st.sampled_from([{"use": "adamw"}, {"power": 0.1}, {"law": "cosine"}, {"use": "gaussian"}]),
)  # fmt: skip
KEYS = st.sampled_from([
    "use", "kind", "law", "mean", "std", "final", "reference", "width", "channels", "frozen",
    "role", "view", "weight", "density", "perturb", "attack", "steps", "ema", "lr", "density",
    "student", "parametrization", "optimizer", "num_steps", "offset", "from", "other", "domain",
])  # fmt: skip


def fresh(value: Any) -> Any:
    """A copy: a later edit must not reach what a strategy will draw again."""
    return copy.deepcopy(value)


@st.composite
def edited(draw: st.DrawFn) -> dict[str, Any]:
    """A recipe with a few edits anywhere: values replaced, copied from elsewhere, taken out."""
    tables = tomllib.loads(draw(st.sampled_from([FULL, LEAST])))
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(list(paths_in(tables))))
        parent, kind = at(tables, path[:-1]), draw(st.integers(0, 3))
        if kind == 0:
            del parent[path[-1]]
        elif kind == 1:
            parent[path[-1]] = fresh(draw(VALUES))
        elif kind == 2:
            source = draw(st.sampled_from(list(paths_in(tables))))
            parent[path[-1]] = fresh(at(tables, source))
        elif isinstance(at(tables, path), dict):
            at(tables, path)[draw(KEYS)] = fresh(draw(VALUES))
        if not tables:
            break
    return tables


@given(edited())
def test_whatever_the_loader_accepts_fits(
    toys: Catalogue, toy_schema: jsonschema.Draft7Validator, tables: dict[str, Any]
) -> None:
    """Recipes after arbitrary edits: those that load, load with a schema that agrees."""
    try:
        recipe = recipe_from_dict(tables, (), toys)
    except RecipeError:
        return
    toy_schema.validate(tables)
    toy_schema.validate(tomllib.loads(recipe.dumps()))


@given(st.data())
def test_whatever_extends_a_sound_recipe_fits(
    toys: Catalogue, toy_schema: jsonschema.Draft7Validator, tmp_path_factory, data: st.DataObject
) -> None:
    """A recipe with a base need not say what that says, not even which component it is about."""
    folder = tmp_path_factory.getbasetemp()
    (folder / "base.toml").write_text(FULL)
    top: dict[str, Any] = tomllib.loads(FULL)
    for _ in range(data.draw(st.integers(0, 12))):
        path = data.draw(st.sampled_from(list(paths_in(top))))
        if any(isinstance(part, int) for part in path):
            continue
        del at(top, path[:-1])[path[-1]]
        if not top:
            break
    top["extends"] = "base.toml"
    (folder / "top.toml").write_text(tomli_w.dumps(top))
    assert load_recipe(folder / "top.toml", (), toys)
    toy_schema.validate(top)


def test_needs_hold_only_where_nothing_is_extended(
    toys: Catalogue, toy_schema: jsonschema.Draft7Validator
) -> None:
    """`use` and required keys may come from the base; wrong values may not."""
    part = {"models": {"student": {"channels": 8}}, "terms": {"denoise": {"weight": 0.5}}}
    assert not toy_schema.is_valid(part)
    assert toy_schema.is_valid({**part, "extends": "base.toml"})
    wrong = {"extends": "base.toml", "models": {"student": {"channels": "8"}}}
    assert not toy_schema.is_valid(wrong)
    required = {"data": {"use": "digits"}, "models": {"student": {"use": "other"}}}
    assert not toy_schema.is_valid(required)
    assert toy_schema.is_valid({**required, "extends": "base.toml"})


def test_a_name_that_two_distributions_offer_fits_with_its_owner_alone(
    toy_site: Site, toys: Catalogue
) -> None:
    """As for the loader: the bare name is refused, `dist:name` is taken in any spelling."""
    rivals = [
        attrs.evolve(toys.find("attack", "steps"), name="rival", distribution=owner)
        for owner in ("advdiff-one", "advdiff-two")
    ]
    catalogue = Catalogue(entries=(*toys.entries, *rivals))
    validator = jsonschema.Draft7Validator(recipe_schema(catalogue))
    recipe = tomllib.loads(LEAST)
    fits = {
        use: validator.is_valid({
            **recipe, "views": {"adv": {"perturb": {"use": "push", "attack": {"use": use}}}}
        })
        for use in ("rival", "advdiff-one:rival", "Advdiff_Two:rival", "steps", "advdiff-one:steps")
    }  # fmt: skip
    assert fits == {
        "rival": False, "advdiff-one:rival": True, "Advdiff_Two:rival": True, "steps": True,
        "advdiff-one:steps": False,
    }  # fmt: skip


def test_a_component_that_cannot_be_imported_is_left_out_and_named(
    site: Site, toys: Catalogue
) -> None:
    """The schema is made of the others."""
    groups = {"advdiff.v1.attack": {"odd": "odd_schema:Odd"}}
    site.dist("advdiff-odd", groups, modules={"odd_schema": "1 / 0"})
    odd = scan([site.folder], environ={}).entries
    warnings: list[str] = []
    made = recipe_schema(Catalogue(entries=(*toys.entries, *odd)), warnings.append)
    assert "'odd'" not in str(made)
    assert len(warnings) == 1
    assert "attack 'odd' of advdiff-odd 1.0 fails to import: ZeroDivisionError" in warnings[0]


def player(optimizer: dict[str, Any], **data: Any) -> dict[str, Any]:
    """A recipe with this optimizer."""
    base = {"data": {"use": "digits"}, "models": {"student": {"use": "net"}}, **data}
    return {**base, "players": {"student": {"optimizer": optimizer}}}


def test_members_of_a_family_have_their_own_keys() -> None:
    """A family that lists its members is one component for each; others are no names."""
    validator = jsonschema.Draft7Validator(installed()[1])
    core = {"data": {"use": "two-moons"}, "models": {"student": {"use": "mlp"}}}
    optimizers: list[tuple[dict[str, Any], bool]] = [
        ({"use": "torch:RMSprop", "momentum": 0.9}, True),
        ({"use": "advdiff-core:torch:RMSprop", "momentum": 0.9}, True),
        ({"use": "torch:NAdam", "momentum": 0.9}, False),
        ({"use": "torch:LBFGS"}, False),
        ({"use": "torch"}, False),
        ({"lr": 1e-3}, True),
        ({"momentum": 0.9}, False),
    ]
    for optimizer, fits in optimizers:
        assert validator.is_valid(player(optimizer, **core)) is fits, optimizer


FAMILY = """
from advdiff_core import Optimizer, setting, settings
class Family(Optimizer):
    "Optimizers of another library."
    variants = "any name"
    make = None
    @classmethod
    def settings_type(cls, variant):
        if variant is None:
            raise ValueError("which?")
        return cls.Settings
class Alike(Family):
    "Optimizers that take the same keys."
    @settings
    class Settings:
        lr: float = setting(0.1, help="rate", gt=0.0)
"""


def test_a_family_that_does_not_list_its_members_takes_any_name_and_key(
    site: Site, toys: Catalogue
) -> None:
    """What follows the colon is the loader's to judge, and so are keys beside it."""
    groups = {"advdiff.v1.optimizer": {"odd": "odd_family:Family", "alike": "odd_family:Alike"}}
    site.dist("advdiff-odd", groups, modules={"odd_family": FAMILY})
    odd = scan([site.folder], environ={}).entries
    made = recipe_schema(Catalogue(entries=(*toys.entries, *odd)))
    validator = jsonschema.Draft7Validator(made)
    assert validator.is_valid(player({"use": "odd:Any.Thing+1", "beta": 3}))
    assert validator.is_valid(player({"use": "advdiff-odd:odd:x"}))
    assert validator.is_valid(player({"use": "odd:owner/name"}))
    assert not validator.is_valid(player({"use": "odd"}))
    assert not validator.is_valid(player({"use": "odd:a b"}))
    assert not validator.is_valid(player({"use": "adamw", "beta": 3}))
    # One that has a class Settings of its own has just these keys.
    assert validator.is_valid(player({"use": "alike:Any", "lr": 0.2}))
    assert not validator.is_valid(player({"use": "alike:Any", "lr": -0.2}))
    assert not validator.is_valid(player({"use": "alike:Any", "beta": 3}))


def test_loader_refuses_an_array_in_place_of_a_table(toys: Catalogue) -> None:
    """An empty one too, which might pass for a table without keys."""
    with pytest.raises(RecipeError, match=r"run: found \[\] \(array\), wanted a table"):
        load(toys, f"run = []\n{LEAST}")


def test_comment_that_names_the_schema_is_ignored(toys: Catalogue) -> None:
    """`#:schema` in the first line changes nothing."""
    assert load(toys, f"#:schema ./.advdiff/recipe.schema.json\n{LEAST}") == load(toys, LEAST)
