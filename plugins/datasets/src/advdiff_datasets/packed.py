"""Whole data sets of small images, kept in memory as bytes."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

from advdiff_core.errors import DataError, Fault, RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.dataset import Dataset
from advdiff_core.math.statistics import batches
from advdiff_core.settings import setting
from advdiff_core.types import Batch, DataInfo, Domain

__all__ = [
    "Packed", "PackedImages", "area_averaged", "as_tensor", "check_labels", "fault", "fetch",
    "find_files", "first_line", "once", "size_setting",
]  # fmt: skip

#: Images that are made smaller at once: their copy in float32 is held beside the bytes.
CHUNK = 4096


class Packed(NamedTuple):
    """Images and labels as stored.

    Attributes:
        x: Pixels [N, C, H, W], uint8.
        y: Labels [N], int64.
    """

    x: Tensor
    y: Tensor


@frozen(eq=False)
class Held:
    """Images that live as long as a data set holds them.

    Attributes:
        packed: The images.
    """

    packed: Packed


#: What is held at the moment, by what was read.
_HELD: WeakValueDictionary[tuple[object, ...], Held] = WeakValueDictionary()


def once(what: str, files: Sequence[Path], read: Callable[[], Packed]) -> Held:
    """What `read` makes of files, or what another data set of the process holds of the same ones.

    A run and its validation read one data set twice. Files are the same if their place, size and
    time of change are.

    Args:
        what: Data set and split: an archive holds several.
        files: The files, in order.
        read: Reads them.
    """
    facts = [(path.resolve(), path.stat()) for path in files]
    key = (what, *((path, s.st_ino, s.st_size, s.st_mtime_ns) for path, s in facts))
    held = _HELD.get(key)
    if held is None:
        held = _HELD[key] = Held(read())
    return held


class PackedImages(Dataset):
    """Base of data sets that fit into memory as uint8; values come out in [-1, 1].

    Settings have a key `size`, see `size_setting`.
    """

    #: Number of classes; labels are 0 to classes - 1.
    classes: int = 10

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self._held = self.read()
        x, self._y = self._held.packed
        self._x = self._sized(x)

    def _sized(self, x: Tensor) -> Tensor:
        size, stored = self.settings.size, min(x.shape[-2:])
        if size > stored:
            message = f"{size} pixels are wanted, the images have {stored}"
            fix = f"write at most {stored}, or 0 for the images as stored"
            raise RecipeError(
                [Fault(code="R10", key=f"{self.build.path}.size", message=message, fix=fix)]
            )
        return area_averaged(x, size) if size and x.shape[-2:] != (size, size) else x

    @abstractmethod
    def read(self) -> Held:
        """Read the files, or take what is held of them; see `once`.

        Raises:
            DataError: D01 if they are not there, D02 if they are damaged, D03 for wrong labels.
        """

    @property
    def info(self) -> DataInfo:
        """See `Dataset.info`."""
        return DataInfo(
            shape=tuple(self._x.shape[1:]), count=len(self._x), domain=Domain(-1.0, 1.0),
            classes=self.classes,
        )  # fmt: skip

    def batch(self, indices: Tensor) -> Batch:
        """See `Dataset.batch`."""
        return Batch(self._x[indices].float().mul_(2 / 255).sub_(1), self._y[indices])

    def fingerprint(self) -> str:
        """Digest of all pixels and labels."""
        digest = hashlib.sha256(f"{list(self._x.shape)}".encode())
        digest.update(self._x.contiguous().numpy().data)
        digest.update(self._y.contiguous().numpy().data)
        return digest.hexdigest()


def size_setting() -> Any:
    """The key `size`: height and width that images are averaged down to once, when read."""
    return setting(
        0, ge=0, le=4096, unit="pixels",
        help="height and width the images are averaged down to, rounded to bytes; 0: as stored",
    )  # fmt: skip


def area_averaged(x: Tensor, size: int) -> Tensor:
    """Images [N, C, size, size], uint8: means over equal areas, rounded half to even.

    Where `size` does not divide the old one, a pixel is the mean of every old pixel that its area
    touches, as in `torch.nn.functional.interpolate(mode="area")`.

    Args:
        x: Images [N, C, H, W], uint8.
        size: New height and width, at most H and W.
    """
    parts = [
        F.interpolate(part.float(), (size, size), mode="area").round_().to(torch.uint8)
        for part in batches(x, CHUNK)
    ]
    return torch.cat(parts)


def fault(path: Path, message: str, *, code: str = "D02", fix: str = "fetch it again") -> DataError:
    """An error that names a file."""
    return DataError(message, code=code, where=str(path), fix=fix)


def find_files(root: Path, names: Sequence[str], folders: Sequence[str]) -> list[Path] | None:
    """The files of these names in the first folder below `root` that has any of them.

    Raises:
        DataError: D01 if some are there and others are not, naming the missing ones.
    """
    for folder in folders:
        found = [root / folder / name for name in names]
        missing = [path.name for path in found if not path.is_file()]
        if not missing:
            return found
        if len(missing) < len(found):
            message = f"has no {', '.join(missing)} beside the other files"
            raise fault(root / folder, message, code="D01")
    return None


def check_labels(y: Tensor, classes: int, path: Path) -> None:
    """Refuse labels `y` [N] that no class has.

    Raises:
        DataError: D03 with the first such label and its place in the file.
    """
    bad = ((y < 0) | (y >= classes)).nonzero()
    if len(bad):
        place = int(bad[0])
        message = f"label {int(y[place])} of image {place} is outside 0..{classes - 1}"
        raise fault(path, message, code="D03")


def fetch(download: Callable[[], object], root: Path, what: str) -> None:
    """Let a library download into `root`; it is only called when a recipe asks for it.

    Raises:
        DataError: D01 if that fails, saying which files to put where by hand.
    """
    try:
        download()
    # What a download raises depends on the library, its network layer and the disk.
    except Exception as cause:
        reason = first_line(cause)
        raise DataError(
            f"download failed: {reason}", code="D01", where=str(root),
            fix=f"put {what} there by hand, and leave download out",
        ) from cause  # fmt: skip


def first_line(cause: BaseException) -> str:
    """Type and first line of a library's message."""
    text = str(cause).strip().split("\n", 1)[0]
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__


def as_tensor(raw: bytes) -> Tensor:
    """Bytes as a uint8 tensor in memory of its own."""
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)
