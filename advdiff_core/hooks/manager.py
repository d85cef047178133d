"""Calls every listener on its own, so that a bad one stops neither the run nor the others."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from advdiff_core.errors import PluginError, StorageError, escape, nearest
from advdiff_core.hooks.specs import NAMES, PROJECT, Section, new_manager
from advdiff_core.hooks.terminal import cause_of, say

if TYPE_CHECKING:
    import click
    import pluggy
    from torch import Tensor

    from advdiff_core.hooks.specs import RunInfo

__all__ = ["HookEntry", "Hooks", "Listener"]

CORE = "advdiff-core"
#: Events whose listeners answer with a list.
ANSWERED = ("cli_commands", "report_sections")


class HookEntry(Protocol):
    """A listener as discovery lists it: nothing imported yet."""

    @property
    def name(self) -> str:
        """Entry name."""

    @property
    def value(self) -> str:
        """`module:Class`."""

    @property
    def distribution(self) -> str:
        """Distribution that offers it."""

    @property
    def version(self) -> str:
        """Version of that distribution."""


def _unguarded(title: str, owner: str) -> AbstractContextManager[None]:
    del title, owner
    return nullcontext()


class Listener:
    """One plugin object with a manager of its own, so that no other is in its call.

    Args:
        plugin: Object with methods marked by `hookimpl`.
        name: Name for messages.
        owner: Distribution and version, for messages; starts with "advdiff-core" for built-in ones.

    Raises:
        Exception: Whatever pluggy says of methods that do not fit the events.
    """

    def __init__(self, plugin: object, *, name: str, owner: str = CORE) -> None:
        self.name = name
        self.owner = owner
        self.disabled = False
        self._manager = new_manager()
        if not _implements_anything(self._manager, plugin):
            message = f"it offers none of {', '.join(NAMES)} (methods are marked with @hookimpl)"
            raise TypeError(message)
        self._manager.register(plugin, name)
        self._manager.check_pending()

    @property
    def is_core(self) -> bool:
        """True for listeners of the core."""
        return self.owner.split(" ")[0] == CORE

    def call(self, event: str, arguments: Mapping[str, Any]) -> list[Any]:
        """What this listener's method for an event returns, as one list; it may raise anything."""
        answers = getattr(self._manager.hook, event)(**arguments)
        return [part for answer in answers for part in answer] if event in ANSWERED else []


def _implements_anything(manager: pluggy.PluginManager, plugin: object) -> bool:
    return any(manager.parse_hookimpl_opts(plugin, name) is not None for name in dir(plugin))


