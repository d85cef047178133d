"""The folder that `advdiff import` writes, and what reads it.

`model.safetensors` holds the weights, `golden.safetensors` a forward to compare with, `model.json`
where they come from, how they were fitted, and the SHA-256 of both files and of itself. The folder
is written beside its place and renamed, so that it is whole or not there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import frozen
from torch import Tensor

from advdiff_core.engine import strict_json
from advdiff_core.engine.fsio import DISK, FileSystem, check_free, make_dirs, reported
from advdiff_core.engine.importing.golden import Golden
from advdiff_core.engine.owner import unique_tag
from advdiff_core.engine.safe_read import read_bytes
from advdiff_core.engine.tensor_file import chunks, load_tensors, total_size
from advdiff_core.errors import DataError, StorageError

__all__ = ["FACTS", "GOLDEN", "WEIGHTS", "Imported", "check_target", "read_folder", "write_folder"]

WEIGHTS = "model.safetensors"
GOLDEN = "golden.safetensors"
FACTS = "model.json"
FORMAT = 1
_MAX_JSON = 64 * 2**20
_MAX_FILE = 2**40


@frozen(kw_only=True)
class Imported:
    """An imported model in memory.

    Attributes:
        tensors: Weights by name.
        golden: A forward to compare with.
        facts: Content of `model.json`.
        sha256: SHA-256 of the weights' file.
    """

    tensors: dict[str, Tensor]
    golden: Golden
    facts: dict[str, Any]
    sha256: str


def check_target(path: Path) -> None:
    """Refuse a place that is taken, before anything is computed.

    Raises:
        StorageError: S10.
    """
    if path.is_symlink() or path.exists():
        fix = "choose a new folder by --out, or remove it"
        raise StorageError("there is something here already", code="S10", where=str(path), fix=fix)


def write_folder(
    path: Path,
    tensors: Mapping[str, Tensor],
    golden: Golden,
    facts: Mapping[str, Any],
    *,
    fs: FileSystem = DISK,
) -> dict[str, Any]:
    """Write an imported model.

    Args:
        path: Folder, which does not exist.
        tensors: Weights by name, any shape.
        golden: A forward.
        facts: JSON of where they come from.
        fs: The disk.

    Returns:
        The content of `model.json`.

    Raises:
        StorageError: S03, S04 or S10; nothing is left behind.
    """
    check_target(path)
    make_dirs(path.parent, fs=fs)
    need = total_size(tensors) + total_size(golden.tensors())
    check_free(path.parent, need, fs=fs)
    temp = path.with_name(f".tmp-{unique_tag()}")
    with reported(path, need=need, fs=fs):
        try:
            fs.make_dir(temp)
            made = _write_files(temp, tensors, golden, facts, fs)
            fs.sync_dir(temp)
            fs.rename(temp, path)
        except BaseException:
            _drop(temp)
            raise
        fs.sync_dir(path.parent)
    return made


def _write_files(
    folder: Path,
    tensors: Mapping[str, Tensor],
    golden: Golden,
    facts: Mapping[str, Any],
    fs: FileSystem,
) -> dict[str, Any]:
    weights = fs.write_file(folder / WEIGHTS, chunks(tensors))
    forward = fs.write_file(folder / GOLDEN, chunks(golden.tensors()))
    files = {WEIGHTS: weights.sha256, GOLDEN: forward.sha256}
    made = {**facts, "format": FORMAT, "files": files}
    made["sha256"] = _digest(made)
    fs.write_file(folder / FACTS, [strict_json.dumps(made)])
    return made


def _drop(temp: Path) -> None:
    with suppress(OSError):
        for name in (WEIGHTS, GOLDEN, FACTS):
            (temp / name).unlink(missing_ok=True)
        temp.rmdir()


def _digest(facts: Mapping[str, Any]) -> str:
    """SHA-256 of the facts but for the digest itself."""
    plain = {key: value for key, value in facts.items() if key != "sha256"}
    return hashlib.sha256(strict_json.dumps(plain)).hexdigest()


def read_folder(path: Path) -> Imported:
    """Read an imported model, every byte of it checked.

    Raises:
        DataError: S01 damaged, S02 a file is missing, S11 another format, S15 or Q10 malformed.
    """
    facts = _read_facts(path / FACTS)
    weights = _read_tensors(path, WEIGHTS, facts)
    golden = Golden.of(_read_tensors(path, GOLDEN, facts), str(path / GOLDEN))
    sha256 = facts["files"][WEIGHTS]
    return Imported(tensors=weights, golden=golden, facts=facts, sha256=sha256)


def _read_facts(path: Path) -> dict[str, Any]:
    where = str(path)
    facts = strict_json.loads(read_bytes(path, limit=_MAX_JSON), where=where)
    if not isinstance(facts, dict) or not isinstance(facts.get("files"), dict):
        raise DataError("is not the JSON of an imported model", code="S15", where=where)
    if facts.get("format") != FORMAT:
        message = f"has format {facts.get('format')!r}; this advdiff reads format {FORMAT}"
        raise DataError(message, code="S11", where=where, fix="use the advdiff that wrote it")
    if facts.get("sha256") != _digest(facts):
        message = "is damaged: its SHA-256 is not the one it says"
        raise DataError(message, code="S01", where=where, fix="import the model again")
    return facts


def _read_tensors(folder: Path, name: str, facts: Mapping[str, Any]) -> dict[str, Tensor]:
    data = read_bytes(folder / name, limit=_MAX_FILE)
    if hashlib.sha256(data).hexdigest() != facts["files"].get(name):
        message = f"is damaged: its SHA-256 is not the one in {FACTS}"
        fix = "import the model again"
        raise DataError(message, code="S01", where=str(folder / name), fix=fix)
    return load_tensors(data, where=str(folder / name))
