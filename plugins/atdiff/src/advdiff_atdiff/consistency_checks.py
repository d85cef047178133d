"""What every form of consistency model asks of a recipe."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

from advdiff_core import Build
from advdiff_core.interfaces.frozen_network import noise_at
from advdiff_core.interfaces.requirements import refuse

__all__ = ["base_view", "require_average", "require_denoiser", "require_teacher"]

#: Time, alpha and sigma at a few times.
_Noise = tuple[tuple[float, float, float], ...]


def base_view(keys: Any, build: Build) -> str:
    """The view below a perturbed one; the view itself where nothing moves it.

    Raises:
        RecipeError: R10 for a view of images, or if delta has nothing to move.
    """
    info = build.views.get(keys.view)
    if info is None:
        return str(keys.view)
    if info.root != "clean":
        message = f"{keys.view!r} is a view of images, which lie on no trajectory"
        refuse(build, "view", message, "name the view clean, or one made from it")
    if info.base is None and keys.moves != "student":
        message = f"{keys.moves!r} is to move, and {keys.view!r} is no perturbed view"
        refuse(build, "moves", message, 'name a view with from = "clean" and a perturbation')
    return info.base or keys.view


def require_denoiser(build: Build, key: str, role: str) -> None:
    """Refuse a role that predicts no noise.

    Raises:
        RecipeError: R10.
    """
    model = build.models.get(role)
    if model is not None and (model.kind != "backbone" or model.parametrization == "none"):
        message = f"model {role!r} is no denoiser"
        refuse(build, key, message, "name a backbone with a parametrization")


def require_average(build: Build, key: str, target: str, *, of: str) -> None:
    """Refuse a target network that is neither an average of a role nor that role.

    Raises:
        RecipeError: R10.
    """
    model = build.models.get(target)
    if model is None or target == of or model.follows == of:
        return
    message = f"model {target!r} is no average of {of!r}, nor that role itself"
    fix = f'write follow = {{ role = "{of}", rate = 0.95 }} in models.{target}'
    refuse(build, key, message, f'{fix}, or target = "{of}"')


def require_teacher(build: Build, key: str, role: str) -> None:
    """Refuse a teacher that is no denoiser, or that moves.

    Raises:
        RecipeError: R10.
    """
    require_denoiser(build, key, role)
    model = build.models.get(role)
    if model is not None and (not model.frozen or model.follows):
        message = f"model {role!r} is trained, and a teacher has to stay as it is"
        refuse(build, key, message, f"write frozen = true in models.{role}")
    _require_same_form(build, key, role)


def _require_same_form(build: Build, key: str, role: str) -> None:
    """Refuse weights that were trained to predict something else, or at other noise levels.

    Raises:
        RecipeError: R10.
    """
    network, model = build.networks.get(role), build.models.get(role)
    was = None if network is None else network.trained_as
    if was is None or model is None or build.schedule is None:
        return
    table = f"models.{role}"
    if was.parametrization != model.parametrization:
        message = f"{role!r} was trained to predict {was.parametrization!r}, and is read as "
        fix = f'write parametrization = "{was.parametrization}" in {table}'
        refuse(build, key, f"{message}{model.parametrization!r}", fix)
    if was.sigma_data != model.sigma_data:
        message = f"{role!r} was trained with sigma_data {was.sigma_data}, not {model.sigma_data}"
        refuse(build, key, message, f"write sigma_data = {was.sigma_data} in {table}")
    here = noise_at(build.schedule)
    if not _close(was.noise, here):
        message = f"{role!r} was trained at noise levels {_range(was.noise)}, those here are "
        fix = "write the [schedule] of the run that trained it"
        refuse(build, key, f"{message}{_range(here)}", fix)


def _close(one: _Noise, other: _Noise) -> bool:
    pairs = zip(chain(*one), chain(*other), strict=True)
    return all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in pairs)


def _range(noise: _Noise) -> str:
    """Noise levels sigma / alpha from the least to the largest, and the times they have."""
    ends = [f"{sigma / alpha:.4g} (t = {t:.4g})" for t, alpha, sigma in (noise[0], noise[-1])]
    return " to ".join(ends)
