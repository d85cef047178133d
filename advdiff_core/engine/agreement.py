"""Processes that train together have to do the same: what is compared before the first step."""

from __future__ import annotations

import hashlib
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from advdiff_core.engine import strict_json
from advdiff_core.engine.assemble import Experiment
from advdiff_core.engine.distributed import World
from advdiff_core.errors import DataError
from advdiff_core.recipe import Recipe

__all__ = ["agree_on_work", "work_of"]

_MENDS = {
    "recipe": "start every process with the same recipe and overrides",
    "data": "let every machine read the same data",
    "initial weights": "let every machine read the same files",
    "run": "start every process with the same --resume, or none",
}


def agree_on_work(experiment: Experiment, world: World, *, resume: Path | None = None) -> None:
    """Compare recipe, code, versions, data and initial weights of all processes.

    Args:
        experiment: What this process has built.
        world: The processes.
        resume: The run it is to go on with.

    Raises:
        DataError: X05 naming the first difference and the process; the same on all.
    """
    if world.size == 1:
        return
    texts = world.gather(strict_json.dumps(work_of(experiment, resume)).decode())
    found = [strict_json.loads(text.encode(), where="the processes") for text in texts]
    for rank, other in enumerate(found):
        for key, value in found[0].items():
            if other[key] != value:
                message = f"{key} differs: {value!r} in process 0, {other[key]!r} in process {rank}"
                fix = _MENDS.get(key, "install the same on every machine")
                raise DataError(message, code="X05", where=f"process {rank}", fix=fix)


def work_of(experiment: Experiment, resume: Path | None) -> dict[str, Any]:
    """What decides on what a process learns, as plain values."""
    recipe = experiment.recipe
    return {
        "recipe": recipe.recipe_hash[:16],
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "plugins": ", ".join(_plugins(recipe)),
        "code": _digest_of_code(recipe),
        "data": str(experiment.source.fingerprint)[:16],
        "initial weights": {
            role: found.get("sha256", "")[:16] for role, found in experiment.inits.items()
        },
        "run": "" if resume is None else resume.name,
        "batches": _how_computed(experiment),
    }


def _how_computed(experiment: Experiment) -> str:
    compute = experiment.scene.compute
    return f"{compute.device.type}, {compute.autocast or 'full precision'}"


def _plugins(recipe: Recipe) -> list[str]:
    return sorted({f"{spec.distribution} {spec.version}".strip() for spec in recipe.specs()})


def _digest_of_code(recipe: Recipe) -> str:
    """Digest of the sources of the core and of every plugin that the recipe uses.

    Two checkouts of one version differ in nothing else.
    """
    packages = {"advdiff_core"} | {
        spec.component.__module__.partition(".")[0] for spec in recipe.specs()
    }
    digest = hashlib.sha256()
    for name in sorted(packages):
        home = Path(str(sys.modules[name].__file__)).parent
        single = Path(str(sys.modules[name].__file__)).name != "__init__.py"
        files = [] if single else sorted(home.rglob("*.py"))
        for path in files:
            digest.update(f"{name}/{path.relative_to(home)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
