"""The recipe of each point, all of them checked before anything is run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from advdiff_core.discovery import scan
from advdiff_core.errors import Fault, RecipeError, UsageError
from advdiff_core.recipe import load_recipe
from advdiff_core.recipe.recipe import Recipe
from advdiff_core.sweep.grid import SEED, WHERE, Axis, Point

__all__ = ["recipes_of", "with_seeds"]


def with_seeds(axes: Sequence[Axis], count: int, path: Path) -> tuple[Axis, ...]:
    """The axes and, fastest of all, so many seeds from the recipe's own on.

    Raises:
        UsageError: If the seed is given among the axes.
        RecipeError: If the first recipe has faults.
    """
    if any(axis.key == SEED for axis in axes):
        fix = f"leave one of them out; -s {SEED}=1,2,3 names seeds one by one"
        raise UsageError(f"--seeds and -s {SEED} contradict", where=WHERE, fix=fix)
    first = load_recipe(path, [f"{axis.key}={axis.values[0]}" for axis in axes]).run.seed
    return (*axes, Axis(key=SEED, values=tuple(str(first + n) for n in range(count))))


def recipes_of(path: Path, points: Sequence[Point]) -> list[tuple[Point, Recipe]]:
    """Each point with its recipe.

    Args:
        path: The recipe that all begin with.
        points: The points.

    Raises:
        RecipeError: With every fault of every recipe, each once.
        UsageError: If two points mean the same run.
    """
    catalogue = scan()
    found: list[tuple[Point, Recipe]] = []
    faults: dict[Fault, None] = {}
    for point in points:
        overrides = [*point.overrides, f"run.name={point.name}"]
        try:
            found.append((point, load_recipe(path, overrides, catalogue)))
        except RecipeError as error:
            faults.update(dict.fromkeys(error.faults))
    if faults:
        raise RecipeError(faults)
    _refuse_twins(found)
    return found


def _refuse_twins(found: Sequence[tuple[Point, Recipe]]) -> None:
    seen: dict[str, Point] = {}
    for point, recipe in found:
        twin = seen.setdefault(recipe.recipe_hash, point)
        if twin is not point:
            message = f"{twin.name} and {point.name} are the same run"
            fix = "give each value once, and no key that the others make meaningless"
            raise UsageError(message, where=WHERE, fix=fix)
