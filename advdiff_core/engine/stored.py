"""Checked content of a checkpoint folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from advdiff_core.engine import manifest as layout
from advdiff_core.engine import strict_json
from advdiff_core.engine.manifest import Manifest
from advdiff_core.engine.sharding import PIECES, SHARDED, join
from advdiff_core.engine.state_codec import decode
from advdiff_core.engine.tensor_file import check_header, load_tensors
from advdiff_core.errors import DataError

__all__ = ["read_shared", "read_state", "read_tensors"]


def read_state(path: Path, manifest: Manifest) -> dict[str, Any]:
    """Read `state.json` and check what every reader relies on.

    Raises:
        DataError: S01, S02 or S15.
    """
    where = str(path / layout.STATE)
    data = layout.read_entry(path, layout.STATE, manifest.files[layout.STATE])
    state = strict_json.loads(data, where=where)
    kinds = (("shared", dict), ("ranks", list), ("meta", dict))
    if not isinstance(state, dict) or not all(
        isinstance(state.get(key), kind) for key, kind in kinds
    ):
        raise DataError("is not the state of a checkpoint", code="S15", where=where)
    if len(state["ranks"]) != manifest.world:
        raise DataError("does not hold the state of every process", code="S15", where=where)
    return state


def read_shared(path: Path, manifest: Manifest, state: Mapping[str, Any]) -> dict[str, Any]:
    """The state that all processes share, with the tensors whole that were shared out to them.

    Args:
        path: Folder of the checkpoint.
        manifest: Its manifest.
        state: What `read_state` returned.

    Raises:
        DataError: S01, S02, S12 or S15.
    """

    def tree(name: str, encoded: Any) -> dict[str, Any]:
        tensors = read_tensors(path, manifest, name)
        found: dict[str, Any] = decode(encoded, tensors, where=str(path / name))
        return found

    shared = tree(layout.SHARED, state["shared"])
    if SHARDED in shared:
        ranks = enumerate(state["ranks"])
        join(shared, [tree(layout.rank_file(rank), one)[PIECES] for rank, one in ranks])
    return shared


def read_tensors(path: Path, manifest: Manifest, name: str) -> dict[str, Tensor]:
    """Read one tensor file of a checkpoint, from the very bytes that were hashed.

    Raises:
        DataError: S01, S02, S12 or Q10.
    """
    where = str(path / name)
    data = layout.read_entry(path, name, manifest.files[name])
    if check_header(data, where=where) != manifest.files[name].tensors:
        raise DataError("its tensors are not those of the manifest", code="S12", where=where)
    return load_tensors(data, where=where)
