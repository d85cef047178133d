"""WebDataset shards: tar files of samples, read in any order through an index of their heads."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from advdiff_core.errors import escape
from advdiff_core.settings import setting, settings
from advdiff_datasets.encoded import EncodedImages, ImageSettings, Listing
from advdiff_datasets.packed import fault

__all__ = ["WebDataset"]

PICTURES = ("jpg", "jpeg", "png", "webp")
#: Longest label member that is read.
MAX_LABEL = 2**16
SAMPLED = 64


class _Member(NamedTuple):
    """Where a member's bytes lie.

    Attributes:
        shard: Its tar file.
        name: Its name in there.
        start: Offset of the first byte.
        size: Number of bytes.
    """

    shard: Path
    name: str
    start: int
    size: int


class WebDataset(EncodedImages):
    """Samples in tar shards, in the layout of the WebDataset library, by index.

    Members whose names agree up to the first dot are one sample: a picture (`.jpg`, `.jpeg`,
    `.png`, `.webp`) and, for labels, `.cls` (a number) or a key of `.json`. The heads of all shards
    are read once, then every sample is a seek away; packed shards (`.tar.gz`) have no such seek and
    are refused. Order: shards by name, samples as they lie.
    """

    @settings
    class Settings(ImageSettings):
        """Keys of `use = "webdataset"`."""

        path: Path = setting(help="folder of *.tar files, or one of them")
        labels: str = setting(
            "none",
            help="none; cls: the member .cls; json: the key `label_key` of the member .json",
            choices=("none", "cls", "json"),
        )
        label_key: str = setting(
            "label", help="key in the JSON object", applies=("labels", ("json",))
        )
        classes: int = setting(0, help="number of classes; 0: the largest label + 1", ge=0)

    def open(self) -> Listing:
        """See `EncodedImages.open`."""
        self._shards = _shards(self.settings.path)
        samples = [sample for shard in self._shards for sample in _samples(shard)]
        self._pictures = [_picture(sample) for sample in samples]
        if not samples:
            raise fault(self.settings.path, "holds no samples", code="D01", fix="")
        if self.settings.labels == "none":
            self._labels = None
            return Listing(len(samples))
        self._labels = torch.tensor([self._label(sample) for sample in samples])
        return Listing(len(samples), self._labels, self._classes())

    def encoded(self, index: int) -> tuple[bytes, str]:
        """See `EncodedImages.encoded`."""
        member = self._pictures[index]
        return _content(member), _where(member)

    def fingerprint(self) -> str:
        """Digest of names, places, sizes and labels, and of the contents of 64 pictures."""
        digest = hashlib.sha256()
        for member in self._pictures:
            digest.update(f"{member.shard.name}\0{member.name}\0{member.size}\0".encode())
        if self._labels is not None:
            digest.update(self._labels.numpy().tobytes())
        for member in self._pictures[:: max(1, len(self._pictures) // SAMPLED)]:
            digest.update(_content(member))
        return digest.hexdigest()

    def _classes(self) -> int:
        assert self._labels is not None
        classes: int = self.settings.classes or int(self._labels.max()) + 1
        bad = (self._labels >= classes).nonzero()
        if len(bad):
            member = self._pictures[int(bad[0])]
            message = f"has the label {int(self._labels[bad[0]])}, outside 0..{classes - 1}"
            raise fault(Path(_where(member)), message, code="D03", fix="mend it or set classes")
        return classes

    def _label(self, sample: dict[str, _Member]) -> int:
        kind = self.settings.labels
        picture = _picture(sample)
        if kind not in sample:
            message = f"has no .{kind} member beside it"
            raise fault(Path(_where(picture)), message, code="D03", fix='set labels = "none"')
        raw = _content(sample[kind])
        try:
            value: Any = json.loads(raw) if kind == "json" else int(raw)
            if kind == "json":
                value = value[self.settings.label_key]
        except (ValueError, KeyError, TypeError) as cause:
            text = escape(raw[:40].decode("latin1"))
            message = f"holds no label: {type(cause).__name__} in {text!r}"
            raise fault(Path(_where(sample[kind])), message, code="D03", fix="mend it") from cause
        if type(value) is not int or not 0 <= value < 2**31:
            message = f"has the label {escape(value, limit=40)}, wanted a whole number from 0"
            raise fault(Path(_where(sample[kind])), message, code="D03", fix="mend it")
        return value


def _where(member: _Member) -> str:
    return f"{member.shard}: {escape(member.name, limit=80)}"


def _shards(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(path.glob("*.tar")) if path.is_dir() else []
    if not found:
        message = "holds no *.tar files" if path.exists() else "there is no such folder"
        raise fault(path, message, code="D01", fix="put the shards there, unpacked from .gz")
    return found


def _samples(shard: Path) -> Iterator[dict[str, _Member]]:
    """Samples of a shard: its members by extension, grouped by name up to the first dot."""
    current = ""
    found: dict[str, _Member] = {}
    for member in _members(shard):
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        key = f"{folder}/{stem}"
        if key != current and found:
            yield found
            found = {}
        current = key
        if extension.lower() in found:
            message = f"has two members {escape(member.name)}"
            raise fault(shard, message, fix="write it again with one name per sample")
        found[extension.lower()] = member
    if found:
        yield found


def _members(shard: Path) -> Iterator[_Member]:
    """Files in a tar whose bytes are all there."""
    try:
        size = shard.stat().st_size
        with tarfile.open(shard, "r:") as tar:
            for one in tar:
                if one.offset_data + one.size > size:
                    raise fault(shard, f"was cut off in {escape(one.name)}")
                if one.isfile() and not one.name.rpartition("/")[2].startswith("."):
                    yield _Member(shard, one.name, one.offset_data, one.size)
    except (tarfile.TarError, OSError, EOFError) as cause:
        raise fault(shard, f"is no tar file, or damaged: {escape(cause)}") from cause


def _picture(sample: dict[str, _Member]) -> _Member:
    for extension in PICTURES:
        if extension in sample:
            return sample[extension]
    member = next(iter(sample.values()))
    message = f"has no picture beside it ({', '.join('.' + name for name in PICTURES)})"
    raise fault(Path(_where(member)), message, fix="write the sample again, or remove it")


def _content(member: _Member) -> bytes:
    if member.name.endswith((".cls", ".json")) and member.size > MAX_LABEL:
        message = f"has {member.size:,} bytes, labels have at most {MAX_LABEL:,}"
        raise fault(Path(_where(member)), message, code="D03")
    try:
        with member.shard.open("rb") as file:
            file.seek(member.start)
            raw = file.read(member.size)
    except OSError as cause:
        raise fault(member.shard, f"cannot be read: {cause.strerror}", fix="") from cause
    if len(raw) != member.size:
        raise fault(member.shard, "was cut off since it was listed")
    return raw
