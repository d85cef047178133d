"""Keys of foreign attacks: the arguments of their constructors, with types from their defaults."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import types
import typing
import warnings
from collections.abc import Collection, Mapping
from typing import Any, Union

import attrs

from advdiff_core.errors import nearest
from advdiff_core.settings import setting

__all__ = ["RESERVED", "absence", "foreign", "settings_of", "unknown"]

#: Arguments that the budget, the victim and the generator decide.
RESERVED = frozenset((
    "attacks", "constraint", "device", "distance", "eps", "logger", "max_epsilon", "model",
    "n_classes", "norm", "seed", "tensorboard", "verbose", "variant",
))  # fmt: skip

_PLAIN = (bool, int, float, str)


def absence(package: str) -> str:
    """Why a package cannot be used, with what to install; "" if it can."""
    if importlib.util.find_spec(package) is not None:
        return ""
    return f'{package} is not installed: pip install "advdiff-attacks[{package}]"'


def foreign(package: str) -> Any:
    """The package, imported.

    Raises:
        ValueError: If it is missing; the message says what to install.
    """
    if complaint := absence(package):
        raise ValueError(complaint)
    with warnings.catch_warnings():
        # Theirs, about old names of NumPy and SciPy.
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module(package)


def unknown(package: str, name: str | None, known: Collection[str], refused: str = "") -> str:
    """Why there is no attack `name`, with the nearest one; "" if there is."""
    if refused:
        return f"{package}.{name} cannot be used: {refused}"
    if name in known:
        return ""
    near = nearest(name or "", known)
    hint = f"did you mean {near!r}? " if near else ""
    return f"{package} has no attack {name!r}; {hint}there are {', '.join(sorted(known))}"


@functools.cache
def settings_of(package: str, name: str, made: Any) -> type[Any]:
    """A Settings class with the numbers, switches and texts of a constructor's signature.

    Other arguments, and those that the budget decides, keep the defaults of the package.

    Args:
        package: Where it is from.
        name: The attack.
        made: Its class.
    """
    hints = _hints(made)
    fields: dict[str, Any] = {}
    for key, parameter in inspect.signature(made).parameters.items():
        kind = _kind(parameter, hints.get(key))
        if key in RESERVED or kind is None:
            continue
        words = f"argument of {package}.{name}"
        default = parameter.default
        field = setting(help=words) if default is inspect.Parameter.empty else setting(
            default, help=words
        )  # fmt: skip
        # make_class reads no annotation.
        field.type = kind
        fields[key] = field
    doc = f'Keys of `use = "{package}:{name}"`: the arguments of the attack.'
    body = {"variant": name, "__doc__": doc}
    return attrs.make_class("Settings", fields, frozen=True, kw_only=True, class_body=body)


def _hints(made: Any) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(made.__init__)
    except (NameError, TypeError):
        return {}


def _kind(parameter: inspect.Parameter, hint: Any) -> Any:
    """The type of a key; None if a recipe cannot write the argument."""
    default = parameter.default
    options = _options(hint)
    if default is None or default is inspect.Parameter.empty:
        chosen = next((one for one in (int, float, str, bool) if one in options), None)
        return chosen | None if chosen and default is None else chosen
    if isinstance(default, tuple) and default and all(type(one) in (int, float) for one in default):
        return types.GenericAlias(tuple, (type(default[0]), ...))
    # Without an annotation nobody knows whether `c = 1` means a whole number.
    if type(default) is int:
        return int if options == {int} else int | float
    return type(default) if type(default) in _PLAIN else None


def _options(hint: Any) -> set[Any]:
    many = typing.get_origin(hint) in (Union, types.UnionType)
    return set(typing.get_args(hint)) - {type(None)} if many else {hint}
