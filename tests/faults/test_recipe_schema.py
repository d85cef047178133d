"""R06, R07, R08, R11: keys of the schema misspelt, of a wrong type, out of range, left out."""

from __future__ import annotations

import copy
import datetime
import math
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import attrs
import pytest
import tomli_w
from helpers_recipes import faults_of

from advdiff_core.discovery import Catalogue
from advdiff_core.discovery.contract import field_types
from advdiff_core.errors import Fault
from advdiff_core.recipe import loads_recipe, schema
from advdiff_core.recipe.fields import keys_of
from advdiff_core.settings import Spec

#: A recipe in which every table is there once.
BASE: dict[str, Any] = {
    "run": {},
    "data": {"use": "digits", "corrupt": [{"use": "gaussian"}], "augment": [{"use": "flip"}]},
    "schedule": {"use": "vp-linear", "density": {"law": "log-normal"}},
    "models": {"student": {"use": "net", "block": {}}},
    "views": {"adv": {"perturb": {"use": "push", "attack": {"use": "steps"}}}},
    "terms": {"denoise": {"use": "denoise"}},
    "players": {
        "student": {
            "optimizer": {"use": "adamw"},
            "ema": [{"rate": 0.9}],
            "lr_schedule": {"law": "cosine"},
        }
    },
    "sample": {"use": "ddim"},
    "evaluate": {"metrics": [{"use": "distance"}]},
}

#: Where tables of the core's classes and of components are in it.
CORE = {
    ("run",): schema.Run,
    ("data",): schema.Data,
    ("schedule",): schema.Schedule,
    ("schedule", "density"): schema.Density,
    ("models", "student"): schema.Model,
    ("views", "adv"): schema.View,
    ("terms", "denoise"): schema.Term,
    ("players", "student"): schema.Player,
    ("players", "student", "ema", 0): schema.Ema,
    ("players", "student", "lr_schedule"): schema.LrSchedule,
    ("sample",): schema.Sample,
    ("evaluate",): schema.Evaluate,
}
PARTS = {
    ("data",): ("dataset", "digits"),
    ("data", "corrupt", 0): ("corruption", "gaussian"),
    ("data", "augment", 0): ("augmentation", "flip"),
    ("schedule",): ("noise_schedule", "vp-linear"),
    ("models", "student"): ("backbone", "net"),
    ("views", "adv", "perturb"): ("perturbation", "push"),
    ("views", "adv", "perturb", "attack"): ("attack", "steps"),
    ("terms", "denoise"): ("loss_term", "denoise"),
    ("players", "student", "optimizer"): ("optimizer", "adamw"),
    ("sample",): ("sampler", "ddim"),
    ("evaluate", "metrics", 0): ("metric", "distance"),
}


class Case(NamedTuple):
    """A key of the schema.

    Attributes:
        table: Place of its table in BASE.
        key: The key.
        hint: Its type.
        field: The attrs field.
    """

    table: tuple[str | int, ...]
    key: str
    hint: Any
    field: Any

    @property
    def dotted(self) -> str:
        """The key as faults name it."""
        return ".".join(map(str, (*self.table, self.key)))


def cases(toys: Catalogue) -> Iterator[Case]:
    """Every key of the core and of the toy components in BASE."""
    for table, cls in CORE.items():
        yield from _cases(table, cls, None)
    for table, (kind, name) in PARTS.items():
        component = toys.load(toys.find(kind, name))
        yield from _cases(table, component.Settings, component)
    net = toys.load(toys.find("backbone", "net"))
    yield from _cases(("models", "student", "block"), net.Block, net)


def _cases(table: tuple[str | int, ...], cls: type, owner: type | None) -> Iterator[Case]:
    hints = field_types(cls, owner)
    for key, one in keys_of(cls).items():
        yield Case(table, key, hints[one.name], one)


