"""Laws of every component, whatever its kind."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Mapping
from typing import Any

import attrs
import tomli_w
import torch
from hypothesis import reject
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor, nn

from advdiff_core.discovery.loading import interface_of
from advdiff_core.errors import AdvdiffError
from advdiff_core.interfaces.module import ModuleComponent
from advdiff_core.recipe.problems import Mismatch
from advdiff_core.recipe.recipe import plain
from advdiff_core.recipe.schema import key_of
from advdiff_core.testing import tables
from advdiff_core.testing.bench import seeds
from advdiff_core.testing.findings import NotApplicable, shown, wrong
from advdiff_core.testing.imports import import_effects
from advdiff_core.testing.kinds.rigs import rig
from advdiff_core.testing.law import Laws
from advdiff_core.testing.state import changes, digest, disturbed, leaves
from advdiff_core.testing.subject import (
    Subject,
    read_settings,
    settings_or_finding,
    worlds_or_skip,
)

__all__ = ["COMMON"]

COMMON = Laws("")


@COMMON.law("builds")
def builds(subject: Subject) -> None:
    """It loads, takes its settings, and works on at least one kind of data."""
    settings_or_finding(subject)
    found, reasons = rig(subject).fit(subject)
    if not found:
        raise wrong(
            f"that it works nowhere ({_listed(reasons)})",
            wanted="a component that builds and runs on images or points",
            mend=f'if it needs more, write examples={{"{subject.kind}:{subject.use}": [...]}}',
        )


def class_or_skip(subject: Subject) -> None:
    """Skip where law `builds` says why the class cannot be had."""
    try:
        subject.component  # noqa: B018 - loads it.
    except AdvdiffError as error:
        message = "its class cannot be loaded: see law 'builds'"
        raise NotApplicable(message) from error


def _listed(reasons: Mapping[str, str]) -> str:
    """Where it fails and why: first what is no refusal, each reason once."""
    ordered = sorted(reasons.items(), key=lambda one: one[1].startswith("RecipeError"))
    once = {reason: world for world, reason in reversed(ordered)}
    chosen = list(reversed(once.items()))[:2]
    return "; ".join(f"{world}: {shown(reason)}" for reason, world in chosen)


@COMMON.law("import-is-clean")
def import_is_clean(subject: Subject) -> None:
    """Importing its module changes nothing in the process, and prints nothing."""
    owner, module = subject.entry.distribution, subject.entry.value.partition(":")[0]
    same = [e for e in subject.catalogue.entries if e.distribution == owner and not e.error]
    modules = {entry.value.partition(":")[0] for entry in same}
    effects = import_effects(tuple(sorted(modules)))[module]
    if any(effect.startswith("raises") for effect in effects):
        message = f"its module cannot be imported by name: {effects[0]}"
        raise NotApplicable(message)
    if effects:
        raise wrong(
            f"that importing {module} changes {' and '.join(effects[:3])}",
            wanted="an import without side effects",
            mend="move it, or the import of what does it, into the method that needs it",
        )


@COMMON.law("is-documented")
def is_documented(subject: Subject) -> None:
    """The class opens with a sentence of its own and every key has a line of help."""
    class_or_skip(subject)
    own = inspect.cleandoc(subject.component.__dict__.get("__doc__") or "")
    first = " ".join(own.split("\n\n")[0].split())
    if not first.endswith((".", ":")):
        raise wrong(
            f"the docstring {first!r}",
            wanted="a docstring that opens with a sentence",
            mend="say in one line what it does; `advdiff plugins` shows it",
        )
    silent = [one.name for one in attrs.fields(subject.settings_class) if not _help(one)]
    if silent:
        raise wrong(
            f"no help for its key {silent[0]!r}",
            wanted="one line of help per key",
            mend='declare it with setting(..., help="...")',
        )


def _help(one: attrs.Attribute[Any]) -> bool:
    return not one.init or bool(str(one.metadata.get("help", "")).strip())


@COMMON.law("keeps-final-methods")
def keeps_final_methods(subject: Subject) -> None:
    """Methods that the core reserves, such as the one that projects, are not overridden."""
    class_or_skip(subject)
    interface = interface_of(subject.kind)
    for base in type.mro(interface):
        for name, method in vars(base).items():
            final = getattr(method, "__final__", False)
            if final and inspect.getattr_static(subject.component, name) is not method:
                raise wrong(
                    f"its own method {name!r}",
                    wanted=f"the core's {interface.__name__}.{name}, which enforces the budget",
                    mend="put what is yours into `search`",
                )


def _tables(subject: Subject) -> SearchStrategy[dict[str, Any]]:
    return tables.right_tables(subject.settings_class, subject.component, _table(subject))


def _table(subject: Subject) -> Mapping[str, Any]:
    settings_or_skip(subject)
    return subject.table


def settings_or_skip(subject: Subject) -> None:
    """Skip where law `builds` says what is wrong."""
    try:
        settings_or_finding(subject)
    except Exception as error:
        message = "its settings cannot be read: see law 'builds'"
        raise NotApplicable(message) from error


@COMMON.law("settings-round-trip", table=_tables)
def settings_round_trip(subject: Subject, table: dict[str, Any]) -> None:
    """What a recipe writes is what the component gets, and writing it out again changes nothing."""
    try:
        read = _read(subject, table)
    except Mismatch:
        reject()
    written = plain(read)
    for key, value in table.items():
        if key in written and not _same(written[key], value):
            raise wrong(
                f"that key {key!r} turns {value!r} into {written[key]!r}",
                wanted="settings that hold what the recipe says",
                mend="convert units where the value is used, not in the Settings class",
            )
    again = _read(subject, tomllib.loads(tomli_w.dumps(written)))
    if again != read:
        names = [
            o.name
            for o in attrs.fields(type(read))
            if getattr(read, o.name) != getattr(again, o.name)
        ]
        raise wrong(
            f"that {', '.join(names) or 'something'} changes on the way through TOML",
            wanted="equal settings after writing and reading a recipe",
            mend="use types with plain equality and without converters",
        )


def _read(subject: Subject, table: Mapping[str, Any]) -> Any:
    return read_settings(subject.catalogue, subject.kind, {"use": subject.qualified, **table})


def _same(written: Any, value: Any) -> bool:
    if isinstance(value, str) and isinstance(written, float):
        return True  # "8/255"
    if isinstance(value, Mapping):
        return isinstance(written, Mapping)
    if isinstance(value, list) and isinstance(written, list):
        # Nested components come back with their defaults.
        pairs = zip(written, value, strict=False)
        return len(written) == len(value) and all(_same(*pair) for pair in pairs)
    return bool(written == value)


def _wrong_tables(subject: Subject) -> SearchStrategy[Any]:
    found = tables.wrong_tables(subject.settings_class, subject.component, _table(subject))
    return found if found is not None else st.none()


@COMMON.law("settings-refuse-nonsense", entry=_wrong_tables)
def settings_refuse_nonsense(subject: Subject, entry: tuple[str, Any] | None) -> None:
    """A value of another type, out of bounds or no choice is refused, naming the key."""
    if entry is None:
        return
    key, value = entry
    try:
        _read(subject, {**_table(subject), key: value})
    except Mismatch as error:
        # Wherever validation happens, a user must be told which key it is about.
        if any(key in map(str, one.path) or key in one.message for one in error.problems):
            return
        raise wrong(
            f"that {key} = {value!r} is refused as {error}",
            wanted="a message that names the key",
            mend=f"begin the message of your validator with '{key}: '",
        ) from None
    raise wrong(
        f"that {key} = {value!r} is accepted",
        wanted="values refused that its type, bounds or choices exclude",
        mend="declare the key with setting(), and keep its validator",
    )


@COMMON.law("refusals-name-a-key", table=_tables)
def refusals_name_a_key(subject: Subject, table: dict[str, Any]) -> None:
    """Where its own validators refuse a combination, the message names one of its keys."""
    try:
        _read(subject, table)
    except Mismatch as error:
        keys = [key_of(one) for one in attrs.fields(subject.settings_class)]
        named = any(
            key in str(error) or key in map(str, one.path) for one in error.problems for key in keys
        )
        if not named:
            raise wrong(
                f"that settings are refused as {str(error)!r}",
                wanted="a message that names a key",
                mend="begin the message of your validator with the key: 'std: 0 must be above 0'",
            ) from None


def _edge_tables(subject: Subject) -> SearchStrategy[Any]:
    settings_or_skip(subject)
    found = tables.edge_tables(subject.settings_class, subject.component)
    return found if found is not None else st.none()


@COMMON.law("settings-hold-at-the-edge", entry=_edge_tables)
def settings_hold_at_the_edge(subject: Subject, entry: tuple[str, Any] | None) -> None:
    """The smallest number a key allows works, or is refused in words."""
    worlds = rig(subject).fit(subject)[0]
    if entry is None or not worlds:
        return
    key, value = entry
    try:
        other = subject.variant({key: value})
        rig(other).trial(other, worlds[0])
    except (AdvdiffError, Mismatch):
        return
    except Exception as error:
        raise wrong(
            f"{type(error).__name__} with {key} = {value!r}: {error}",
            wanted="that the smallest number its bounds allow works",
            mend=f"bound it: {key} = setting(..., ge=...) or gt=...",
        ) from error


@COMMON.law("building-is-repeatable", seed=seeds())
def building_is_repeatable(subject: Subject, seed: int) -> None:
    """Two builds under one seed are equal, and leave the process as it was."""
    worlds = rig(subject).fit(subject)[0]
    if not worlds:
        message = "it does not build: see law 'builds'"
        raise NotApplicable(message)
    if subject.effects:
        # Seen at the first build: a second one may find everything changed already.
        raise disturbed("building it", subject.effects)
    with leaves("building it"):
        first, second = (rig(subject).build(subject, worlds[0], seed) for _ in range(2))
    if isinstance(first, nn.Module) and isinstance(second, nn.Module):
        before, after = ({n: digest(t) for n, t in m.state_dict().items()} for m in (first, second))
        found = changes(before, after)
        if found:
            raise wrong(
                f"that {found[0]} differs between two builds with seed {seed}",
                wanted="weights that depend on the seed alone",
                mend="initialise with torch's own functions in __init__, or from build.generator()",
            )


@COMMON.law("updated-leaves-what-is-trained", seed=seeds())
def updated_leaves_what_is_trained(subject: Subject, seed: int) -> None:
    """What follows an update depends on the weights alone, and moves no trained one."""
    own = getattr(subject.component, "updated", None)
    if own is None or own is ModuleComponent.updated:
        message = "it does nothing after an update"
        raise NotApplicable(message)
    world = worlds_or_skip(rig(subject).fit(subject)[0])[0]
    first, second = (rig(subject).build(subject, world, seed) for _ in range(2))
    before = _trained(first)
    mend = "draw nothing, and write to buffers and weights with requires_grad = False alone"
    with leaves("`updated`"):
        for net in (first, second):
            for _ in range(2):
                with torch.no_grad():
                    net.updated()
    moved = changes(before, _trained(first))
    if moved:
        raise wrong(
            f"that `updated` moves {moved[0]}, which is trained", wanted="it left", mend=mend
        )
    pair = [{n: digest(t) for n, t in _tensors(net).items()} for net in (first, second)]
    found = changes(*pair)
    if found:
        what = f"that {found[0]} differs between two networks of the same weights"
        raise wrong(what, wanted="what depends on the weights alone", mend=mend)


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    # Buffers that are in no state dict, too: checkpoints hold them.
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


def _trained(net: nn.Module) -> dict[str, object]:
    return {n: digest(t) for n, t in net.named_parameters() if t.requires_grad}
