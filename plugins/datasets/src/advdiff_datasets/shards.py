"""Millions of small images in uncompressed `.npz` shards, mapped into memory."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from advdiff_core.errors import DataError
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.dataset import Dataset
from advdiff_core.settings import setting, settings
from advdiff_core.types import Batch, DataInfo, Domain
from advdiff_datasets.npz_map import Member, members
from advdiff_datasets.shard_index import Index, Listed, read_index

__all__ = ["NpzShards"]

#: Labels looked at in one go.
LABELS_AT_ONCE = 1_000_000
#: Images that the fingerprint reads.
SAMPLED = 64


@frozen(kw_only=True, eq=False)
class Shard:
    """One file.

    Attributes:
        images: Where its images lie [n, H, W, C], uint8.
        labels: Where its labels lie [n], whole numbers; None without.
        image_map: The images, mapped.
        label_map: The labels, mapped.
        first: Index of its first image.
    """

    images: Member
    labels: Member | None
    image_map: np.ndarray
    label_map: np.ndarray | None
    first: int

    @property
    def count(self) -> int:
        """Number of images."""
        return self.images.shape[0]

    def check_size(self, index: int) -> None:
        """Refuse a file that became shorter since it was opened.

        Raises:
            DataError: D02. Reading past the end of a mapped file would kill the process.
        """
        path, wanted = self.images.path, self.images.size
        found = path.stat().st_size if path.is_file() else 0
        if found != wanted:
            message = (
                f"sample {index:,} cannot be read: the file has {found:,} bytes, had {wanted:,}"
            )
            raise DataError(message, code="D02", where=str(path), fix="put the shard back")


class NpzShards(Dataset):
    """uint8 images in a folder of uncompressed `.npz` shards, or one file; nothing is read ahead.

    Keys `image` [N, H, W, C] uint8 and `label` [N], as `advdiff sample --to shards` and Wang et al.
    (2023) write them. An `index.json` in the folder says which shards there are, with their sizes
    and hashes; without one every `.npz` file counts, in the order of names. Images come out in [-1,
    1].
    """

    @settings
    class Settings:
        """Keys of `use = "npz-shards"`."""

        path: Path = setting(help="folder of shards, or one .npz file")
        images: str = setting("image", help="name of the array of images")
        labels: str = setting("label", help="name of the array of labels; empty: no labels")
        classes: int = setting(
            0, help="number of classes; 0: as the index says, or the largest label + 1", ge=0
        )
        verify: bool = setting(False, help="compare every shard with the hash in the index first")

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        index = read_index(settings.path)
        self._shards = self._opened(index, settings)
        self._firsts = np.array([shard.first for shard in self._shards])
        largest = max((self._largest_label(shard, index) for shard in self._shards), default=-1)
        classes = settings.classes or index.classes or largest + 1
        height, width, channels = self._shards[0].images.shape[1:]
        self._info = DataInfo(
            shape=(channels, height, width),
            count=sum(shard.count for shard in self._shards),
            domain=Domain(-1.0, 1.0),
            classes=classes if settings.labels else 0,
        )

    @property
    def info(self) -> DataInfo:
        """See `Dataset.info`."""
        return self._info

    def batch(self, indices: Tensor) -> Batch:
        """See `Dataset.batch`."""
        wanted = indices.numpy()
        shape = self._shards[0].images.shape[1:]
        x, y = np.empty((len(wanted), *shape), np.uint8), np.zeros(len(wanted), np.int64)
        places = np.searchsorted(self._firsts, wanted, side="right") - 1
        for number in np.unique(places):
            shard, here = self._shards[number], np.flatnonzero(places == number)
            shard.check_size(int(wanted[here[0]]))
            rows = wanted[here] - shard.first
            # In the order of the file, which the disk is fastest at.
            order = np.argsort(rows)
            x[here[order]] = shard.image_map[rows[order]]
            if shard.label_map is not None:
                y[here[order]] = shard.label_map[rows[order]]
        pixels = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().float().mul_(2 / 255).sub_(1)
        return Batch(pixels, torch.from_numpy(y) if self.settings.labels else None)

    def fingerprint(self) -> str:
        """Digest of names, sizes and 64 images spread over all shards, with their labels."""
        digest = hashlib.sha256(f"{self._info.shape} {self._info.classes}".encode())
        for shard in self._shards:
            text = f"{shard.images.path.name} {shard.images.size} {shard.count}"
            digest.update(text.encode())
        spread = np.unique(np.linspace(0, self._info.count - 1, SAMPLED).round().astype(np.int64))
        batch = self.batch(torch.from_numpy(spread))
        digest.update(batch.x.numpy().tobytes())
        if batch.y is not None:
            digest.update(batch.y.numpy().tobytes())
        return digest.hexdigest()

    def _opened(self, index: Index, settings: Settings) -> list[Shard]:
        shards: list[Shard] = []
        first = 0
        for listed in index.shards:
            if settings.verify:
                listed.verify()
            shard = _open(listed, settings, first)
            if shards and shard.images.shape[1:] != shards[0].images.shape[1:]:
                wanted, found = (list(one.images.shape[1:]) for one in (shards[0], shard))
                message = f"has images of {found}, {shards[0].images.path.name} of {wanted}"
                raise _fault(listed.path, message)
            first += shard.count
            shards.append(shard)
        if not first:
            raise DataError("there is no image", code="D01", where=str(settings.path))
        return shards

    def _largest_label(self, shard: Shard, index: Index) -> int:
        """The largest label of a shard.

        Raises:
            DataError: D03 naming shard and image for a label that no class has.
        """
        if shard.labels is None:
            return -1
        limit = self.settings.classes or index.classes or np.iinfo(np.int64).max
        largest = -1
        for start, labels in shard.labels.blocks(LABELS_AT_ONCE):
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= limit:
                place = int(np.flatnonzero((labels < 0) | (labels >= limit))[0])
                raise _out_of_range(shard, start + place, int(labels[place]), limit)
            largest = max(largest, high)
        return largest


def _open(listed: Listed, settings: NpzShards.Settings, first: int) -> Shard:
    """A shard whose arrays fit each other and the index."""
    found = members(listed.path)
    images = _named(found, settings.images, listed.path)
    if images.dtype != np.uint8 or len(images.shape) != 4 or images.shape[3] not in (1, 2, 3, 4):
        text = f"{settings.images!r} is {images.dtype} of shape {list(images.shape)}"
        raise _fault(listed.path, f"{text}, wanted uint8 [N, H, W, C]")
    labels = _named(found, settings.labels, listed.path) if settings.labels else None
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]):
        text = f"{settings.labels!r} is {labels.dtype} of shape {list(labels.shape)}"
        raise _fault(listed.path, f"{text}, wanted whole numbers [{images.shape[0]}]")
    listed.check(images.shape[0], images.size)
    return Shard(
        images=images, labels=labels, first=first, image_map=images.map(),
        label_map=None if labels is None else labels.map(),
    )  # fmt: skip


def _named(found: dict[str, Member], name: str, path: Path) -> Member:
    if name not in found:
        message = f"has no array {name!r}; it has {', '.join(sorted(found)) or 'none'}"
        fix = "set images and labels to the names of its arrays"
        raise DataError(message, code="D01", where=str(path), fix=fix)
    return found[name]


def _out_of_range(shard: Shard, place: int, label: int, limit: int) -> DataError:
    where = f"image {place:,} (sample {shard.first + place:,})"
    classes = f"0..{limit - 1}" if limit < np.iinfo(np.int64).max else "0 and above"
    message = f"label {label} of {where} is outside {classes}"
    path = shard.images.path
    return DataError(message, code="D03", where=str(path), fix="mend the shard or set classes")


def _fault(path: Path, message: str) -> DataError:
    return DataError(message, code="D03", where=str(path), fix="make the shard again")
