"""The components that a schema lets a recipe name, with every way to write each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from advdiff_core.discovery import KINDS, Catalogue, Entry
from advdiff_core.discovery.kinds import canonical_distribution
from advdiff_core.discovery.loading import isolated
from advdiff_core.errors import PluginError
from advdiff_core.recipe.json_tables import Choice
from advdiff_core.recipe.problems import Mismatch
from advdiff_core.recipe.resolve import Resolved, resolve_component

__all__ = ["choices_of"]

_WORD = "[A-Za-z0-9][A-Za-z0-9_.+-]*"
#: A member of a family, as `timm:resnet18` or `hub:owner/name`.
_VARIANT = f"{_WORD}(/{_WORD})?"


def choices_of(catalogue: Catalogue, warn: Callable[[str], None]) -> dict[str, list[Choice]]:
    """The usable components by kind, imported; every kind has an entry.

    Args:
        catalogue: The components.
        warn: Told of each that cannot be used.
    """
    return {
        kind: [one for entry in catalogue.of_kind(kind) for one in _of(catalogue, entry, warn)]
        for kind in KINDS
    }


def _of(catalogue: Catalogue, entry: Entry, warn: Callable[[str], None]) -> Iterator[Choice]:
    """One component, or the members of a family."""
    try:
        cls = catalogue.load(entry)
        if cls.variants is None:
            yield _choice(catalogue, entry, "")
            return
        with isolated(f"{entry.kind} {entry.name!r} of {entry.owner}", entry.owner):
            variants = cls.variant_names()
        for variant in variants:
            yield _choice(catalogue, entry, f":{variant}")
        yield from _bare(catalogue, entry)
    except PluginError as error:
        warn(error.message)
    except Mismatch as error:
        warn(error.problems[0].message)
    else:
        if not variants:
            yield _open(catalogue, entry, cls)


def _choice(catalogue: Catalogue, entry: Entry, variant: str) -> Choice:
    found: Resolved = resolve_component(catalogue, entry.kind, entry.qualified + variant)
    return Choice(
        kind=entry.kind,
        name=entry.name + variant if _is_plain(catalogue, entry) else "",
        pattern=f"^{_qualified(entry)}{_escaped(variant)}$",
        summary=_summary(found.component),
        component=found.component,
        settings=found.settings,
    )


def _open(catalogue: Catalogue, entry: Entry, cls: type[Any]) -> Choice:
    """A family that does not say who belongs to it: any name, with the keys all of them have."""
    plain = f"{_escaped(entry.name)}|" if _is_plain(catalogue, entry) else ""
    return Choice(
        kind=entry.kind,
        pattern=f"^({plain}{_qualified(entry)}):{_VARIANT}$",
        summary=_summary(cls),
        component=cls,
        settings=cls.Settings,
        is_open="Settings" not in vars(cls),
    )


def _bare(catalogue: Catalogue, entry: Entry) -> Iterator[Choice]:
    """A family's own name, where that means one of its members."""
    with suppress(Mismatch):
        yield _choice(catalogue, entry, "")


def _is_plain(catalogue: Catalogue, entry: Entry) -> bool:
    """True if the bare name means this component, whatever else has that name."""
    try:
        return catalogue.find(entry.kind, entry.name) is entry
    except PluginError:
        return False


def _qualified(entry: Entry) -> str:
    """A pattern of `dist:name`, in every spelling of the distribution."""
    letters = canonical_distribution(entry.distribution)
    spelt = "".join(
        f"[{one.upper()}{one}]" if one.isalpha() else "[-_.]+" if one == "-" else one
        for one in letters
    )
    return f"{spelt}:{_escaped(entry.name)}"


def _escaped(name: str) -> str:
    # Of what a name may hold; re.escape also escapes "-", which editors' patterns refuse.
    return re.sub(r"[.+]", r"\\\g<0>", name)


def _summary(cls: type[Any]) -> str:
    return (cls.__doc__ or "").strip().partition("\n")[0]
