"""The network that weights are imported for, by its name alone or as a role of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from advdiff_core.discovery import Catalogue
from advdiff_core.engine.assemble import bare_role
from advdiff_core.engine.importing.run import Target
from advdiff_core.engine.parts import make
from advdiff_core.errors import RecipeError, UsageError, nearest
from advdiff_core.interfaces.backbone import Backbone
from advdiff_core.interfaces.component import Build
from advdiff_core.recipe.layers import Layer
from advdiff_core.recipe.overrides import apply_overrides
from advdiff_core.recipe.problems import Mismatch, as_fault
from advdiff_core.recipe.recipe import Recipe, plain
from advdiff_core.recipe.schema import Model
from advdiff_core.recipe.structure import Structurer
from advdiff_core.settings import Spec
from advdiff_core.types import DataInfo

__all__ = ["named_target", "role_target"]

_PATH = ("models", "imported")
#: log(sigma) / 4 from EDM's smallest to its largest sigma, and the index of discrete schedules.
_LOG_SIGMA = (-1.55, 1.1)
_INDEX = (0.0, 1000.0)


def named_target(
    use: str, overrides: Sequence[str], data: DataInfo, catalogue: Catalogue
) -> Target:
    """A backbone by its name and settings.

    Args:
        use: Name, as after `use =` in a recipe.
        overrides: `key=value` texts of its table `[models.<role>]`.
        data: What its inputs are.
        catalogue: What is installed.

    Raises:
        RecipeError: With every fault of name and settings.
        PluginError: P13 if it cannot be built.
    """
    layer = Layer({"models": {"imported": {"use": use}}}, {})
    layer = apply_overrides(layer, [f"{'.'.join(_PATH)}.{text}" for text in overrides])
    reader = Structurer(catalogue)
    try:
        model = reader.table(Model, layer.data["models"]["imported"], _PATH, "backbone")
    except Mismatch as error:
        raise RecipeError([as_fault(one, layer.places) for one in error.problems]) from None
    log_sigma = model.c_noise == "log-sigma" or model.parametrization == "edm"
    c_noise = _LOG_SIGMA if log_sigma else _INDEX
    build = Build(path=".".join(_PATH), data=data, c_noise=c_noise)
    network = cast("Backbone", make(model.spec, build))
    denoiser = False if model.parametrization == "none" else None
    return _target(network, model.spec, build, data, denoiser)


def role_target(recipe: Recipe, role: str) -> Target:
    """The network of a role of a recipe, on the recipe's own data.

    Raises:
        UsageError: If there is no such role, or it is no backbone.
        AdvdiffError: If its data or itself cannot be built.
    """
    if role not in recipe.models:
        near = nearest(role, recipe.models)
        known = ", ".join(recipe.models)
        fix = f"did you mean {near!r}?" if near else f"it has {known}"
        raise UsageError(f"the recipe has no role {role!r}", where="--role", fix=fix)
    model = recipe.models[role]
    if model.kind != "backbone":
        message = f"{role!r} is of kind {model.kind}, wanted a backbone"
        raise UsageError(message, where="--role", fix="choose another role")
    network, build = bare_role(recipe, role)
    assert build.data is not None
    denoiser = model.parametrization != "none"
    return _target(cast("Backbone", network), model.spec, build, build.data, denoiser)


def _target(
    network: Backbone, spec: Spec, build: Build, data: DataInfo, denoiser: bool | None
) -> Target:
    return Target(
        network=network, settings=plain(spec), data=data, c_noise=build.c_noise,
        denoiser=denoiser, owner=f"{spec.distribution} {spec.version}".strip(),
    )  # fmt: skip