class Hooks:
    """The listeners of one run.

    Args:
        listeners: Called in this order for every event.
        warn: Takes one warning line; stderr by default.
    """

    def __init__(
        self, listeners: Iterable[Listener] = (), *, warn: Callable[[str], None] = say
    ) -> None:
        self.listeners = list(listeners)
        self._warn = warn

    @classmethod
    def load(
        cls,
        entries: Iterable[HookEntry],
        *,
        warn: Callable[[str], None] = say,
        guard: Callable[[str, str], AbstractContextManager[None]] = _unguarded,
    ) -> Hooks:
        """Import and build the listeners; one that cannot be is named in a warning and left out.

        Args:
            entries: Usable entries of the group `advdiff.v1.hooks`, as discovery lists them.
            warn: Takes one warning line.
            guard: Context manager around the import of a plugin's code, called with what is
                imported and its owner; discovery's turns whatever the plugin raises into one error.
        """
        hooks = cls(warn=warn)
        for entry in entries:
            owner = f"{entry.distribution} {entry.version}"
            try:
                with guard(f"hook {entry.name!r} of {owner}", owner):
                    plugin = _build(entry.value)
                hooks.listeners.append(Listener(plugin, name=entry.name, owner=owner))
            except (Exception, SystemExit) as error:
                warn(_warning(entry.name, owner, "loading", error, "it is left out"))
        return hooks

    def configure(
        self, off: Iterable[str] = (), options: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """Follow the recipe's table `[hooks]`; a name that no listener has is warned of.

        Args:
            off: Names of listeners to switch off.
            options: Tables `[hooks.<name>]`, handed to the listener of that name.
        """
        tables = dict(options or {})
        known = [listener.name for listener in self.listeners]
        for name in (*off, *tables):
            if name not in known:
                near = nearest(name, known)
                hint = f"did you mean {near!r}?" if near else f"installed: {', '.join(known)}"
                self._warn(f"advdiff: warning: hooks: there is no hook {escape(name)!r} - {hint}")
        for listener in self.listeners:
            listener.disabled = listener.disabled or listener.name in set(off)
            if listener.name in tables and not listener.disabled:
                chosen = MappingProxyType(dict(tables[listener.name]))
                self._call_one(listener, "configured", {"options": chosen})

    def add(self, plugin: object, *, name: str, owner: str = CORE) -> None:
        """Add an object with methods marked by `hookimpl`."""
        self.listeners.append(Listener(plugin, name=name, owner=owner))

    def call(self, event: str, **arguments: Any) -> list[Any]:
        """Tell every listener of an event; see `advdiff_core.hooks.specs` for events and arguments.

        Args:
            event: Name of the event.
            arguments: What it carries. Tables are passed on read-only.

        Raises:
            StorageError: If one of the core's own listeners cannot write: a run whose log is not
                written must not end as a success.
        """
        safe = {key: _read_only(value) for key, value in arguments.items()}
        results: list[Any] = []
        for listener in self.listeners:
            if not listener.disabled:
                results += self._call_one(listener, event, safe)
        return results

    def run_started(self, run: RunInfo) -> None:
        """Tell that the first step is about to begin."""
        self.call("run_started", run=run)

    def metrics_logged(self, run: RunInfo, nimg: int, metrics: Mapping[str, float]) -> None:
        """Tell the numbers of a log tick."""
        self.call("metrics_logged", run=run, nimg=nimg, metrics=metrics)

    def images_ready(self, run: RunInfo, nimg: int, images: Mapping[str, Tensor]) -> None:
        """Show rows of images [N, ...] by caption."""
        self.call("images_ready", run=run, nimg=nimg, images=images)

    def checkpoint_saved(self, run: RunInfo, nimg: int, path: Path) -> None:
        """Tell that a checkpoint is complete."""
        self.call("checkpoint_saved", run=run, nimg=nimg, path=path)

    def run_finished(self, run: RunInfo, result: Any) -> None:
        """Tell that the run is over."""
        self.call("run_finished", run=run, result=result)

    def close(self) -> None:
        """Let every listener release what it holds; call it in a `finally`."""
        self.call("run_closed")

    def cli_commands(self) -> list[click.Command]:
        """Verbs that listeners add."""
        return self.call("cli_commands")

    def report_sections(self, run: Path) -> list[Section]:
        """Sections that listeners add to the report of a run folder."""
        sections = self.call("report_sections", run=run)
        return [section for section in sections if isinstance(section, Section)]

    def _call_one(self, listener: Listener, event: str, arguments: Mapping[str, Any]) -> list[Any]:
        try:
            return listener.call(event, arguments)
        except (Exception, SystemExit) as error:
            if isinstance(error, StorageError) and listener.is_core:
                raise
            listener.disabled = True
            what = "it is switched off for this run"
            self._warn(_warning(listener.name, listener.owner, event, error, what))
            return []


def _build(value: str) -> object:
    module, _, attribute = value.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    if not isinstance(found, type):
        message = f"{value} is not a class"
        raise TypeError(message)
    return found()


def _read_only(value: object) -> object:
    return MappingProxyType(dict(value)) if isinstance(value, Mapping) else value


def _warning(name: str, owner: str, event: str, error: BaseException, what: str) -> str:
    if isinstance(error, PluginError):
        # The guard around an import has said already who failed.
        return f"advdiff: warning: {escape(error.message, limit=600)} - {what}"
    who = f"{PROJECT} hook {escape(name)!r} ({owner})"
    return f"advdiff: warning: {who} failed in {event}: {cause_of(error)} - {what}"