def with_values(changes: list[tuple[Case, str, Any]]) -> str:
    """BASE as text with a value set for each case, under the name given for its key."""
    tables = copy.deepcopy(BASE)
    for case, key, value in changes:
        node: Any = tables
        for part in case.table:
            node = node[part]
        if key != case.key:
            node.pop(case.key, None)
        node[key] = value
        if case.table[-2:] == ("ema", 0) and case.key != "rate":
            node.pop("rate", None)
    return tomli_w.dumps(tables)


def in_one_go(found: list[Case]) -> Iterator[list[Case]]:
    """Groups of cases that can stand in one text: those with tables inside stand alone."""
    inner = {
        case.dotted
        for case in found
        for other in found
        if case.dotted == ".".join(map(str, other.table[: case.dotted.count(".") + 1]))
    }
    alone = [case for case in found if case.dotted in inner or case.table[-2:] == ("ema", 0)]
    yield [case for case in found if case not in alone]
    yield from ([case] for case in alone)


#: Values of every TOML type; those a key takes are left out for it.
WRONG: list[Any] = [
    True,
    3,
    1.9,
    "12",
    "false",
    "1e-3",
    "no such choice",
    [],
    [1],
    ["x"],
    {},
    {"x": 1},
    datetime.date(2020, 1, 2),
    datetime.time(7, 32),
]


def takes(hint: Any, value: Any) -> bool:
    """True if a value of this TOML type may stand where `hint` is wanted; ranges do not count."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(takes(part, value) for part in parts if part is not type(None))
    if origin is Literal:
        return any(type(part) is type(value) and part == value for part in parts)
    if origin is tuple:
        entries = (
            (parts[0],) * len(value) if parts[-1] is ... and isinstance(value, list) else parts
        )
        return (
            isinstance(value, list)
            and len(entries) == len(value)
            and all(takes(part, entry) for part, entry in zip(entries, value, strict=True))
        )
    if origin is dict:
        return isinstance(value, dict) and all(takes(parts[1], entry) for entry in value.values())
    if hint is schema.Ema:
        return type(value) in (int, float)
    if attrs.has(hint) and hint is not Spec:
        return value == {}
    wanted = {bool: (bool,), int: (int,), float: (int, float), str: (str,), Path: (str,), Spec: ()}
    return type(value) in wanted[hint]


def test_the_base_recipe_is_sound(toys: Catalogue):
    """What the other tests break works to begin with, and holds every core key's table."""
    loads_recipe(tomli_w.dumps(BASE), catalogue=toys)
    assert len(list(cases(toys))) > 80


def test_every_key_refuses_every_wrong_type(toys: Catalogue):
    """R07: each key x each value of another type is refused at its own line, all in one go."""
    tried = 0
    for group in in_one_go(list(cases(toys))):
        for value in WRONG:
            changes = [(case, case.key, value) for case in group if not takes(case.hint, value)]
            # A table without a name is an optimizer with every default.
            changes = [one for one in changes if (one[0].key, value) != ("optimizer", {})]
            if changes:
                text = with_values(changes)
                found = faults_of(toys, text)
                for case, _, _ in changes:
                    assert_refused(case, value, found, text)
                tried += len(changes)
    assert tried >= 900


def assert_refused(case: Case, value: Any, found: list[Fault], text: str) -> None:
    """There is a fault of the right code at the key's own line."""
    (fault, *_) = [fault for fault in found if fault.key.startswith(case.dotted)] or [None]
    assert fault is not None, (case.dotted, value)
    # A value may be no choice (R08); a table may lack or misname keys (R11, R06).
    other = type(value) is dict or "Literal" in str(case.hint) or type(value) is str
    assert fault.code == "R07" or other, (case.dotted, value, fault)
    line = text.split("\n")[fault.line - 1]
    inside = fault.key.removeprefix(case.dotted).strip(".")
    assert re.search(rf"\b{case.key}\b", line) or inside, (case.dotted, value, line)


