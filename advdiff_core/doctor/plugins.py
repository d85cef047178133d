"""Imports everything that is installed, and says what fails and where."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from advdiff_core.discovery import HOOKS, Catalogue, Entry, scan
from advdiff_core.discovery.loading import isolated
from advdiff_core.doctor.findings import Finding, bad, note, ok
from advdiff_core.errors import PluginError
from advdiff_core.hooks.manager import Hooks

__all__ = ["plugins"]

FIX = "upgrade or uninstall its distribution"


def plugins() -> Iterator[Finding]:
    """The components that work, those that do not with their traceback, and those hidden."""
    catalogue = scan()
    declared = [_declared(entry) for entry in catalogue.entries if entry.error]
    broken = [*_components(catalogue), *_listeners(catalogue)]
    usable = [entry for entry in catalogue.entries if not entry.error]
    owners = sorted({entry.owner for entry in usable})
    yield ok("plugins", f"{max(len(usable) - len(broken), 0)} components of {', '.join(owners)}")
    yield from (*declared, *broken)
    yield from (note("plugins", entry.warning) for entry in catalogue.entries if entry.warning)


def _declared(entry: Entry) -> Finding:
    what = f"{entry.kind} {entry.name}".strip()
    return bad("plugins", f"{what} of {entry.owner}: {entry.error}".strip(), FIX, PluginError)


def _components(catalogue: Catalogue) -> Iterator[Finding]:
    for entry in catalogue.entries:
        if entry.error or entry.kind == HOOKS:
            continue
        try:
            catalogue.load(entry)
        except PluginError as error:
            yield bad("plugins", error.message, FIX, PluginError, _traceback(error))


def _listeners(catalogue: Catalogue) -> Iterator[Finding]:
    """Listeners are built as a run does it; what they raise is taken on the way."""
    complaints: list[str] = []
    raised: dict[int, str] = {}

    @contextmanager
    def guard(title: str, owner: str) -> Iterator[None]:
        try:
            with isolated(title, owner):
                yield
        except PluginError as error:
            # Its warning is the next to come.
            raised[len(complaints)] = _traceback(error)
            raise

    Hooks.load(catalogue.of_kind(HOOKS), warn=complaints.append, guard=guard)
    for number, text in enumerate(complaints):
        found = text.removeprefix("advdiff: warning: ")
        yield bad("plugins", found, FIX, PluginError, raised.get(number, ""))


def _traceback(error: PluginError) -> str:
    """Where the plugin itself failed; "" if nothing of it was running."""
    cause = error.__cause__
    if cause is None:
        return ""
    return "".join(traceback.format_exception(cause)).rstrip()
