"""Values for keys without default, guessed from type, bounds and choices."""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin

import attrs

from advdiff_core.discovery import Catalogue
from advdiff_core.discovery.contract import field_types
from advdiff_core.errors import PluginError
from advdiff_core.settings import Spec

__all__ = ["NoGuessError", "guessed", "number_inside"]

#: References of a component that names none.
_NAMES = {"role": "student", "view": "clean", "player": "student"}


class NoGuessError(Exception):
    """A key whose value only its author can know."""


def guessed(
    one: attrs.Attribute[Any], cls: type[Any], owner: type[Any], catalogue: Catalogue
) -> Any:
    """A value for a key, as a recipe writes it.

    Args:
        one: The key.
        cls: The Settings class it belongs to.
        owner: The component.
        catalogue: Where a nested component is found.

    Raises:
        NoGuessError: If only the author can know one, for example of a path.
    """
    hint = field_types(cls, owner)[one.name]
    return _value(hint, one.metadata, catalogue)


def _value(hint: Any, metadata: Any, catalogue: Catalogue) -> Any:
    if metadata.get("ref") in _NAMES:
        return _NAMES[metadata["ref"]]
    if metadata.get("choices"):
        return metadata["choices"][0]
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return parts[0]
    if origin in (Union, types.UnionType):
        return _value(next(p for p in parts if p is not type(None)), metadata, catalogue)
    if origin is tuple:
        wanted = parts[:1] * 2 if parts[-1] is ... else parts
        return [_value(part, metadata, catalogue) for part in wanted]
    if hint is Spec:
        return _nested(metadata["kind"], catalogue)
    if hint is bool:
        return False
    if hint in (int, float):
        return number_inside(metadata.get("bounds") or {}, whole=hint is int)
    message = f"a {getattr(hint, '__name__', hint)}"
    raise NoGuessError(message)


def number_inside(bounds: Any, *, whole: bool) -> int | float:
    """A number within bounds, small but not zero where it can be."""
    low = bounds.get("ge", bounds.get("gt"))
    high = bounds.get("le", bounds.get("lt"))
    if low is None and high is None:
        return 1 if whole else 0.5
    if whole:
        number = 1 if low is None else int(low) + 1
        top = number if high is None else int(high) - ("lt" in bounds)
        return min(number, top)
    if low is None:
        return float(high) - 0.5
    return float(low) + 0.5 if high is None else (float(low) + float(high)) / 2


def _nested(kind: str, catalogue: Catalogue) -> dict[str, Any]:
    """The first installed component of a kind that needs no settings."""
    for entry in catalogue.of_kind(kind):
        try:
            cls = catalogue.load(entry)
        except PluginError:
            continue
        needs = [one for one in attrs.fields(cls.Settings) if one.default is attrs.NOTHING]
        if not needs and not cls.variants:
            return {"use": entry.qualified}
    message = f"a nested {kind}, and none is installed that needs no settings"
    raise NoGuessError(message)
