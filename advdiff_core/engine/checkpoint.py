"""Checkpoints: the whole state of a run, saved atomically and read back bit for bit.

    store = Store(root=run.checkpoints, keep=3)
    save(store, nimg, shared=shared, rank_state=mine, meta=meta)
    path, skipped = newest_valid(run.checkpoints)
    checkpoint = load(path)

State is nested dict / list / Tensor / bool / int / float / str / None (see `state_codec`). By
convention the shared state has the keys

    models.<role>.<parameter or buffer>     dict of tensors per role
    ema.<role>                              list: one dict of tensors per average
    terms.<name>.<parameter>                dict of tensors per term that owns parameters
    optimizers.<player>                     `optimizer_state(...)`
    anything else the engine counts

so that weights can be read by role (`read_weights`). What differs between processes is the rank
state. `meta` is JSON about the save; `meta["health"]["finite"] = False` marks a state that is not
all finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from attrs import frozen
from torch import Tensor

from advdiff_core.engine import manifest as layout
from advdiff_core.engine.manifest import Manifest, newest_valid
from advdiff_core.engine.optimizer_state import load_optimizer_state, optimizer_state
from advdiff_core.engine.ranks import Ranks
from advdiff_core.engine.state_codec import Encoder, decode
from advdiff_core.engine.store import Content, Payload, Saved, Store
from advdiff_core.engine.stored import read_shared, read_state, read_tensors
from advdiff_core.engine.tensor_file import chunks, describe, total_size
from advdiff_core.engine.weights import Weights, find_checkpoint, read_weights
from advdiff_core.errors import DataError

__all__ = [
    "Checkpoint",
    "Ranks",
    "Saved",
    "State",
    "Store",
    "Weights",
    "find_checkpoint",
    "load",
    "load_optimizer_state",
    "match_state",
    "newest_valid",
    "optimizer_state",
    "read_weights",
    "save",
]

State: TypeAlias = dict[str, Any]
_SHOWN = 5


@frozen(kw_only=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        path: Folder it was read from.
        nimg: Images seen.
        world: Processes that saved it.
        shared: State common to all processes.
        rank_state: State of the process asked for.
        meta: What the engine noted about the save.
        digest: SHA-256 that names the content; processes compare it before they go on.
    """

    path: Path
    nimg: int
    world: int
    shared: State
    rank_state: State
    meta: State
    digest: str


def save(  # noqa: PLR0913 - what a checkpoint is made of.
    store: Store,
    nimg: int,
    *,
    shared: State,
    rank_state: State,
    meta: Mapping[str, Any],
    pinned: frozenset[int] = frozenset(),
) -> Saved:
    """Save the state at a step boundary; all processes call it with the same `nimg`.

    When it returns, the checkpoint is complete on the disk, and older ones were rotated; if it
    raises, no process may count it as saved. Live tensors are read, never changed, and not copied
    as a whole.

    Args:
        store: Where, how many to keep, and with which processes.
        nimg: Images seen; names the folder.
        shared: State common to all; only that of rank 0 is written.
        rank_state: State of this process.
        meta: About the save: health, provenance, offsets. JSON types only.
        pinned: Images of checkpoints that stay, however old.

    Raises:
        DataError: S12 for a value that cannot be stored, naming its path.
        StorageError: S03 or S04. The same error on all processes.
    """
    return store.commit(
        nimg, lambda: _content(store.ranks.rank, shared, rank_state, meta), pinned=pinned
    )


def load(path: Path, *, rank: int = 0) -> Checkpoint:
    """Read a checkpoint, every byte of it checked once and used from memory.

    Args:
        path: Its folder.
        rank: Process whose state is wanted.

    Raises:
        DataError: S01 damaged, S02 missing or extra or cut file, S11 other format or number of
            processes, S12 or S15 malformed content, always naming the file.
    """
    manifest = layout.read_manifest(path)
    if not 0 <= rank < manifest.world:
        message = f"was saved by {manifest.world} processes and has no state of process {rank}"
        raise DataError(message, code="S11", where=str(path), fix="resume with as many processes")
    state = read_state(path, manifest)
    mine = layout.rank_file(rank)
    for name in manifest.files:
        if name not in {layout.STATE, layout.SHARED, mine}:
            layout.read_entry(path, name, manifest.files[name])
    return Checkpoint(
        path=path,
        nimg=manifest.nimg,
        world=manifest.world,
        shared=read_shared(path, manifest, state),
        rank_state=_read_tree(path, manifest, mine, state["ranks"][rank]),
        meta=decode(state["meta"], {}, where=str(path / layout.STATE)),
        digest=manifest.digest,
    )


def match_state(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    """Require the same names, shapes and dtypes.

    Args:
        expected: Tensors of the model that was built.
        found: Tensors that were read.
        where: Checkpoint and role, for the message.

    Raises:
        DataError: S12 listing what is missing, unexpected or different, the first five of each.
    """
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    differ = [
        f"{name} is {_kind(found[name])} instead of {_kind(tensor)}"
        for name, tensor in expected.items()
        if name in found and _kind(found[name]) != _kind(tensor)
    ]
    parts = [
        f"{title}: {_shorten(items)}"
        for title, items in (("missing", missing), ("unexpected", extra), ("different", differ))
        if items
    ]
    if parts:
        raise DataError(
            "the tensors do not fit the model: " + "; ".join(parts),
            code="S12",
            where=where,
            fix="use the recipe that wrote them",
        )


def _content(rank: int, shared: State, rank_state: State, meta: Mapping[str, Any]) -> Content:
    plain, mine = Encoder(), Encoder()
    about = plain.encode(dict(meta), "meta")
    if plain.tensors:
        raise DataError("holds a tensor", code="S12", where=next(iter(plain.tensors)))
    files: dict[str, Payload] = {}
    state: State = {"meta": about}
    if rank == 0:
        common = Encoder()
        state["shared"] = common.encode(shared)
        files[layout.SHARED] = _payload(common.tensors)
    tree = mine.encode(rank_state)
    files[layout.rank_file(rank)] = _payload(mine.tensors)
    finite = bool(meta.get("health", {}).get("finite", True))
    return Content(files=files, rank_tree=tree, state=state, finite=finite)


def _payload(tensors: Mapping[str, Tensor]) -> Payload:
    return Payload(chunks=chunks(tensors), size=total_size(tensors), tensors=describe(tensors))


def _read_tree(path: Path, manifest: Manifest, name: str, tree: Any) -> State:
    state: State = decode(tree, read_tensors(path, manifest, name), where=str(path / name))
    return state


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _shorten(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
