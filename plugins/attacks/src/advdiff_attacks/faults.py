"""Refusals of settings, as the recipe's other faults are told."""

from __future__ import annotations

from advdiff_core import Build, Fault, RecipeError

__all__ = ["refusal"]


def refusal(build: Build, key: str, message: str, fix: str) -> RecipeError:
    """R10 at a key of the component's table.

    Args:
        build: Of the component.
        key: Key within its table.
        message: What is wrong.
        fix: What to write instead.
    """
    return RecipeError([Fault(code="R10", key=f"{build.path}.{key}", message=message, fix=fix)])