def test_a_wrong_type_is_named_with_the_wanted_one(toys: Catalogue):
    """R07: what was found, its type, what is wanted and how to write it are in one line."""
    expected = {
        ("run", "seed", '"12"'): "found '12' (string), wanted an integer - write 12 without quotes",
        ("run", "seed", "1.0"): "found 1.0 (number), wanted an integer - write 1",
        ("run", "seed", "true"): "found true (boolean), wanted an integer - write a whole number",
        ("run", "deterministic", '"True"'): "wanted true or false - write true without quotes",
        ("run", "deterministic", "1"): "found 1 (integer), wanted true or false",
        ("run", "name", "3"): "found 3 (integer), wanted a string - write \"3\"",
        ("run", "micro_batch", "2.5"): "wanted an integer or one of \"auto\"",
        ("run", "precision", '"fp23"'): '"bf16" - did you mean "fp32"?',
        ("data", "domain", "3"): "found 3 (integer), wanted an array - write an array",
        ("data", "domain", "[1, 2, 3]"): "found an array of 3 entries, wanted one of 2",
        ("models.student", "dropout", '"0.5"'): "(advdiff-core) - write 0.5 without quotes",
        ("models.student", "block", "3"): "found 3 (integer), wanted a table",
        ("players.student", "optimizer", '"adamw"'): 'wanted a table - write { use = "adamw" }',
        ("views.adv.perturb.attack", "levels", "true"): "found true (boolean), wanted one of 1, 2",
        ("data", "path", "2020-01-02"): "found 2020-01-02 (date or time), wanted a string",
    }  # fmt: skip
    for (table, key, value), words in expected.items():
        fault = faults_of(toys, tomli_w.dumps(BASE), [f"{table}.{key}={value}"])[0]
        assert words in fault.as_line(), fault.as_line()


def misspelt(key: str) -> set[str]:
    """The key with one letter deleted, doubled, or swapped with its neighbour."""
    deleted = {key[:i] + key[i + 1 :] for i in range(len(key))}
    doubled = {key[:i] + key[i] + key[i:] for i in range(len(key))}
    swapped = {key[:i] + key[i + 1] + key[i] + key[i + 2 :] for i in range(len(key) - 1)}
    return {word for word in deleted | doubled | swapped if word and word != key}


def test_every_misspelt_key_is_caught_and_nearly_all_are_understood(toys: Catalogue):
    """R06: each one-letter slip in each key is refused at its line; 95 % get the right key."""
    found = list(cases(toys))
    siblings: dict[tuple[str | int, ...], set[str]] = {}
    for case in found:
        siblings.setdefault(case.table, {"use"}).add(case.key)
    slips = {case: sorted(misspelt(case.key) - siblings[case.table]) for case in found}
    tried = right = 0
    for group in in_one_go(found):
        for number in range(max(len(slips[case]) for case in group)):
            changes = [(c, slips[c][number], 1) for c in group if number < len(slips[c])]
            text = with_values(changes)
            answers = {fault.key: fault for fault in faults_of(toys, text)}
            for case, word, _ in changes:
                fault = answers[".".join(map(str, (*case.table, word)))]
                assert fault.code == "R06"
                assert word in text.split("\n")[fault.line - 1]
                tried += 1
                right += fault.fix == f"did you mean {case.key!r}?"
    assert tried > 1000
    assert right / tried >= 0.95, (right, tried)


@pytest.mark.parametrize(
    "table", ["run", "data", "schedule", "models", "terms", "players", "views"]
)
def test_misspelt_tables_are_caught(toys: Catalogue, table: str):
    """R06: one-letter slips in the names of tables get the right table."""
    for word in misspelt(table):
        text = tomli_w.dumps({**BASE, word: {}})
        fault = next(f for f in faults_of(toys, text) if f.code == "R06")
        assert (fault.key, fault.fix) == (word, f"did you mean {table!r}?")


def test_a_misspelt_use_is_understood(toys: Catalogue):
    """R06: `usee = "net"` is one fault, not a missing component too."""
    for word in misspelt("use"):
        text = f'[data]\nuse = "digits"\n[models.student]\n{word} = "net"\n'
        (fault,) = faults_of(toys, text)
        assert (fault.code, fault.line, fault.fix) == ("R06", 4, "did you mean 'use'?")


