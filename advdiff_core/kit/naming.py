"""Names of a new plugin: its distribution, its package, its components."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from importlib import metadata

from attrs import frozen

from advdiff_core.discovery.catalogue import Catalogue
from advdiff_core.discovery.kinds import canonical, canonical_distribution, is_component_name
from advdiff_core.errors import UsageError, escape

__all__ = ["Names", "names_of", "refuse_clashes"]

#: PEP 508.
_DISTRIBUTION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
#: Longer ones push lines of the templates beyond 100 characters.
MAX_LENGTH = 40
PREFIX = "advdiff-"


@frozen(kw_only=True)
class Names:
    """What a new plugin and its parts are called.

    Attributes:
        distribution: Name on the package index, in normal form (PEP 503).
        package: Name that is imported.
        topic: The distribution without "advdiff-"; also the name of its recipe.
        component: What recipes write after `use =`.
    """

    distribution: str
    package: str
    topic: str
    component: str


def names_of(name: str, component: str | None = None) -> Names:
    """Names that follow from the one a user gave.

    Args:
        name: Name of the distribution, in any spelling.
        component: What recipes are to write; the topic if None.

    Raises:
        UsageError: If a name cannot be used, or is in use already.
    """
    distribution = _distribution(name)
    package = _package(distribution)
    topic = distribution.removeprefix(PREFIX)
    return Names(
        distribution=distribution,
        package=package,
        topic=topic,
        component=_component(topic if component is None else component),
    )


def _distribution(name: str) -> str:
    shown = escape(name, limit=80)
    if not _DISTRIBUTION.fullmatch(name):
        message = (
            f"{shown!r} is no name of a distribution, wanted ASCII letters, digits, '-', '_' and "
            "'.', with a letter or digit at both ends (PEP 508)"
        )
        raise UsageError(message, where="NAME", fix="for example advdiff-mine")
    if len(name) > MAX_LENGTH:
        message = f"{shown!r} has {len(name)} characters, wanted at most {MAX_LENGTH}"
        raise UsageError(message, where="NAME", fix="choose a shorter one")
    distribution = canonical_distribution(name)
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return distribution
    message = f"a distribution {distribution!r} is installed already (version {version})"
    raise UsageError(message, where="NAME", fix=f"choose another, or pip uninstall {distribution}")


def _package(distribution: str) -> str:
    package = distribution.replace("-", "_")
    if not package.isidentifier() or keyword.iskeyword(package):
        message = f"{package!r}, the package of {distribution!r}, is no name that can be imported"
    elif package in sys.stdlib_module_names:
        message = f"{package!r}, the package of {distribution!r}, is a module of Python itself"
    elif importlib.util.find_spec(package) is not None:
        message = f"{package!r}, the package of {distribution!r}, exists already and would hide it"
    else:
        return package
    raise UsageError(message, where="NAME", fix=f"for example {PREFIX}{distribution}")


def _component(component: str) -> str:
    if is_component_name(component) and len(component) <= MAX_LENGTH:
        return component
    message = f"{escape(component, limit=80)!r} is no name of a component"
    fix = f"use up to {MAX_LENGTH} ASCII letters, digits and _ . + -, the first no sign"
    raise UsageError(message, where="--component", fix=fix)


def refuse_clashes(parts: list[tuple[str, str]], catalogue: Catalogue, names: Names) -> None:
    """Refuse names of components that something installed offers.

    Args:
        parts: Kind and name of each new component.
        catalogue: What is installed.
        names: Names of the new plugin.

    Raises:
        UsageError: If a recipe could not tell the new component from an installed one.
    """
    for kind, name in parts:
        for entry in catalogue.entries:
            if entry.kind == kind and canonical(entry.name) == canonical(name):
                message = f"{entry.owner} offers a {kind} {entry.name!r} already"
                fix = f"name yours: --component {names.topic}-2, or choose another NAME"
                raise UsageError(message, where="--component", fix=fix)
