"""Entries: components as their distributions declare them, and what is known against each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import evolve, frozen

from advdiff_core.discovery.kinds import (
    CONTRACT,
    CORE,
    HOOKS,
    KINDS,
    canonical,
    canonical_distribution,
    is_component_name,
)
from advdiff_core.discovery.metadata import Declaration, Installed, installed
from advdiff_core.errors import escape, nearest

__all__ = ["NO_CONTRACT", "Entry", "allowed_by", "read_entries"]

_GROUP = re.compile(r"advdiff\.v(?P<contract>\d{1,6})\.(?P<kind>[A-Za-z0-9_]+)")
_VALUE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", re.ASCII)
#: Contract version of an entry whose group names none.
NO_CONTRACT = -1


@frozen(kw_only=True)
class Entry:
    """A component as its distribution declares it; nothing of it has been imported.

    Attributes:
        kind: Registry kind, "hooks" for listeners, "" for a distribution that cannot be read.
        name: What a recipe writes after `use =`.
        value: Where the class is, `module:Class`.
        distribution: Distribution that offers it.
        version: Version of that distribution.
        contract: Contract version it was made for; -1 if its group names none.
        error: Why it cannot be used; "" if nothing is known against it.
        warning: What a user should know although it can be used.
    """

    kind: str
    name: str
    value: str
    distribution: str
    version: str
    contract: int = CONTRACT
    error: str = ""
    warning: str = ""

    @property
    def qualified(self) -> str:
        """`dist:name`: selects this entry whatever else is installed."""
        return f"{self.distribution}:{self.name}"

    @property
    def owner(self) -> str:
        """`dist version`, for messages."""
        return f"{self.distribution} {self.version}"

    @property
    def is_core(self) -> bool:
        """True for components of the core."""
        return canonical_distribution(self.distribution) == CORE


def read_entries(
    paths: Sequence[str | Path] | None, allowed: frozenset[str] | None
) -> tuple[Entry, ...]:
    """Every entry and every broken distribution, sorted; imports no plugin and not torch.

    Args:
        paths: Folders to look in instead of `sys.path`.
        allowed: Distributions whose entries may be used; None for all.
    """
    entries: list[Entry] = []
    for distribution in installed(paths):
        entries += [_broken(distribution, problem) for problem in distribution.problems]
        entries += [_entry(distribution, line) for line in distribution.declarations]
    permitted = [_restrict(entry, allowed) for entry in entries]
    order = sorted(permitted, key=lambda entry: (entry.kind, entry.name, entry.distribution))
    return tuple(_warn_shadowing(order))


def allowed_by(environ: Mapping[str, str]) -> frozenset[str] | None:
    """Distributions that ADVDIFF_PLUGINS allows, in normal form; None for all."""
    text = environ.get("ADVDIFF_PLUGINS")
    if text is None:
        return None
    return frozenset(canonical_distribution(part.strip()) for part in text.split(",")) | {CORE}


def _broken(distribution: Installed, problem: str) -> Entry:
    return Entry(
        kind="",
        name="",
        value="",
        distribution=distribution.name,
        version=distribution.version,
        contract=NO_CONTRACT,
        error=escape(problem),
    )


def _entry(distribution: Installed, line: Declaration) -> Entry:
    match = _GROUP.fullmatch(line.group)
    kind = match["kind"] if match else escape(line.group)
    contract = int(match["contract"]) if match else NO_CONTRACT
    return Entry(
        kind=kind,
        name=escape(line.name, limit=100),
        value=escape(line.value),
        distribution=distribution.name,
        version=distribution.version,
        contract=contract,
        error=_entry_error(line, kind, contract),
    )


def _entry_error(line: Declaration, kind: str, contract: int) -> str:
    """Why a declared entry can never be used, "" if it may be."""
    if contract == NO_CONTRACT:
        return f"group {escape(line.group)!r} is not advdiff.v{CONTRACT}.<kind>"
    if contract != CONTRACT:
        return (
            f"made for version {contract} of the plugin contract, "
            f"this advdiff-core has version {CONTRACT}"
        )
    if kind not in KINDS and kind != HOOKS:
        near = nearest(kind, [*KINDS, HOOKS])
        hint = f"did you mean {near!r}?" if near else f"kinds are {', '.join(KINDS)}"
        return f"version {CONTRACT} of the plugin contract has no kind {kind!r}; {hint}"
    if not is_component_name(line.name):
        return "its name holds other characters than ASCII letters, digits and _ . + -"
    if not _VALUE.fullmatch(line.value):
        return f"{escape(line.value)!r} is not module:Class"
    return ""


def _restrict(entry: Entry, allowed: frozenset[str] | None) -> Entry:
    known = canonical_distribution(entry.distribution)
    if allowed is None or known in allowed or entry.error:
        return entry
    return evolve(entry, error="not allowed by ADVDIFF_PLUGINS")


def _warn_shadowing(entries: list[Entry]) -> list[Entry]:
    """Mark core entries whose name a plugin offers too: the core's wins."""
    shadows: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        if not entry.is_core and not entry.error:
            shadows.setdefault((entry.kind, canonical(entry.name)), []).append(entry)
    return [
        evolve(entry, warning=_shadow_text(entry, hidden))
        if entry.is_core and (hidden := shadows.get((entry.kind, canonical(entry.name))))
        else entry
        for entry in entries
    ]


def _shadow_text(entry: Entry, hidden: list[Entry]) -> str:
    others = ", ".join(f"{one.name!r} of {one.owner}" for one in hidden)
    return (
        f"{entry.kind} {entry.name!r} is the core's; {others} is hidden - "
        f'write use = "{hidden[0].qualified}" to choose it'
    )
