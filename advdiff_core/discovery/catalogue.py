"""The catalogue of installed components: what there is, whose it is, and which one a name means."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import field, frozen

from advdiff_core.discovery import loading
from advdiff_core.discovery.entries import NO_CONTRACT, Entry, allowed_by, read_entries
from advdiff_core.discovery.kinds import CONTRACT, canonical, canonical_distribution
from advdiff_core.errors import PluginError, escape, nearest

__all__ = ["Catalogue", "Entry", "UnknownComponentError", "scan"]


class UnknownComponentError(PluginError):
    """No installed distribution offers the component."""


def scan(
    paths: Sequence[str | Path] | None = None, environ: Mapping[str, str] | None = None
) -> Catalogue:
    """Read the metadata of everything installed; imports no plugin and not torch.

    `ADVDIFF_PLUGINS=a,b` in the environment allows only these distributions, and the core.

    Args:
        paths: Folders to look in instead of `sys.path`.
        environ: Environment variables instead of `os.environ`.
    """
    allowed = allowed_by(os.environ if environ is None else environ)
    return Catalogue(entries=read_entries(paths, allowed), allowed=allowed)


@frozen(kw_only=True)
class Catalogue:
    """Everything installed, usable or not.

    Attributes:
        entries: All entries, sorted by kind, name and distribution.
        allowed: Distributions allowed by ADVDIFF_PLUGINS, in normal form; None for all.
    """

    entries: tuple[Entry, ...]
    allowed: frozenset[str] | None = None
    _loaded: dict[tuple[str, str, str], type[Any]] = field(factory=dict, eq=False, repr=False)

    def of_kind(self, kind: str) -> tuple[Entry, ...]:
        """The usable entries of a kind."""
        return tuple(one for one in self.entries if one.kind == kind and not one.error)

    def names(self, kind: str) -> list[str]:
        """Names a recipe may write for a kind, sorted."""
        return sorted({entry.name for entry in self.of_kind(kind)})

    def distributions(self) -> list[str]:
        """Distributions with usable entries, sorted."""
        return sorted({entry.distribution for entry in self.entries if not entry.error})

    def knows(self, distribution: str) -> bool:
        """True if a distribution of this name, in any spelling, is installed and has entries."""
        wanted = canonical_distribution(distribution)
        return any(canonical_distribution(entry.distribution) == wanted for entry in self.entries)

    def allows(self, distribution: str) -> bool:
        """False if ADVDIFF_PLUGINS leaves the distribution out."""
        return self.allowed is None or canonical_distribution(distribution) in self.allowed

    def find(self, kind: str, use: str) -> Entry:
        """The entry that `use` means: `name`, `dist:name`, or a family `name:variant`.

        Raises:
            UnknownComponentError: If nothing installed offers it (R11).
            PluginError: If several do (P04), if it was made for another contract version (P08), or
                if it is not allowed or broken.
        """
        return self.resolve(kind, use)[0]

    def resolve(self, kind: str, use: str) -> tuple[Entry, str | None]:
        """Like `find`; returns the variant of a family too, None without one."""
        for distribution, name, variant in _readings(use):
            found = self._matching(kind, name, distribution)
            if found:
                return self._only(kind, use, name, found), variant
        raise self._unknown(kind, use)

    def load(self, entry: Entry) -> type[Any]:
        """Import the class of an entry and check it against its kind before anything is called.

        Raises:
            PluginError: If the import fails (P02), it is no concrete class of its kind (P03,
                Q03), or its Settings are broken (P09).
        """
        if entry.error:
            raise _unusable(entry)
        key = (entry.kind, entry.value, entry.distribution)
        if key not in self._loaded:
            self._loaded[key] = loading.load_component(
                entry.kind, entry.name, entry.value, owner=entry.owner
            )
        return self._loaded[key]

    def _matching(self, kind: str, name: str, distribution: str | None) -> list[Entry]:
        """Entries of a kind that `name` may mean; those of the core alone where it has one."""
        wanted = canonical(name)
        found = [e for e in self.entries if e.kind == kind and canonical(e.name) == wanted]
        if distribution is not None:
            owner = canonical_distribution(distribution)
            found = [e for e in found if canonical_distribution(e.distribution) == owner]
            exact = [e for e in found if e.name == name]
            return exact or found
        core = [e for e in found if e.is_core and e.name == name]
        return core or found

    def _only(self, kind: str, use: str, name: str, found: list[Entry]) -> Entry:
        usable = [entry for entry in found if not entry.error]
        if len(usable) > 1:
            raise _clash(kind, use, usable)
        if not usable:
            raise _unusable(found[0])
        if usable[0].name != name:
            raise self._unknown(kind, use)
        return usable[0]

    def _unknown(self, kind: str, use: str) -> UnknownComponentError:
        shown = escape(use, limit=80)
        home = next((e.kind for e in self.entries if e.name == use and not e.error), None)
        if home is not None and home != kind:
            return UnknownComponentError(
                f"{shown!r} is a {home}, wanted a {kind}",
                code="R11",
                fix=f"{_choices(self.names(kind))}; see 'advdiff plugins --kind {kind}'",
            )
        return UnknownComponentError(
            f"no installed distribution offers a {kind} {shown!r}",
            code="R11",
            fix=self._fix(kind, use),
        )

    def _fix(self, kind: str, use: str) -> str:
        distribution, colon, name = use.partition(":")
        if colon and not self.knows(distribution):
            # Only the same component of a distribution of nearly that name can have been meant.
            near = nearest(use, [e.qualified for e in self.of_kind(kind) if e.name == name])
            hint = f"; did you mean {near!r}?" if near else ""
            return f"{_install(distribution)}{hint}"
        near = nearest(use, [*self.names(kind), *(e.qualified for e in self.of_kind(kind))])
        if near:
            return f"did you mean {near!r}?"
        return f"install the distribution that offers it; {_choices(self.names(kind))}"


def _readings(use: str) -> list[tuple[str | None, str, str | None]]:
    """The ways to read `use` as (distribution, name, variant); `dist:name` goes first."""
    parts = use.split(":")
    if len(parts) == 1:
        return [(None, use, None)]
    if len(parts) == 2:
        return [(parts[0], parts[1], None), (None, parts[0], parts[1])]
    if len(parts) == 3:
        return [(parts[0], parts[1], parts[2])]
    return []


def _install(distribution: str) -> str:
    shown = escape(distribution, limit=80)
    return f"{shown!r} is no installed distribution: pip install {shown}, if you trust it"


def _choices(names: Iterable[str]) -> str:
    listed = list(names)
    if not listed:
        return "none is installed"
    more = f" and {len(listed) - 12} more" if len(listed) > 12 else ""
    return f"installed: {', '.join(listed[:12])}{more}"


def _clash(kind: str, use: str, found: list[Entry]) -> PluginError:
    listed = " and ".join(f"{one.name!r} of {one.owner}" for one in found)
    if len({one.qualified for one in found}) == len(found):
        fix = "write " + " or ".join(f'use = "{one.qualified}"' for one in found)
    else:
        fix = "remove one of the two declarations"
    return PluginError(
        f"{kind} {escape(use, limit=80)!r} is offered more than once: {listed}", code="P04", fix=fix
    )


def _unusable(entry: Entry) -> PluginError:
    message = f"{entry.kind} {entry.name!r} of {entry.owner} cannot be used: {entry.error}"
    if entry.contract not in (NO_CONTRACT, CONTRACT):
        newer = entry.contract > CONTRACT
        what = "advdiff-core" if newer else entry.distribution
        return PluginError(message, code="P08", fix=f"upgrade {what}")
    if entry.error.endswith("ADVDIFF_PLUGINS"):
        return PluginError(message, code="P04", fix=f"add {entry.distribution} to ADVDIFF_PLUGINS")
    return PluginError(message, code="P03", fix=f"ask the authors of {entry.distribution}")