def test_a_key_of_another_table_is_sent_there(toys: Catalogue):
    """R06: `batch` under [data] is told that it belongs to [run]."""
    (fault,) = faults_of(toys, tomli_w.dumps(BASE), ["data.batch=3"])
    assert fault.fix == "it belongs to [run]"
    (fault,) = faults_of(toys, tomli_w.dumps(BASE), ["run.lr_schedule=3"])
    assert fault.fix == "it belongs to [players.<name>]"


def outside(case: Case) -> Iterator[Any]:
    """Numbers beyond each declared bound, and those no key takes."""
    bounds = case.field.metadata.get("bounds") or {}
    wants_float = "float" in str(case.hint)
    step = 1e-9 if wants_float else 1
    for rule, limit in bounds.items():
        beyond = {"gt": limit, "ge": limit - step, "lt": limit, "le": limit + step}[rule]
        far = limit + 1e6 if rule in ("lt", "le") else limit - 1e6
        yield from (value if wants_float else int(value) for value in (beyond, far))
    if wants_float:
        yield from (math.nan, math.inf, -math.inf, 10**400)
    elif "int" in str(case.hint):
        yield from (2**63, -(2**63) - 1, 10**100)


def numeric(hint: Any) -> bool:
    """True for a number, or an array of them."""
    return hint in (int, float) or any(numeric(part) for part in get_args(hint))


def test_every_bound_is_held(toys: Catalogue):
    """R08: beyond each bound, and for nan, inf and 2^63, the key is refused at its line."""
    found = [c for c in cases(toys) if numeric(c.hint) and get_origin(c.hint) is not dict]
    beyond = {case: list(outside(case)) for case in found}
    tried = 0
    for group in in_one_go(found):
        for number in range(max(len(beyond[case]) for case in group)):
            changes = [
                (case, case.key, in_array(case.hint, beyond[case][number]))
                for case in group
                if number < len(beyond[case])
            ]
            answers = faults_of(toys, with_values(changes))
            for case, _, value in changes:
                codes = [fault.code for fault in answers if fault.key.startswith(case.dotted)]
                # What applies to one law only is out of place here too (R10).
                assert "R08" in codes, (case.dotted, value, answers)
            tried += len(changes)
    assert tried > 200


def in_array(hint: Any, value: Any) -> Any:
    """The value as the type wants it: in an array of the right length where it wants one."""
    if get_origin(hint) is not tuple and tuple not in map(get_origin, get_args(hint)):
        return value
    return [value] * (2 if "float, float" in str(hint) else 1)


def test_a_number_that_overflows_is_refused(toys: Catalogue):
    """R08: 1e400 is read as infinity by the parser and refused here."""
    (fault,) = faults_of(toys, tomli_w.dumps(BASE), ["terms.denoise.weight=1e400"])
    assert "found inf (number), wanted a finite number" in fault.message


@pytest.mark.parametrize("value", [2, 8, 16, 255, 4.5])
def test_a_radius_above_one_gets_the_hint_of_255(toys: Catalogue, value: float):
    """R08: 8 where 8/255 is meant is told how to write it."""
    override = f"views.adv.perturb.radius={value}"
    (fault,) = faults_of(toys, tomli_w.dumps(BASE), [override])
    assert fault.code == "R08"
    assert fault.fix == f'for {value:g}/255 write "{value:g}/255"'
    assert fault.plugin == "advdiff-core"


def test_a_number_above_another_bound_gets_no_hint_of_255(toys: Catalogue):
    """R08: 12 where 10 is the most has nothing to do with 8-bit levels."""
    override = "views.adv.perturb.attack.bound=12"
    (fault,) = faults_of(toys, tomli_w.dumps(BASE), [override])
    assert (fault.message, fault.fix) == ("12.0 must be at most 10.0", "bound of the logits")


