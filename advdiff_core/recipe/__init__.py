"""Recipes: what a run is made of, read from TOML and checked. Imports no torch by itself.

Names are resolved on first use, so that reading a recipe's text does not load what checks it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advdiff_core.recipe.load import (
        check_recipe,
        load_recipe,
        loads_recipe,
        recipe_from_dict,
    )
    from advdiff_core.recipe.lock import lock_table, lock_text
    from advdiff_core.recipe.recipe import LANGUAGE, Recipe

__all__ = [
    "LANGUAGE",
    "Recipe",
    "check_recipe",
    "load_recipe",
    "loads_recipe",
    "lock_table",
    "lock_text",
    "recipe_from_dict",
]

_HOME = {
    "LANGUAGE": "recipe",
    "Recipe": "recipe",
    "check_recipe": "load",
    "load_recipe": "load",
    "loads_recipe": "load",
    "lock_table": "lock",
    "lock_text": "lock",
    "recipe_from_dict": "load",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use (PEP 562)."""
    if name not in _HOME:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
