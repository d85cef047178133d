"""The images that analyses read: training images of the run, images of another dataset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from attrs import frozen
from torch import Tensor

from advdiff_core import Build, DataError, Dataset, Evaluation, Fault, RecipeError, Spec
from advdiff_core.draws import content_ids
from advdiff_core.settings import setting, settings
from advdiff_core.types import Domain

__all__ = ["DataSettings", "ImageSource", "Images", "refusal"]


@settings
class DataSettings:
    """Which images an analysis reads. Base of the Settings of all of them."""

    data: Spec | None = setting(
        None, kind="dataset", help="images that are scored; training images if left out"
    )
    images: int = setting(0, ge=0, unit="images", help="the first so many are scored; 0: all")
    batch: int = setting(256, ge=1, unit="images", help="images per forward")
    seed: int = setting(0, ge=0, help="of noise, attack and fit; the run's seed does not matter")


@frozen(kw_only=True, eq=False)
class Images:
    """Images in the order of their contents, which no order of the data changes.

    Attributes:
        x: [N, ...] on the CPU, in the run's domain.
        y: Classes [N], or None.
        ids: A number for each that its content alone decides.
    """

    x: Tensor
    y: Tensor | None
    ids: tuple[int, ...]

    @classmethod
    def of(cls, x: Tensor, y: Tensor | None) -> Images:
        """Images [N, ...] with classes [N], sorted."""
        ids = content_ids(x.float())
        order = sorted(range(len(ids)), key=ids.__getitem__)
        rows = torch.tensor(order, dtype=torch.int64)
        return cls(x=x[rows], y=None if y is None else y[rows], ids=tuple(ids[i] for i in order))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def rows(self, chosen: Tensor) -> Images:
        """Some of them [M], bool [N] or int64 [M]."""
        places = chosen.nonzero()[:, 0] if chosen.dtype == torch.bool else chosen
        ids = tuple(self.ids[place] for place in places.tolist())
        return Images(x=self.x[places], y=None if self.y is None else self.y[places], ids=ids)

    def batches(self, size: int) -> Iterator[Images]:
        """Consecutive parts of at most `size` images."""
        for rows in torch.split(torch.arange(len(self)), size):
            yield self.rows(rows)

    def cut(self, share: float) -> tuple[Images, Images]:
        """Two parts by content, `share` of the images in the second; copies stay together.

        Raises:
            DataError: D04 if a part would be empty.
        """
        count = max(1, round(share * len(self)))
        while 0 < count < len(self) and self.ids[count] == self.ids[count - 1]:
            count += 1
        if count >= len(self):
            message = f"{len(set(self.ids))} different images cannot be cut in two parts"
            fix = "take more images, or name the key data"
            raise DataError(message, code="D04", where="training images", fix=fix)
        places = torch.arange(len(self))
        return self.rows(places[count:]), self.rows(places[:count])


class ImageSource:
    """Reads images for a metric.

    Args:
        settings: Of the metric.
        build: What it was told.
        labelled: Whether the images need classes.

    Raises:
        RecipeError: R10 if the data do not fit the run's, or have no classes.
    """

    def __init__(self, settings: DataSettings, build: Build, *, labelled: bool) -> None:
        self.settings, self.build = settings, build
        self._data: Dataset | None = None
        if settings.data is not None:
            self._data = cast("Dataset", build.nested(settings.data))
        self._check(labelled=labelled)

    def _check(self, *, labelled: bool) -> None:
        mine, theirs = self.build.data, self._data.info if self._data is not None else None
        if mine is not None and theirs is not None and mine.shape != theirs.shape:
            message = f"the images are {list(theirs.shape)}, the network's are {list(mine.shape)}"
            raise refusal(self.build, "data", message, "name data of the same shape")
        known = [one for one in (mine, theirs) if one is not None]
        if labelled and not all(one.classes for one in known):
            message = "the data have no labels"
            raise refusal(self.build, "data", message, "name a dataset with classes")

    @property
    def given(self) -> bool:
        """Whether other images than the training images are scored."""
        return self._data is not None

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.build.data.classes if self.build.data is not None else 0

    def name(self, name: str) -> str:
        """A number's name: numbers of training images begin with `train_`."""
        return name if self.given else f"train_{name}"

    def protocol(self) -> dict[str, object]:
        """Data, fingerprint, number."""
        told: dict[str, object] = {"data": "training data of the run, without corruption"}
        if self._data is not None and self.settings.data is not None:
            told = {"data": self.settings.data.use, "fingerprint": self._data.fingerprint()}
        return {**told, "images": self.settings.images or "all", "seed": self.settings.seed}

    def scored(self, evaluation: Evaluation) -> Images:
        """The images that are scored."""
        if self._data is None:
            return self.training(evaluation, self.settings.images)
        key = ("dra", "images", self._data.fingerprint(), self.settings.images)
        return evaluation.remember(key, self._read)

    def training(self, evaluation: Evaluation, limit: int = 0) -> Images:
        """The first `limit` training images without corruption; all if 0."""

        def read() -> Images:
            many = limit or len(evaluation.clean)
            y = evaluation.labels
            return Images.of(evaluation.clean[:many], None if y is None else y[:many].long())

        return evaluation.remember(("dra", "training images", limit), read)

    def _read(self) -> Images:
        data = self._data
        assert data is not None, "asked only where data are named"
        count = min(data.info.count, self.settings.images or data.info.count)
        rows = torch.split(torch.arange(count), self.settings.batch)
        parts = [data.batch(one) for one in rows]
        x = torch.cat([part.x.float() for part in parts])
        labels = [part.y for part in parts]
        y = None if None in labels else torch.cat(cast("list[Tensor]", labels)).long()
        return Images.of(_moved(x, data.info.domain, self.build), y)

    def labels(self, images: Images) -> Tensor:
        """Classes [N] of images.

        Raises:
            DataError: D03 if there are none, or one is out of range.
        """
        if images.y is None:
            message = "the images have no labels"
            raise DataError(
                message, code="D03", where=self.build.path, fix="name data with classes"
            )
        wrong = (images.y < 0) | (images.y >= self.classes)
        if bool(wrong.any()):
            found = int(images.y[wrong][0])
            message = f"an image has label {found}, the run has {self.classes} classes"
            raise DataError(
                message, code="D03", where=self.build.path, fix="name data of the same classes"
            )
        return images.y


def _moved(x: Tensor, native: Domain | None, build: Build) -> Tensor:
    """Images [N, ...] of another dataset in the domain that the run's networks know."""
    wanted = build.data.domain if build.data is not None else None
    if native is None or wanted is None or native == wanted:
        return x
    return wanted.low + (x - native.low) / native.span * wanted.span


def refusal(build: Build, key: str, message: str, fix: str, **context: Any) -> RecipeError:
    """R10 at a key of the metric's table."""
    where = f"{build.path}.{key}" if build.path else key
    return RecipeError([Fault(code="R10", key=where, message=message, fix=fix, **context)])