@pytest.mark.parametrize("text", ["8/0", "1/3/5", "/255", "8/", "a/b", "8 / -255", "0x8/255"])
def test_what_is_no_fraction_is_refused(toys: Catalogue, text: str):
    """R08: only a number over a positive number is a fraction."""
    override = f'views.adv.perturb.radius="{text}"'
    (fault,) = faults_of(toys, tomli_w.dumps(BASE), [override])
    assert fault.code in ("R07", "R08")


@pytest.mark.parametrize(
    ("text", "value"), [("8/255", 8 / 255), (" 1.5 / 2 ", 0.75), ("+0/1", 0.0)]
)
def test_fractions_are_numbers(toys: Catalogue, text: str, value: float):
    """A fraction such as 8/255 is accepted wherever a number is."""
    recipe = loads_recipe(
        tomli_w.dumps(BASE), overrides=[f'views.adv.perturb.radius="{text}"'], catalogue=toys
    )
    assert recipe.views["adv"].perturb.settings.radius == value


def missing(toys: Catalogue, text: str) -> Fault:
    """The one fault of a text that leaves something out."""
    (fault,) = faults_of(toys, text)
    assert fault.code == "R11"
    return fault


def test_what_is_required_is_named_when_it_is_missing(toys: Catalogue):
    """R11: tables, components and required settings that are left out, each with its place."""
    assert missing(toys, '[data]\nuse = "digits"\n').key == "models"
    assert missing(toys, '[models.student]\nuse = "net"\n').key == "data"
    fault = missing(toys, '[data]\nuse = "digits"\n[models.student]\n')
    assert (fault.key, fault.line) == ("models.student.use", 3)
    assert "a backbone: net, other" in fault.fix
    fault = missing(toys, '[data]\nuse = "digits"\n[models.student]\nuse = "other"\n')
    assert (fault.key, fault.line, fault.plugin) == ("models.student.width", 3, "advdiff-core")
    assert fault.fix == "write width = ..., width, required"
    least = '[data]\nuse = "digits"\n[models.student]\nuse = "net"\n'
    assert missing(toys, least + "[views.adv]\n").key == "views.adv.perturb"


def test_a_misspelt_required_key_is_one_fault(toys: Catalogue):
    """R06, R11: the key that is missing and the one that is unknown are the same."""
    text = '[data]\nuse = "digits"\n[models.student]\nuse = "other"\nwidht = 3\n'
    (fault,) = faults_of(toys, text)
    assert (fault.code, fault.line, fault.fix) == ("R06", 5, "did you mean 'width'?")


def test_a_component_that_is_not_installed_is_named_with_near_ones(toys: Catalogue):
    """R11: a name nobody offers is refused at its line, with a near name or what to install."""
    least = '[data]\nuse = "digits"\n[models.student]\nuse = "{}"\n'
    fault = missing(toys, least.format("nett"))
    assert (fault.key, fault.line, fault.fix) == ("models.student.use", 4, "did you mean 'net'?")
    fault = missing(toys, least.format("swin-transformer"))
    assert fault.fix == "install the distribution that offers it; installed: net, other"
    fault = missing(toys, least.format("advdiff-swin:swin"))
    install = (
        "'advdiff-swin' is no installed distribution: pip install advdiff-swin, if you trust it"
    )
    assert fault.fix == install
    fault = missing(toys, least.format("advdiff-cora:net"))
    assert fault.fix.endswith("if you trust it; did you mean 'advdiff-core:net'?")
    fault = missing(toys, least.format("net:large"))
    assert "has no variants" in fault.message


def test_a_family_names_its_variants(toys: Catalogue):
    """R11: an unknown variant, or none, is answered by the family itself."""
    least = '[data]\nuse = "digits"\n[models.student]\nuse = "net"\n[players.student.optimizer]\n'
    for use in ("torch", "torch:AdamX"):
        fault = missing(toys, f'{least}use = "{use}"\n')
        assert "there are AdamW and Lion" in fault.message
        assert fault.line == 6
