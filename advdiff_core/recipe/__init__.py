"""Recipes: what a run is made of, read from TOML and checked. Imports no torch by itself."""

from advdiff_core.recipe.load import check_recipe, load_recipe, loads_recipe, recipe_from_dict
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
