"""The recipe of a finished run, with what may be changed to measure it in another way."""

from __future__ import annotations

from collections.abc import Sequence

from advdiff_core.engine.rundir import RunDir
from advdiff_core.errors import DataError
from advdiff_core.recipe import Recipe, load_recipe
from advdiff_core.recipe.changes import changes

__all__ = ["reopened"]

#: Tables that say nothing of what was learnt.
_FREE = ("evaluate", "run", "sample")


def reopened(rundir: RunDir, overrides: Sequence[str] = ()) -> tuple[Recipe, frozenset[str]]:
    """The recipe, and the names of frozen models that the overrides add to those of the run.

    Args:
        rundir: The run.
        overrides: `key=value` texts: sampling, evaluation, machine, and frozen models with weights
            from elsewhere.

    Raises:
        DataError: R15 if they change what the run has learnt, or with what.
        RecipeError: If the recipe is not sound with them.
    """
    recipe = load_recipe(rundir.recipe_lock, overrides)
    if not overrides:
        return recipe, frozenset()
    frozen = load_recipe(rundir.recipe_lock)
    added = frozenset(
        name
        for name, model in recipe.models.items()
        if name not in frozen.models and model.frozen and model.init is not None
    )
    free = {f"models.{name}" for name in added}
    for key, old, new in changes(frozen, recipe):
        if key not in free and key.partition(".")[0] not in _FREE:
            message = f"{key} was {old!r} when the run began and is {new!r} now"
            fix = "set keys of evaluate and sample, or add a frozen model with init"
            raise DataError(message, code="R15", where=str(rundir.path), fix=fix)
    return recipe, added
