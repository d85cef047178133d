"""Imports the class behind an entry and checks it before anything of it is called.

A plugin's module may raise anything while it is imported. All of it becomes a `PluginError` that
names the plugin; only a Ctrl-C that really came from the keyboard goes through.
"""

from __future__ import annotations

import importlib
import inspect
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from advdiff_core.discovery import contract
from advdiff_core.discovery.kinds import KINDS
from advdiff_core.errors import PluginError, escape

__all__ = ["interface_of", "load_component"]


def interface_of(kind: str) -> type[Any]:
    """The interface class of a kind; importing it imports torch."""
    module, _, name = KINDS[kind].partition(":")
    interface: type[Any] = getattr(importlib.import_module(module), name)
    return interface


def load_component(kind: str, name: str, value: str, *, owner: str) -> type[Any]:
    """The class at `value`, checked to be a concrete component of `kind`.

    Args:
        kind: Registry kind.
        name: Name it is registered under.
        value: `module:Class`.
        owner: `dist version` for messages.

    Raises:
        PluginError: If the import fails (P02), the object is missing or no class of the kind (P03,
            Q03), abstract methods are left out (P03), or its Settings are broken (P09).
    """
    title = f"{kind} {name!r} of {owner}"
    interface = interface_of(kind)
    found = _import_object(title, value, owner)
    cls = _check_class(title, found, interface)
    complaint = contract.settings_complaint(cls, cls.Settings)
    if complaint:
        raise PluginError(
            f"{title}: Settings of {cls.__name__}: {complaint}", code="P09", fix=_ask(owner)
        )
    return cls


def _ask(owner: str) -> str:
    return f"tell the authors of {owner.split(' ')[0]}"


def _import_object(title: str, value: str, owner: str) -> Any:
    module_name, _, attribute = value.partition(":")
    with isolated(title, owner):
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            if not hasattr(found, part):
                message = f"{title}: module {module_name!r} has no {attribute!r}"
                raise PluginError(message, code="P03", fix=_ask(owner))
            found = getattr(found, part)
    return found


@contextmanager
def isolated(title: str, owner: str) -> Iterator[None]:
    """Turn whatever a plugin raises in the block into a `PluginError` (P02) that names it.

    Raises:
        PluginError: For any exception of the plugin, SystemExit and KeyboardInterrupt included.
    """
    interrupted: list[int] = []
    try:
        with _note_interrupts(interrupted):
            yield
    except PluginError:
        raise
    except BaseException as error:
        if interrupted or isinstance(error, GeneratorExit):
            raise
        cause = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        message = f"{title} fails to import: {escape(_with_line(cause, error))}"
        raise PluginError(message, code="P02", fix=_fix_import(error, owner)) from error


@contextmanager
def _note_interrupts(seen: list[int]) -> Iterator[None]:
    """Record a SIGINT that arrives during the block, and still handle it as before."""
    previous = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or not callable(previous):
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        previous(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, previous)


def _with_line(cause: str, error: BaseException) -> str:
    if isinstance(error, SyntaxError) or error.__traceback__ is None:
        return cause
    frames = inspect.getinnerframes(error.__traceback__, context=0)
    own = [one for one in frames if not one.filename.startswith("<") and one.filename != __file__]
    return f"{cause} ({own[-1].filename}:{own[-1].lineno})" if own else cause


def _fix_import(error: BaseException, owner: str) -> str:
    distribution = owner.split(" ")[0]
    if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:
        return f"install {escape(error.name, limit=80)!r}, or reinstall {distribution}"
    return f"reinstall or upgrade {distribution}, or leave it out of the recipe"


def _check_class(title: str, found: Any, interface: type[Any]) -> type[Any]:
    """`found` itself if it is a concrete subclass; looks at types only and calls nothing of it."""
    wanted = f"wanted a class derived from advdiff_core.{interface.__name__}"
    # type() and __mro__ cannot be faked by the object, isinstance() and issubclass() can.
    if not issubclass(type(found), type):
        message = f"{title} is no class but {type(found).__name__}; {wanted}"
        raise PluginError(message, code="Q03", fix="name components only")
    cls: type[Any] = found
    if interface not in type.__getattribute__(cls, "__mro__"):
        message = f"{title}: {cls.__name__} is another kind of class; {wanted}"
        raise PluginError(message, code="P03", fix="register it under the kind it implements")
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        message = f"{title}: {cls.__name__} leaves out {', '.join(missing)}"
        raise PluginError(message, code="P03", fix=f"{interface.__name__} asks for each of them")
    return cls
