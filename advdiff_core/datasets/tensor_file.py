"""Samples and labels in one `.npz` or `.safetensors` file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advdiff_core.datasets.arrays import array_names, read_array
from advdiff_core.errors import DataError, nearest
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.dataset import Dataset
from advdiff_core.settings import setting, settings
from advdiff_core.types import Batch, DataInfo, Domain

__all__ = ["TensorFile"]

LAYOUTS = ("auto", "NCHW", "NHWC", "NHW", "points")

#: Channel counts that tell an axis of channels from one of pixels.
CHANNELS = (1, 2, 3, 4)


class TensorFile(Dataset):
    """Images or points in one `.npz` (without pickled objects) or `.safetensors` file.

    The file is read whole and checked: values finite and in range, labels whole numbers in range.
    Images come out in [-1, 1], `range` mapped onto it; points as they are.
    """

    @settings
    class Settings:
        """Keys of `use = "tensor-file"`."""

        path: Path = setting(help=".npz or .safetensors file")
        images: str = setting("", help="name of the array of samples; empty: the only one there is")
        labels: str = setting("", help="name of the array of labels; empty: no labels")
        layout: str = setting(
            "auto",
            help="axes of the samples; auto: by shape, refused where two readings are possible",
            choices=LAYOUTS,
        )
        range: tuple[float, ...] = setting(
            (), help="[low, high] of stored pixels; empty: [0, 255] for uint8, must be given else"
        )
        classes: int = setting(0, help="number of classes; 0: the largest label + 1", ge=0)

        def __attrs_post_init__(self) -> None:
            if self.range and (len(self.range) != 2 or self.range[0] >= self.range[1]):
                message = f"range: found {list(self.range)}, wanted [low, high] with low below high"
                raise ValueError(message)

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self._where = str(settings.path)
        raw = read_array(settings.path, self._name_of_samples())
        self._x = self._arranged(raw)
        self._range = self._value_range()
        self._check_values()
        self._y = self._read_labels()
        largest = int(self._y.max()) + 1 if self._y is not None else 0
        self._info = DataInfo(
            shape=tuple(self._x.shape[1:]),
            count=len(self._x),
            domain=Domain(-1.0, 1.0) if self._range else None,
            classes=(settings.classes or largest) if self._y is not None else 0,
        )

    @property
    def info(self) -> DataInfo:
        """See `Dataset.info`."""
        return self._info

    def batch(self, indices: Tensor) -> Batch:
        """See `Dataset.batch`."""
        x = self._x[indices].float()
        if self._range:
            low, high = self._range
            x = (x - low) * (2 / (high - low)) - 1
        return Batch(x, None if self._y is None else self._y[indices])

    def fingerprint(self) -> str:
        """Digest of all samples and labels."""
        digest = hashlib.sha256(f"{self._x.dtype} {list(self._x.shape)} {self._range}".encode())
        for tensor in (self._x, self._y):
            if tensor is not None:
                digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def _fault(self, message: str, *, code: str = "D03", fix: str = "") -> DataError:
        return DataError(message, code=code, where=self._where, fix=fix)

    def _name_of_samples(self) -> str:
        names = array_names(self.settings.path)
        others = [name for name in names if name != self.settings.labels]
        wanted = self.settings.images or (others[0] if len(others) == 1 else "")
        for key, name in (("images", wanted), ("labels", self.settings.labels)):
            if name not in names and (name or key == "images"):
                near = nearest(name, names) or ""
                fix = f'write {key} = "{near or "<name>"}"'
                found = f"has no array {name!r}" if name else "has more than one array"
                message = f"{found}; it has {', '.join(names) or 'none'}"
                raise self._fault(message, code="D01", fix=fix)
        return wanted

    def _arranged(self, raw: Tensor) -> Tensor:
        """Samples as [N, C, H, W] or [N, D]."""
        layout = self.settings.layout
        if layout == "auto":
            layout = self._layout_of(tuple(raw.shape))
        axes = {"points": 2, "NHW": 3}.get(layout, 4)
        if raw.dim() != axes:
            message = f"samples have shape {list(raw.shape)}, layout {layout!r} has {axes} axes"
            raise self._fault(message, fix="write the layout that fits")
        if raw.numel() == 0:
            raise self._fault(f"holds no samples: shape {list(raw.shape)}", code="D01")
        if layout == "NHW":
            return raw[:, None]
        if axes == 4:
            self._check_channels(tuple(raw.shape), layout)
        return raw.permute(0, 3, 1, 2).contiguous() if layout == "NHWC" else raw

    def _layout_of(self, shape: tuple[int, ...]) -> str:
        if len(shape) in (2, 3):
            return "points" if len(shape) == 2 else "NHW"
        last, first = (len(shape) == 4 and shape[axis] in CHANNELS for axis in (3, 1))
        if last == first:
            message = f"samples have shape {list(shape)}, whose layout is not clear"
            raise self._fault(message, fix="write layout, one of " + ", ".join(LAYOUTS[1:]))
        return "NHWC" if last else "NCHW"

    def _check_channels(self, shape: tuple[int, ...], layout: str) -> None:
        here, there = (3, 1) if layout == "NHWC" else (1, 3)
        if shape[here] not in CHANNELS and shape[there] in CHANNELS:
            other = "NCHW" if layout == "NHWC" else "NHWC"
            message = f"shape {list(shape)} read as {layout} has {shape[here]} channels"
            raise self._fault(message, fix=f'write layout = "{other}"')

    def _value_range(self) -> tuple[float, float] | None:
        declared = self.settings.range
        if self._x.dim() == 2:
            if declared:
                raise self._fault("has points, and range is for images", fix="leave range out")
            return None
        if declared:
            return float(declared[0]), float(declared[1])
        if self._x.dtype == torch.uint8:
            return 0.0, 255.0
        low, high = float(self._x.min()), float(self._x.max())
        message = f"pixels are {self._x.dtype} in [{low:g}, {high:g}]: their range must be declared"
        raise self._fault(message, fix="write range = [low, high], for example [0, 1]")

    def _check_values(self) -> None:
        rows = self._x.flatten(1)
        if rows.is_floating_point():
            self._refuse(~rows.isfinite().all(dim=1), "has values that are not finite")
        if self._range is None:
            return
        low, high = self._range
        lowest, highest = rows.amin(dim=1), rows.amax(dim=1)
        text = f"has values outside range = [{low:g}, {high:g}]"
        self._refuse((lowest < low) | (highest > high), text, values=(lowest, highest))

    def _refuse(
        self, bad: Tensor, text: str, *, values: tuple[Tensor, Tensor] | None = None
    ) -> None:
        if not bool(bad.any()):
            return
        index = int(bad.nonzero()[0])
        found = f": {values[0][index]:g} to {values[1][index]:g}" if values else ""
        more = f" ({int(bad.sum())} such samples)"
        raise self._fault(f"sample {index} {text}{found}{more}")

    def _read_labels(self) -> Tensor | None:
        if not self.settings.labels:
            return None
        y = read_array(self.settings.path, self.settings.labels)
        if y.shape != (len(self._x),):
            message = f"labels have shape {list(y.shape)}, wanted [{len(self._x)}]"
            raise self._fault(message)
        if y.is_floating_point():
            message = f"labels {self.settings.labels!r} are fractions, wanted whole numbers"
            raise self._fault(message, fix="save them as integers")
        y = y.long()
        classes = self.settings.classes or int(y.max()) + 1
        bad = (y < 0) | (y >= classes)
        if bool(bad.any()):
            index = int(bad.nonzero()[0])
            message = f"label {int(y[index])} of sample {index} is outside 0..{classes - 1}"
            raise self._fault(message, fix="mend the labels or set classes")
        return y
