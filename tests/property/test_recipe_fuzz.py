"""R04: whatever happens to a recipe's bytes, it is refused in words or loads to an equal recipe."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import tomli_w
from helpers_recipes import FULL, LEAST, load
from hypothesis import given, settings
from hypothesis import strategies as st

from advdiff_core.discovery import Catalogue, scan
from advdiff_core.errors import RecipeError
from advdiff_core.recipe import Recipe, load_recipe, recipe_from_dict

MUTATIONS = 2_000
SNIPPETS = b"\" ' [ ] { } = . , # nan 1e999 \\ - 0x use true \x00 \xff \x1b ''' [[".split(b" ")
SNIPPETS += [b"\n", b'"""', b"extends", b"-1"]


def survives(path: Path, catalogue: Catalogue) -> Recipe | None:
    """Load a file; anything but a recipe or a plain error fails the test."""
    try:
        recipe = load_recipe(path, catalogue=catalogue)
    except RecipeError as error:
        assert_words(error)
        return None
    assert load(catalogue, recipe.dumps()) == recipe
    return recipe


def assert_words(error: RecipeError) -> None:
    """There is at least one fault, and every line can be printed."""
    assert error.faults
    assert all(line.isprintable() for line in error.lines())


def mutated(rng: random.Random, raw: bytes) -> bytes:
    """One to three edits: flip a bit, delete, double, insert, swap lines, cut."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(raw) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(raw):
            raw = raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :]
        elif kind == 1:
            raw = raw[:at] + raw[at + rng.randint(1, 20) :]
        elif kind == 2:
            raw = raw[:at] + raw[at : at + 10] + raw[at:]
        elif kind == 3:
            raw = raw[:at] + rng.choice(SNIPPETS) + raw[at:]
        elif kind == 4:
            lines = raw.split(b"\n")
            one, two = rng.randrange(len(lines)), rng.randrange(len(lines))
            lines[one], lines[two] = lines[two], lines[one]
            raw = b"\n".join(lines)
        else:
            raw = raw[:at] if rng.random() < 0.2 else raw
    return raw


def test_mutated_recipes_are_refused_or_load_to_an_equal_one(toys: Catalogue, tmp_path: Path):
    """R04: 2,000 mutations of a whole recipe; no exception but the loader's own."""
    rng = random.Random(4)
    path = tmp_path / "r.toml"
    sources = [FULL.encode(), LEAST.encode()]
    loaded = 0
    for number in range(MUTATIONS):
        path.write_bytes(mutated(rng, sources[number % 4 == 3]))
        loaded += survives(path, toys) is not None
    assert 20 < loaded < MUTATIONS // 2


def test_every_prefix_is_refused_or_loads_to_an_equal_one(toys: Catalogue, tmp_path: Path):
    """R04: a recipe cut at any line, and the least one at any byte."""
    path = tmp_path / "r.toml"
    lines = FULL.encode().splitlines(keepends=True)
    for end in range(len(lines)):
        path.write_bytes(b"".join(lines[:end]))
        survives(path, toys)
    for end in range(len(LEAST) + 1):
        path.write_bytes(LEAST.encode()[:end])
        survives(path, toys)


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(toys: Catalogue, tmp_path_factory, raw: bytes):
    """R04: noise is no recipe."""
    path = tmp_path_factory.getbasetemp() / "noise.toml"
    path.write_bytes(raw)
    assert survives(path, toys) is None


TEXT = st.text(max_size=8)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXT
    | st.dates()
    | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["use", "terms", "models", "ema", "optimizer", "perturb", "from", "kind", "law", "density",
     "corrupt", "metrics", "role", "frozen", "lr_schedule", "domain", "name", "student", "off"]
)  # fmt: skip
TABLES = st.sampled_from(
    ["run", "data", "schedule", "models", "views", "terms", "players", "sample", "validate",
     "evaluate", "hooks", "lock", "advdiff", "extends", "other"]
)  # fmt: skip


