"""Weights of a role out of a checkpoint, without the run that made it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import frozen
from torch import Tensor

from advdiff_core.engine import manifest as layout
from advdiff_core.engine.best import best_checkpoint, names_best
from advdiff_core.engine.manifest import newest_valid
from advdiff_core.engine.sharding import SHARDED
from advdiff_core.engine.state_codec import decode
from advdiff_core.engine.stored import read_shared, read_state, read_tensors
from advdiff_core.errors import DataError, nearest

__all__ = ["Weights", "find_checkpoint", "read_weights", "roles_in"]

_SHOWN = 5


@frozen(kw_only=True)
class Weights:
    """Weights of one role, read without building anything.

    Attributes:
        tensors: Parameters and buffers by name.
        path: Checkpoint they came from.
        nimg: Images seen.
        skipped: `(path, reason)` of newer checkpoints that are damaged; to be shown.
    """

    tensors: dict[str, Tensor]
    path: Path
    nimg: int
    skipped: tuple[tuple[Path, str], ...] = ()


def find_checkpoint(path: Path | str) -> tuple[Path, tuple[tuple[Path, str], ...]]:
    """The checkpoint meant by a run folder, a folder of checkpoints, or a checkpoint folder.

    `best` in a run or its folder of checkpoints stands for what `[validate]` found.

    Returns:
        Its folder, and the newer ones that were skipped with the reason why, which must be shown.

    Raises:
        DataError: S02 if there is none that is whole, with the reasons.
    """
    path = Path(path)
    if (path / layout.COMMIT).exists() or (path / layout.MANIFEST).exists():
        return path, ()
    if names_best(path):
        return best_checkpoint(path.parent), ()
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found, skipped = newest_valid(root)
    if found is None:
        reasons = "; ".join(reason for _, reason in skipped[:_SHOWN]) or "there is none"
        raise DataError(f"no usable checkpoint: {reasons}", code="S02", where=str(path))
    return found, tuple(skipped)


def roles_in(path: Path | str) -> tuple[str, ...]:
    """Names of the roles whose weights a run or a checkpoint holds, sorted.

    Args:
        path: As for `read_weights`.

    Raises:
        DataError: As `load`.
    """
    found, _ = find_checkpoint(path)
    tree = read_state(found, layout.read_manifest(found))["shared"]
    return tuple(sorted(tree.get("models", {})))


def read_weights(path: Path | str, role: str, *, ema: int | None = None) -> Weights:
    """Read the weights of one role, raw or averaged, from a run or a checkpoint.

    Args:
        path: Run folder, folder of checkpoints, or checkpoint folder.
        role: Model role, for example "student".
        ema: Number of the average, from 0; None or -1 for the raw weights.

    Raises:
        DataError: As `load`; S12 if there is no such role or average.
    """
    found, skipped = find_checkpoint(path)
    manifest = layout.read_manifest(found)
    state = read_state(found, manifest)
    branch = _branch(state["shared"], role, ema, str(found))
    if SHARDED in state["shared"]:
        weights = _branch(read_shared(found, manifest, state), role, ema, str(found))
    else:
        tensors = read_tensors(found, manifest, layout.SHARED)
        weights = decode(branch, tensors, where=str(found / layout.SHARED))
    plain = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    return Weights(tensors=plain, path=found, nimg=manifest.nimg, skipped=skipped)


def _branch(tree: dict[str, Any], role: str, ema: int | None, where: str) -> Any:
    """The part of the shared tree that holds the weights asked for."""
    raw = ema is None or ema < 0
    group = "models" if raw else "ema"
    roles = tree.get(group, {})
    if role not in roles:
        near = nearest(role, roles)
        fix = f"did you mean {near!r}?" if near else f"it has {', '.join(sorted(roles)) or 'none'}"
        what = "model" if raw else "average of a model"
        raise DataError(f"holds no {what} named {role!r}", code="S12", where=where, fix=fix)
    if raw:
        return roles[role]
    if ema is not None and ema < len(roles[role]):
        return roles[role][ema]
    message = f"{role} has {len(roles[role])} averages, numbered from 0, and no number {ema}"
    raise DataError(message, code="S12", where=where)
