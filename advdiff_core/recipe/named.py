"""A component named outside a recipe: by an option of the command line, or from Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import evolve

from advdiff_core.discovery import Catalogue, scan
from advdiff_core.errors import Fault, RecipeError
from advdiff_core.recipe.components import read_component
from advdiff_core.recipe.layers import Layer, dotted
from advdiff_core.recipe.lines import Key
from advdiff_core.recipe.overrides import apply_overrides
from advdiff_core.recipe.problems import Mismatch
from advdiff_core.recipe.read import parse_text
from advdiff_core.recipe.structure import Structurer
from advdiff_core.settings import Spec

__all__ = ["named_component", "table_of_text"]


def named_component(
    kind: str,
    table: Mapping[str, Any],
    *,
    path: Key,
    option: str = "",
    catalogue: Catalogue | None = None,
) -> Spec:
    """The checked component that a table names, as a recipe would.

    Args:
        kind: Registry kind.
        table: `use` and settings.
        path: Key it is built under: its random numbers depend on it.
        option: Where it was written, for messages: "--attack", say.
        catalogue: What is installed; scanned if left out.

    Raises:
        RecipeError: With every fault of it.
    """
    reader = Structurer(catalogue or scan())
    try:
        with reader.inside(path=path, kind=kind):
            return read_component(reader, kind, table, None)[0]
    except Mismatch as error:
        faults = [
            Fault(
                code=one.code, file=option, key=dotted(one.path), message=one.message,
                fix=one.fix, plugin=one.plugin,
            )
            for one in error.problems
        ]  # fmt: skip
        raise RecipeError(faults) from None


def table_of_text(text: str, settings: Sequence[str] = (), *, option: str) -> dict[str, Any]:
    """The table that an option means: a name, or an inline table `{use = "pgd", steps = 40}`.

    Args:
        text: The option's value.
        settings: Texts `key=value` that are set in it, as by `-s`.
        option: Name of the option, for messages.

    Raises:
        RecipeError: R02 or R16 if it cannot be parsed.
    """
    table: Any = {"use": text}
    if text.lstrip().startswith("{"):
        table = _told(option, lambda: parse_text(f"v = {text}", option).data["v"])
    made = _told("-A", lambda: apply_overrides(Layer({"v": table}), _inside(settings)))
    found: dict[str, Any] = made.data["v"]
    return found


def _inside(settings: Iterable[str]) -> list[str]:
    return [f"v.{one}" for one in settings]


def _told(option: str, read: Any) -> Any:
    """What `read` returns; its faults name the option they were found in."""
    try:
        return read()
    except RecipeError as error:
        faults = [
            evolve(
                one, file=option, line=0, message=one.message.replace("'v.", "'"),
                fix=one.fix.replace("-s ", "-A "),
            )
            for one in error.faults
        ]  # fmt: skip
        raise RecipeError(faults) from None
