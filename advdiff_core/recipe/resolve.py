"""From `use = "..."` to a checked component class. A recipe names components, never code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from attrs import frozen

from advdiff_core.discovery import Catalogue, Entry, UnknownComponentError
from advdiff_core.discovery.contract import settings_complaint
from advdiff_core.discovery.loading import isolated
from advdiff_core.errors import PluginError, escape, nearest
from advdiff_core.recipe.problems import Mismatch, Problem, described

__all__ = ["CODE_KEYS", "Resolved", "resolve_component"]

#: How other programs name code in their configurations.
CODE_KEYS = frozenset({
    "_target_", "_component_", "_partial_", "_recursive_", "class_path", "init_args", "__class__",
})  # fmt: skip
_WORD = r"[A-Za-z0-9][A-Za-z0-9_.+-]*"
#: A name, behind its distribution's or not; a member of a family may be called `owner/name`.
_USE = re.compile(rf"{_WORD}(:{_WORD}){{0,2}}|{_WORD}(:{_WORD}){{1,2}}/{_WORD}")
_CODE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+(:[\w.]+)?|py:.*", re.ASCII)


@frozen(kw_only=True)
class Resolved:
    """A component a recipe names.

    Attributes:
        entry: How its distribution declares it.
        component: Its class.
        settings: Class of its settings, that of the variant for a family.
    """

    entry: Entry
    component: type[Any]
    settings: type[Any]


def resolve_component(
    catalogue: Catalogue, kind: str, use: Any, absent: Sequence[str] = ()
) -> Resolved:
    """Find, import and check the component that `use` names.

    Args:
        catalogue: What is installed.
        kind: Registry kind of the component.
        use: What the recipe says.
        absent: Distributions that the recipe was frozen with and that are not installed, as
            `name==version`; what is unknown must be theirs.

    Raises:
        Mismatch: R07, R13 or Q03 for a value that is no name, R11 for one that is not installed,
            P02, P03, P04, P08, P09 for a plugin that cannot be used.
    """
    name = _checked_name(kind, use, catalogue)
    try:
        entry, variant = catalogue.resolve(kind, name)
    except UnknownComponentError as error:
        raise _unknown(error, kind, name, catalogue, absent) from None
    except PluginError as error:
        raise _mismatch(error, "") from None
    try:
        component = catalogue.load(entry)
        settings = _settings_of(entry, component, variant)
    except PluginError as error:
        raise _mismatch(error, entry.distribution) from None
    return Resolved(entry=entry, component=component, settings=settings)


def _mismatch(error: PluginError, plugin: str) -> Mismatch:
    code, message, fix = error.code or "P02", error.message, error.fix
    return Mismatch([Problem(path=(), code=code, message=message, fix=fix, plugin=plugin)])


def _refuse(code: str, message: str, fix: str) -> Mismatch:
    return Mismatch([Problem(path=(), code=code, message=message, fix=fix)])


def _checked_name(kind: str, use: Any, catalogue: Catalogue) -> str:
    if not isinstance(use, str):
        message = f"found {described(use)}, wanted the name of a {kind}"
        raise _refuse("R07", message, f'write use = "{next(iter(catalogue.names(kind)), "name")}"')
    if not _USE.fullmatch(use):
        message = f"found {described(use)}, which no component can be called"
        raise _refuse("R13", message, "names hold ASCII letters, digits and _ . + -")
    return use


def _unknown(
    error: UnknownComponentError, kind: str, use: str, catalogue: Catalogue, absent: Sequence[str]
) -> Mismatch:
    """Nothing installed has this name; say so plainly where it is the name of code."""
    if absent:
        fix = f"pip install {' '.join(absent)}, which the recipe was frozen with"
        return _refuse("R11", error.message, fix)
    if not _CODE.fullmatch(use):
        return _mismatch(error, "")
    message = f"found {described(use)}, which looks like code; a recipe names components only"
    near = nearest(use.rpartition(".")[2].lower(), catalogue.names(kind))
    fix = f"did you mean {near!r}?" if near else f"see 'advdiff plugins --kind {kind}'"
    return _refuse("Q03", message, fix)


def _settings_of(entry: Entry, component: type[Any], variant: str | None) -> type[Any]:
    """The settings class, asked of the component itself for families."""
    title = f"{entry.kind} {entry.name!r} of {entry.owner}"
    family = component.variants
    if variant is not None and family is None:
        message = f"{title} has no variants, so nothing may follow its name"
        raise PluginError(message, code="R11", fix=f'write use = "{entry.name}"')
    if family is None:
        settings: type[Any] = component.Settings
        return settings
    settings = _ask_family(title, entry, component, variant)
    complaint = settings_complaint(component, settings)
    if complaint:
        fix = f"tell the authors of {entry.distribution}"
        raise PluginError(f"{title}: Settings of {variant}: {complaint}", code="P09", fix=fix)
    return settings


def _ask_family(title: str, entry: Entry, component: type[Any], variant: str | None) -> type[Any]:
    wrong: ValueError | None = None
    found: Any = None
    with isolated(title, entry.owner):
        try:
            found = component.settings_type(variant)
        except ValueError as error:
            wrong = error
    if wrong is not None:
        fix = f'write use = "{entry.name}:..."; {component.variants}'
        raise PluginError(f"{title}: {escape(wrong)}", code="R11", fix=escape(fix))
    settings: type[Any] = found
    return settings
