"""Whether the roles, views and taps that queries name exist and are of the right kind."""

from __future__ import annotations

from typing import Any

from advdiff_core.errors import Fault, RecipeError
from advdiff_core.interfaces.query import Query, Setup
from advdiff_core.step.queries import EpsHat, Features, Forward, Scores, Target, View, X0Hat

__all__ = ["check_names"]

_KINDS: tuple[tuple[type[Query[Any]], str], ...] = (
    (Forward, "backbone"),
    (Features, "backbone"),
    (Scores, "discriminator"),
    (Target, "alignment_target"),
)


def check_names(query: Query[Any], setup: Setup) -> None:
    """Refuse a query for something the recipe does not have.

    Raises:
        RecipeError: R10, naming query, what it asks for, and what there is.
    """
    role, view = getattr(query, "role", None), getattr(query, "view", None)
    view = query.name if isinstance(query, View) else view
    if isinstance(role, str) and role not in setup.models:
        known = ", ".join(setup.models) or "none"
        _refuse(f"{query!r} asks for the model {role!r}; the recipe has {known}", f"models.{role}")
    if isinstance(view, str) and view not in setup.views:
        known = ", ".join(setup.views)
        _refuse(f"{query!r} asks for the view {view!r}; the recipe has {known}", f"views.{view}")
    if isinstance(role, str):
        _check_kind(query, role, setup)
    if isinstance(query, Features) and query.tap not in setup.models[query.role].taps:
        taps = ", ".join(setup.models[query.role].taps) or "none"
        message = f"model {query.role!r} has no tap {query.tap!r}; it has {taps}"
        _refuse(message, f"models.{query.role}", "choose one of these")


def _check_kind(query: Query[Any], role: str, setup: Setup) -> None:
    info = setup.models[role]
    wanted = next((kind for cls, kind in _KINDS if isinstance(query, cls)), info.kind)
    if info.kind != wanted:
        message = f"{query!r} needs a {wanted}, but model {role!r} is a {info.kind}"
        _refuse(message, f"models.{role}", f'name a model with kind = "{wanted}"')
    if not isinstance(query, EpsHat | X0Hat):
        return
    if info.parametrization == "none":
        message = f"{query!r} needs a denoiser, but model {role!r} has no parametrization"
        _refuse(message, f"models.{role}", "give that model a parametrization")
    if setup.views[query.view].root != "clean":
        message = f"{query!r} needs a noised sample, but {query.view!r} is a view of images"
        _refuse(message, f"views.{query.view}", "name the view clean, or one made from it")


def _refuse(message: str, key: str, fix: str = "") -> None:
    raise RecipeError([Fault(code="R10", key=key, message=message, fix=fix or f"declare [{key}]")])
