"""Processes that train together have to do the same: what is compared before the first step."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advdiff_core.engine import strict_json
from advdiff_core.engine.assemble import Experiment
from advdiff_core.engine.distributed import World
from advdiff_core.errors import DataError
from advdiff_core.recipe import Recipe

__all__ = ["agree_on_work", "apart", "work_of"]

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


def apart(shared: Mapping[str, Any], world: World) -> str:
    """What processes hold of a state that they should share, where they differ; "" if nowhere.

    Compares a hash of each tensor: one pass over the state, as saving takes several.

    Args:
        shared: The state.
        world: The processes; all of them call this.
    """
    if world.size == 1:
        return ""
    mine = json.dumps(dict(_hashes(shared)))
    hashes = [json.loads(text) for text in world.gather(mine)]
    for rank, other in enumerate(hashes):
        names = [name for name, number in hashes[0].items() if other.get(name) != number]
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            return f"process {rank} holds another {names[0]}{more} than process 0"
    return ""


def _hashes(value: Any, place: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(value, Tensor):
        if value.numel():
            yield place, _hash(value.detach())
    elif isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, one in items:
            yield from _hashes(one, f"{place}.{key}".lstrip("."))


def _hash(tensor: Tensor) -> int:
    """Exclusive or of all numbers of a tensor [...], as torch computes it where it can."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    elif tensor.is_floating_point() and tensor.element_size() == 1:
        tensor = tensor.view(torch.uint8)
    return int(torch.hash_tensor(tensor).item())


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
