"""Initial weights of a model role: out of a run, an imported model, or a safetensors file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advdiff_core.engine.checkpoint import match_state, read_weights
from advdiff_core.engine.importing.folder import FACTS, Imported, read_folder
from advdiff_core.engine.importing.golden import check_golden, moved_domain
from advdiff_core.engine.manifest import read_manifest
from advdiff_core.engine.safe_read import read_bytes
from advdiff_core.engine.tensor_file import load_tensors
from advdiff_core.engine.weights import roles_in
from advdiff_core.errors import DataError
from advdiff_core.interfaces.backbone import Backbone
from advdiff_core.recipe.recipe import plain
from advdiff_core.types import DataInfo, Domain

__all__ = ["load_init"]

_MAX_FILE = 2**40
_COUNTER = "num_batches_tracked"


def load_init(
    module: nn.Module, role: str, path: Path, data: DataInfo | None, *, key: str = ""
) -> dict[str, str]:
    """Give a module, on the CPU, the weights that `models.<role>.init` names.

    Args:
        module: The module.
        role: Its role.
        path: A run, a checkpoint or a folder of them: the first average of the same role, or its
            raw weights where it has none; a run of one role gives that one. A folder of
            `advdiff import`: its golden forward is run and compared. A safetensors file with the
            module's own names. Only what is `added` to a network may be missing.
        data: What its inputs are.
        key: Key of the recipe that names the path, if not `models.<role>.init`.

    Returns:
        What identifies the weights, for the lock file: path, kind, SHA-256.

    Raises:
        DataError: If they are missing, damaged, do not fit, or compute something else.
    """
    where = f"{key or f'models.{role}.init'} ({path})"
    if path.is_file():
        found = {"kind": "safetensors", "sha256": _from_file(module, path, where)}
    elif (path / FACTS).exists():
        found = _from_import(module, path, data, where)
    else:
        found = {"kind": "run", "sha256": _from_run(module, role, path, where)}
    return {"path": str(path), **found}


def _from_run(module: nn.Module, role: str, path: Path, where: str) -> str:
    roles = roles_in(path)
    name = roles[0] if len(roles) == 1 else role
    try:
        found = read_weights(path, name, ema=0)
    except DataError:
        found = read_weights(path, name)
    state = dict(module.named_parameters()) | dict(module.named_buffers())
    _copy(state, found.tensors, where, added=_added(module))
    return read_manifest(found.path).digest


def _from_file(module: nn.Module, path: Path, where: str) -> str:
    data = read_bytes(path, limit=_MAX_FILE)
    _copy(_saved(module), load_tensors(data, where=str(path)), where, added=_added(module))
    return hashlib.sha256(data).hexdigest()


def _from_import(
    module: nn.Module, path: Path, data: DataInfo | None, where: str
) -> dict[str, str]:
    imported = read_folder(path)
    _copy(_saved(module), imported.tensors, where, added=_added(module))
    golden = _run_golden(module, imported, data, where)
    return {"kind": "import", "sha256": imported.sha256, "golden": golden}


def _run_golden(module: nn.Module, imported: Imported, data: DataInfo | None, where: str) -> str:
    """Compare the golden forward, where the network takes inputs of its shape."""
    raw = imported.facts["data"]
    if not isinstance(module, Backbone) or data is None or list(data.shape) != raw["shape"]:
        return "not run: the data have another shape"
    before = None if raw["domain"] is None else Domain(*raw["domain"])
    golden = moved_domain(imported.golden, before, data.domain)
    changed = "; ".join(_changed(module, imported.facts))
    fix = f"it was imported with {changed}" if changed else "import the model again"
    check_golden(module, golden, where=where, fix=fix)
    return "equal"


def _changed(module: Backbone, facts: Mapping[str, Any]) -> Iterator[str]:
    """Settings and noise levels that the network has now and had not when it was imported."""
    before, now = facts["model"], plain(module.settings)
    for key in before:
        if key != "use" and before[key] != now.get(key):
            yield f"{key} = {before[key]!r}, not {now.get(key)!r}"
    levels, here = facts["c_noise"], list(module.build.c_noise)
    if levels != here:
        yield f"noise levels of {levels}, not {here}; --recipe takes those of a recipe"


def _saved(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.state_dict(keep_vars=True))


def _added(module: nn.Module) -> tuple[str, ...]:
    """Tensors that start without effect and that the weights may lack."""
    return module.added if isinstance(module, Backbone) else ()


def _copy(
    state: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    where: str,
    *,
    added: tuple[str, ...] = (),
) -> None:
    """Copy every tensor, cast to the module's data type.

    What only counts batches may be absent, and what was added to the network.
    """
    tensors = {n: t.to(state[n].dtype) if n in state else t for n, t in found.items()}
    spare = {n for n in state if n in added or n.endswith(f".{_COUNTER}")}
    kept = {n: t for n, t in state.items() if n not in found and n in spare}
    match_state(state, {**tensors, **kept}, where=where)
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)
