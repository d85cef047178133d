"""What a checkpoint folder must hold, and whether it does. Free of torch.

Layout of `checkpoints/<nimg>/`: `shared.safetensors`, `rank-0000.safetensors` and so on,
`state.json`, `manifest.json` (size and SHA-256 of each file, dtype and shape of each tensor) and
`COMMIT` (format and SHA-256 of the manifest). One flipped bit in any of them is noticed, as is a
file too many or too few. This finds damage, not forgery: whoever rewrites all the hashes is not
noticed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from attrs import asdict, frozen

from advdiff_core.engine import strict_json
from advdiff_core.engine.safe_read import open_regular, read_bytes
from advdiff_core.errors import DataError

__all__ = [
    "COMMIT",
    "FORMAT",
    "MANIFEST",
    "SHARED",
    "STATE",
    "FileEntry",
    "Manifest",
    "TensorEntry",
    "candidates",
    "commit_text",
    "newest_valid",
    "rank_file",
    "read_entry",
    "read_manifest",
    "verify",
]

FORMAT = 1
SHARED = "shared.safetensors"
STATE = "state.json"
MANIFEST = "manifest.json"
COMMIT = "COMMIT"

#: Longest manifest or state read: 100,000 tensors take about 15 MB.
MAX_JSON = 64 * 2**20
_MAX_WORLD = 10_000
_PLAIN = re.compile(r"0|[1-9][0-9]{0,17}")
_SET_ASIDE = re.compile(r"\.old-(0|[1-9][0-9]{0,17})-.+")
_T = TypeVar("_T")


@frozen
class TensorEntry:
    """Data type in the words of safetensors, for example "F32", and shape of a stored tensor."""

    dtype: str
    shape: tuple[int, ...]


@frozen
class FileEntry:
    """Size in bytes, SHA-256 in hex and tensors by name (empty for JSON) of a file."""

    size: int
    sha256: str
    tensors: Mapping[str, TensorEntry]


@frozen(kw_only=True)
class Manifest:
    """Everything a checkpoint folder must hold.

    Attributes:
        nimg: Images seen when it was saved.
        world: Number of processes that saved it.
        finite: Whether the saved state was all finite.
        files: Every file but the manifest and COMMIT.
    """

    nimg: int
    world: int
    finite: bool
    files: Mapping[str, FileEntry]

    def to_bytes(self) -> bytes:
        """The content of `manifest.json`."""
        return strict_json.dumps({"format": FORMAT, **asdict(self)})

    @property
    def digest(self) -> str:
        """SHA-256 of `manifest.json`: equal digests mean equal checkpoints."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def rank_file(rank: int) -> str:
    """Name of the file that holds the state of one process."""
    return f"rank-{rank:04d}.safetensors"


def commit_text(manifest: bytes) -> bytes:
    """The content of `COMMIT` for a manifest."""
    digest = hashlib.sha256(manifest).hexdigest()
    return f"advdiff checkpoint format {FORMAT}\nmanifest sha256 {digest}\n".encode()


def read_manifest(path: Path) -> Manifest:
    """Read COMMIT and the manifest of a checkpoint folder, and check that just its files are there.

    Raises:
        DataError: S01 or S02 for damage, S11 for another format, S15 for malformed JSON.
    """
    if not path.is_dir():
        raise DataError("there is no checkpoint here", code="S02", where=str(path))
    commit = read_bytes(path / COMMIT, limit=1024)
    data = read_bytes(path / MANIFEST, limit=MAX_JSON)
    if commit != commit_text(data):
        raise _wrong_commit(path, commit)
    manifest = _parse(data, str(path / MANIFEST))
    _check_listing(path, manifest)
    return manifest


def read_entry(path: Path, name: str, entry: FileEntry) -> bytes:
    """Read one file of a checkpoint once; the bytes returned are the bytes that were hashed.

    Raises:
        DataError: S02 if it is missing or of another size, S01 if its hash differs.
    """
    data = read_bytes(path / name, limit=entry.size)
    _check_entry(path / name, entry, len(data), hashlib.sha256(data).hexdigest())
    return data


def verify(path: Path) -> Manifest:
    """Check every byte of a checkpoint folder.

    Raises:
        DataError: As `read_manifest` and `read_entry`.
    """
    manifest = read_manifest(path)
    for name, entry in manifest.files.items():
        with open_regular(path / name, limit=entry.size) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            _check_entry(path / name, entry, file.tell(), digest)
    return manifest


