"""Settings of components: how a plugin declares its keys, their bounds, units and help.

Free of torch: `advdiff explain`, the recipe loader and the documentation read settings without it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs
from attrs import NOTHING, Attribute, frozen

__all__ = ["Spec", "bounds_text", "setting", "settings"]

T = TypeVar("T")

#: Decorator of a Settings class: frozen, keyword-only attrs.
settings = attrs.frozen(kw_only=True)


@frozen(kw_only=True)
class Spec:
    """A component named by a recipe, with its checked settings, not yet built.

    A Settings field of type `Spec`, `Spec | None` or `tuple[Spec, ...]` declared with
    `setting(kind="attack")` holds a nested component table such as `{ use = "pgd", steps = 3 }`.

    Attributes:
        kind: Registry kind, for example "attack".
        use: The name as the recipe wrote it, for example "pgd" or "torch:AdamW".
        settings: Instance of the component's Settings class.
        component: The component class.
        distribution: Distribution that owns it.
        version: Version of that distribution.
        path: Dotted key of the table in the recipe.
    """

    kind: str
    use: str
    settings: Any
    component: type[Any]
    distribution: str = ""
    version: str = ""
    path: str = ""


def setting(  # noqa: PLR0913 - one keyword per property a key of a recipe can have.
    default: Any = NOTHING,
    *,
    help: str,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    choices: tuple[Any, ...] | None = None,
    unit: str = "",
    kind: str = "",
    ref: str = "",
    factory: Any = None,
    key: str = "",
    applies: tuple[str, tuple[Any, ...]] | None = None,
    safe: bool = False,
) -> Any:
    """Declare one key of a component's table.

    Args:
        default: Value when the recipe leaves the key out; required when not given.
        help: One line for `advdiff explain` and the reference.
        gt: Exclusive lower bound of a number.
        ge: Inclusive lower bound of a number.
        lt: Exclusive upper bound of a number.
        le: Inclusive upper bound of a number.
        choices: The allowed values.
        unit: Unit of a number, for example "images".
        kind: Registry kind of a nested component (type `Spec`).
        ref: What a string refers to: "view", "role" or "player"; checked against the recipe.
        factory: Makes a default that is itself mutable or a settings object.
        key: What the recipe calls it, where that is no Python name (the core's "from").
        applies: Another key of the table and the values of it under which this one means anything;
            a recipe that writes it beside another value is refused.
        safe: True if a resumed run may have another value (a length, a logging interval).
    """
    bounds = {k: v for k, v in (("gt", gt), ("ge", ge), ("lt", lt), ("le", le)) if v is not None}
    metadata = {
        "help": help, "bounds": bounds, "choices": choices, "unit": unit, "kind": kind, "ref": ref,
        "key": key, "applies": applies, "safe": safe,
    }  # fmt: skip
    if factory is not None:
        return attrs.field(factory=factory, metadata=metadata, validator=_check)
    return attrs.field(default=default, metadata=metadata, validator=_check)


def _check(_: Any, attribute: Attribute[Any], value: Any) -> None:
    complaint = bounds_text(attribute.metadata, value)
    if complaint:
        message = f"{attribute.name}: {complaint}"
        raise ValueError(message)


def bounds_text(metadata: Mapping[str, Any], value: Any) -> str:
    """Why `value` (or an entry of it) breaks bounds or choices in `metadata`; "" if it does not."""
    if value is None:
        return ""
    if isinstance(value, tuple):
        return next((text for text in (bounds_text(metadata, v) for v in value) if text), "")
    choices = metadata.get("choices")
    if choices and value not in choices:
        return f"{value!r} is not one of {', '.join(map(repr, choices))}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if value != value or value in (float("inf"), float("-inf")):
        return f"{value} is not a finite number"
    return _out_of_bounds(metadata.get("bounds") or {}, value)


_RULES: dict[str, tuple[Callable[[float, float], bool], str]] = {
    "gt": (operator.gt, "must be above"),
    "ge": (operator.ge, "must be at least"),
    "lt": (operator.lt, "must be below"),
    "le": (operator.le, "must be at most"),
}


def _out_of_bounds(bounds: Mapping[str, float], value: float) -> str:
    for rule, limit in bounds.items():
        holds, words = _RULES[rule]
        if not holds(value, limit):
            return f"{value} {words} {limit}"
    return ""
