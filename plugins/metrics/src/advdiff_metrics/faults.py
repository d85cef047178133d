"""Refusals of a metric's settings, with the key they are about."""

from __future__ import annotations

from advdiff_core.errors import Fault, RecipeError
from advdiff_core.interfaces.component import Build

__all__ = ["refused"]


def refused(build: Build, key: str, message: str, fix: str = "") -> RecipeError:
    """The error for one key of a metric's table.

    Args:
        build: What the metric was told.
        key: Key of its table.
        message: What was found and wanted.
        fix: The mend.
    """
    return RecipeError([Fault(code="R10", key=f"{build.path}.{key}", message=message, fix=fix)])