@settings(max_examples=300)
@given(
    st.dictionaries(TABLES, VALUES | st.dictionaries(KEYS | TEXT, VALUES), max_size=4),
    st.booleans(),
)
def test_any_dict_is_refused_or_accepted_in_words(toys: Catalogue, tables, whole: bool):
    """R03: any plain values in any table of a recipe, alone or over a sound recipe."""
    base = {"data": {"use": "digits"}, "models": {"student": {"use": "net"}}} if whole else {}
    try:
        recipe = recipe_from_dict({**base, **tables}, catalogue=toys)
    except RecipeError as error:
        assert_words(error)
        return
    assert load(toys, recipe.dumps()) == recipe


@settings(max_examples=300)
@given(st.lists(st.text(alphabet="runseedbatch.=[]{}\"'3,# \\\n", max_size=30), max_size=3))
def test_any_override_is_refused_or_accepted_in_words(toys: Catalogue, arguments: list[str]):
    """R16: whatever stands after `-s`."""
    try:
        load(toys, LEAST, arguments)
    except RecipeError as error:
        assert_words(error)


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
FIELDS = {
    ("run", "seed"): st.integers(0, 2**63 - 1),
    ("run", "images"): st.integers(1, 2**53),
    ("run", "micro_batch"): st.just("auto") | st.integers(1, 128),
    ("terms", "denoise", "weight"): FLOATS,
    ("models", "student", "channels"): st.integers(1, 4096),
    ("models", "student", "dropout"): st.floats(0.0, 1.0, exclude_max=True),
    ("models", "student", "mults"): st.lists(st.integers(1, 2**62), max_size=4),
    ("models", "student", "gains"): st.dictionaries(
        st.text(st.characters(exclude_categories=["C", "Z"]), max_size=5), FLOATS, max_size=3
    ),
    ("models", "student", "label"): st.text(
        st.characters(exclude_categories=["C", "Z"]) | st.sampled_from(" \n\t\\\"'#"), max_size=12
    ),
    ("players", "student", "ema"): st.lists(st.floats(0.0, 1.0, exclude_max=True), max_size=3),
}


@given(st.fixed_dictionaries({}, optional=FIELDS))
def test_loading_a_dumped_recipe_is_the_identity(toys: Catalogue, chosen):
    """Whatever values the keys have, the canonical text gives an equal recipe and hash."""
    tables = {
        "data": {"use": "digits"},
        "models": {"student": {"use": "net"}},
        "terms": {"denoise": {"use": "denoise"}},
        "players": {"student": {}},
    }
    for (table, *above, key), value in chosen.items():
        node = tables.setdefault(table, {})
        for part in above:
            node = node.setdefault(part, {})
        node[key] = value
    recipe = load(toys, tomli_w.dumps(tables))
    again = load(toys, recipe.dumps())
    assert again == recipe
    assert again.recipe_hash == recipe.recipe_hash
    assert again.dumps() == recipe.dumps()


@pytest.mark.parametrize("text", [FULL, LEAST], ids=["full", "least"])
def test_the_canonical_text_is_a_fixed_point(toys: Catalogue, text: str):
    """Dumping what was loaded from a dump changes no byte."""
    once = load(toys, text).dumps()
    assert load(toys, once).dumps() == once


ROOT = Path(__file__).parents[2]
SHIPPED = sorted([*ROOT.glob("examples/*.toml"), *ROOT.glob("plugins/*/recipes/*.toml")])


@pytest.mark.parametrize("source", SHIPPED, ids=lambda path: path.stem)
def test_mutated_shipped_recipes_are_refused_or_load_to_an_equal_one(source: Path, tmp_path: Path):
    """R04: the recipes users start from, with the components that are really installed."""
    catalogue = scan()
    rng = random.Random(source.stem)
    path = tmp_path / "r.toml"
    for _ in range(100):
        path.write_bytes(mutated(rng, source.read_bytes()))
        survives(path, catalogue)