def candidates(root: Path) -> list[tuple[int, Path]]:
    """Folders under `root` named by image counts, `(nimg, path)` newest first; none is opened.

    A folder set aside while its successor of the same count was put in place follows that
    successor.
    """
    try:
        names = [path.name for path in root.iterdir()]
    except OSError:
        return []
    plain = [(int(name), 1, name) for name in names if _PLAIN.fullmatch(name)]
    aside = [(int(m[1]), 0, m[0]) for name in names if (m := _SET_ASIDE.fullmatch(name))]
    return [(nimg, root / name) for nimg, _, name in sorted(plain + aside, reverse=True)]


def newest_valid(root: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest checkpoint under `root` that is whole, every byte checked.

    Returns:
        Its path (None if there is none), and `(path, reason)` of each newer one that was skipped,
        which the caller must show.
    """
    skipped: list[tuple[Path, str]] = []
    for nimg, path in candidates(root):
        try:
            found = verify(path).nimg
        except DataError as error:
            skipped.append((path, str(error)))
            continue
        if found == nimg:
            return path, skipped
        skipped.append((path, f"{path}: is the checkpoint of {found} images under another name"))
    return None, skipped


def _check_entry(path: Path, entry: FileEntry, size: int, sha256: str) -> None:
    if size < entry.size:
        message = f"has {size:,} bytes instead of {entry.size:,}"
        raise DataError(message, code="S02", where=str(path))
    if sha256 != entry.sha256:
        message = "is damaged: its SHA-256 is not the one in the manifest"
        raise DataError(message, code="S01", where=str(path))


def _wrong_commit(path: Path, commit: bytes) -> DataError:
    where = str(path / COMMIT)
    found = re.match(rb"advdiff checkpoint format ([0-9]+)\n", commit)
    if found and int(found[1]) != FORMAT:
        message = f"the checkpoint has format {int(found[1])}; this advdiff reads format {FORMAT}"
        return DataError(message, code="S11", where=where, fix="use the advdiff that wrote it")
    message = "does not belong to manifest.json: one of the two is damaged"
    return DataError(message, code="S01", where=where)


def _check_listing(path: Path, manifest: Manifest) -> None:
    try:
        found = {item.name for item in path.iterdir()}
    except OSError as error:
        message = f"cannot be listed: {error.strerror}"
        raise DataError(message, code="S02", where=str(path)) from error
    wanted = {COMMIT, MANIFEST, *manifest.files}
    for name in sorted(wanted - found):
        raise DataError("the file is missing", code="S02", where=str(path / name))
    for name in sorted(found - wanted):
        message = "the file does not belong to the checkpoint"
        raise DataError(message, code="S02", where=str(path / name), fix="move it elsewhere")


def _parse(data: bytes, where: str) -> Manifest:
    try:
        raw = _typed(strict_json.loads(data, where=where), dict)
        world = _typed(raw["world"], int)
        files = {name: _file_entry(entry) for name, entry in _typed(raw["files"], dict).items()}
        _check_names(files, world)
        return Manifest(
            nimg=_typed(raw["nimg"], int),
            world=world,
            finite=_typed(raw["finite"], bool),
            files=files,
        )
    except (KeyError, TypeError, ValueError) as error:
        message = f"is not a manifest: {error!r}"
        raise DataError(message, code="S15", where=where) from error


def _check_names(files: Mapping[str, FileEntry], world: int) -> None:
    """Names are compared whole, so that none can lead out of the folder."""
    if not 1 <= world <= _MAX_WORLD:
        raise ValueError(f"world is {world}")
    if set(files) != {SHARED, STATE, *map(rank_file, range(world))}:
        raise ValueError("it lists other files than a checkpoint has")


def _file_entry(raw: Any) -> FileEntry:
    raw = _typed(raw, dict)
    tensors = {
        name: TensorEntry(
            _typed(entry["dtype"], str), tuple(_typed(size, int) for size in entry["shape"])
        )
        for name, entry in _typed(raw["tensors"], dict).items()
    }
    return FileEntry(_typed(raw["size"], int), _typed(raw["sha256"], str), tensors)


def _typed(value: Any, kind: type[_T]) -> _T:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not a {kind.__name__}")
    return value
