"""Crash capsules: the tensors and facts of a step that was not finite, to be looked into later."""

from __future__ import annotations

from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

from advdiff_core.engine import strict_json
from advdiff_core.engine.fsio import DISK, check_free, make_dirs, reported
from advdiff_core.engine.owner import unique_tag
from advdiff_core.engine.rundir import RunDir
from advdiff_core.engine.safe_read import read_bytes
from advdiff_core.engine.state_codec import Encoder, decode
from advdiff_core.engine.tensor_file import chunks, load_tensors, total_size
from advdiff_core.errors import DataError

__all__ = ["read", "write"]

_TENSORS = "tensors.safetensors"
_INFO = "info.json"
_MAX_JSON = 64 * 2**20
_MAX_TENSORS = 2**40


def write(run: RunDir, name: str, state: dict[str, Any], info: dict[str, Any]) -> Path:
    """Write `capsule/<name>/`; see `advdiff_core.engine.rundir.save_capsule`."""
    encoder = Encoder()
    text = strict_json.dumps({"info": encoder.encode(info), "state": encoder.encode(state)})
    target = run.resolve(f"capsule/{name}")
    make_dirs(target.parent)
    check_free(target.parent, total_size(encoder.tensors) + len(text))
    temp = target.parent / f".tmp-{unique_tag()}"
    with reported(temp, need=total_size(encoder.tensors)):
        try:
            DISK.make_dir(temp)
            DISK.write_file(temp / _TENSORS, chunks(encoder.tensors))
            DISK.write_file(temp / _INFO, [text])
            DISK.sync_dir(temp)
            target = _place(temp, target)
        except BaseException:
            _drop(temp)
            raise
        DISK.sync_dir(target.parent)
    return target


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state and the info of a capsule.

    Raises:
        DataError: S02, S12 or S15 if it is missing or damaged.
    """
    where = str(path / _INFO)
    raw = strict_json.loads(read_bytes(path / _INFO, limit=_MAX_JSON), where=where)
    data = read_bytes(path / _TENSORS, limit=_MAX_TENSORS)
    tensors = load_tensors(data, where=str(path / _TENSORS))
    if not isinstance(raw, dict) or set(raw) != {"info", "state"}:
        raise DataError("is not the JSON of a capsule", code="S15", where=where)
    return decode(raw["state"], tensors, where=where), decode(raw["info"], tensors, where=where)


def _place(temp: Path, target: Path) -> Path:
    """Rename to `target`, or to the first of `target-2`, `target-3` and so on that is free."""
    others = (target.with_name(f"{target.name}-{number}") for number in count(2))
    free = next(path for path in chain([target], others) if not path.exists())
    DISK.rename(temp, free)
    return free


def _drop(temp: Path) -> None:
    with suppress(OSError):
        for name in (_TENSORS, _INFO):
            (temp / name).unlink(missing_ok=True)
        temp.rmdir()
