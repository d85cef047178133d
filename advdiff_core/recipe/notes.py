"""Warnings: values that are legal and probably not meant (R14), with an estimate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from advdiff_core.recipe.problems import Problem
from advdiff_core.recipe.recipe import Recipe
from advdiff_core.settings import Spec

__all__ = ["notes_on"]

#: Steps a day at ten a second, times a year: nobody waits longer.
MANY_STEPS = 300_000_000
MANY_IMAGES = 2**20
MANY_STEPS_PER_SECOND = 10
HUGE = 100_000


def notes_on(recipe: Recipe) -> Iterator[Problem]:
    """What a user should look at before starting this run."""
    yield from _length(recipe)
    yield from _never(recipe)
    yield from _seldom(recipe)
    for spec in recipe.specs():
        yield from _huge(spec)
    yield from _untrained(recipe)
    yield from _still(recipe)


def _note(path: tuple[str | int, ...], message: str, fix: str) -> Problem:
    return Problem(path=path, code="R14", message=message, fix=fix)


def _length(recipe: Recipe) -> Iterator[Problem]:
    run = recipe.run
    steps = run.images / run.batch
    if steps > MANY_STEPS:
        years = steps / MANY_STEPS_PER_SECOND / (365 * 24 * 3600)
        message = f"{run.images:,} images are {steps:,.0f} steps, {years:,.0f} years at 10 a second"
        yield _note(("run", "images"), message, "images counts images, not epochs or kimg")
    if run.batch > MANY_IMAGES:
        message = f"{run.batch:,} images in one batch, the run has {run.images:,}"
        yield _note(("run", "batch"), message, "few machines hold it; see advdiff plan")


def _never(recipe: Recipe) -> Iterator[Problem]:
    for name, term in recipe.terms.items():
        if term.after >= recipe.run.images:
            end = recipe.run.images
            message = f"the term begins after {term.after:,} images, the run ends at {end:,}"
            yield _note(("terms", name, "after"), message, "it never counts")
            continue
        last = min(recipe.run.images, term.until or recipe.run.images)
        if term.after + term.ramp > last:
            message = f"the weight rises until {term.after + term.ramp:,} images, the term ends at"
            yield _note(("terms", name, "ramp"), f"{message} {last:,}", "it never weighs in full")


def _seldom(recipe: Recipe) -> Iterator[Problem]:
    """Validation that has nothing to choose between."""
    table = recipe.validate
    if table is not None and table.every > recipe.run.images:
        message = f"measured every {table.every:,} images, the run has {recipe.run.images:,}"
        yield _note(("validate", "every"), message, "it is measured at its ends alone")


def _huge(spec: Spec) -> Iterator[Problem]:
    """Sizes of components far above anything that was ever trained."""
    for one in attrs.fields(type(spec.settings)):
        value: Any = getattr(spec.settings, one.name)
        counts = type(value) is int and one.metadata.get("unit", "") == ""
        if counts and value > HUGE and "seed" not in one.name:
            message = f"{one.alias} = {value:,} is far above what is usual"
            path = (*_split(spec.path), one.alias)
            yield _note(path, message, "check the number; see advdiff plan for what it costs")


def _split(path: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in path.split(".")]


def _untrained(recipe: Recipe) -> Iterator[Problem]:
    trained = {role for player in recipe.players.values() for role in player.models}
    for role, model in recipe.models.items():
        brings = getattr(model.spec.settings, "brings_weights", False)
        given = brings or model.follow is not None or model.init is not None
        if role not in trained and model.kind == "backbone" and not given:
            message = f"the model {role!r} is trained by no player and starts from random weights"
            yield _note(("models", role), message, "give it init = ..., or a player")


def _still(recipe: Recipe) -> Iterator[Problem]:
    """Free perturbations that nobody moves."""
    passes: dict[str, int] = {}
    for player in recipe.players.values():
        for seen in {name for term in player.terms for name in _views_of(recipe, term)}:
            passes[seen] = max(passes.get(seen, 0), player.passes)
    for name, view in recipe.views.items():
        if getattr(view.perturb.component, "free", False) and passes.get(name) == 1:
            message = "a free perturbation starts at 0 and moves between passes: with one it stays"
            yield _note(("views", name, "perturb"), message, "set passes = 3 in the player's table")


def _views_of(recipe: Recipe, term: str) -> Iterator[str]:
    """The views that a term names, and those they are made from."""
    made = recipe.terms[term].spec.settings
    for one in attrs.fields(type(made)):
        name = getattr(made, one.name) if one.metadata.get("ref") == "view" else ""
        while name in recipe.views:
            yield name
            name = recipe.views[name].base
