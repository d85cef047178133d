"""What metrics of a classifier are computed on: labelled images, of the run or another dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from advdiff_attacks.faults import refusal
from advdiff_core import Batch, Build, DataError, Dataset, Evaluation, Spec

__all__ = ["LabelledImages", "labels_of", "require_classifier"]


def require_classifier(build: Build, role: str) -> None:
    """Refuse a role that is no classifier.

    Raises:
        RecipeError: R10.
    """
    model = build.models.get(role)
    if model is None or model.kind != "backbone" or model.parametrization != "none":
        fix = 'name a backbone with parametrization = "none"'
        raise refusal(build, "role", f"{role!r} is no classifier", fix)


def labels_of(batch: Batch, where: str) -> Tensor:
    """Classes [B] of a batch.

    Raises:
        DataError: D03 if it has none.
    """
    if batch.y is None:
        message = "the images have no labels"
        raise DataError(message, code="D03", where=where, fix="name data with labels")
    return batch.y


class LabelledImages:
    """The first images of a dataset, or of the training data, in their order.

    Args:
        data: The dataset; None for the training data.
        build: What the metric was told.
        images: How many; 0 for all.
        batch: Images at once.
    """

    def __init__(self, data: Spec | None, build: Build, *, images: int, batch: int) -> None:
        self._build, self._images, self._batch = build, images, batch
        self._use = "" if data is None else data.use
        self._data = None if data is None else cast("Dataset", build.nested(data))

    @property
    def info(self) -> Any:
        """Description of the data."""
        return self._data.info if self._data is not None else self._build.data

    def require_shape(self) -> None:
        """Refuse images of another shape than the run's.

        Raises:
            RecipeError: R10.
        """
        mine = self._build.data
        if mine is not None and mine.shape != self.info.shape:
            message = f"the images are {list(self.info.shape)}, "
            message += f"the classifier's are {list(mine.shape)}"
            raise refusal(self._build, "data", message, "name data of the same shape")

    def told(self) -> dict[str, object]:
        """What protocols say of them."""
        if self._data is None:
            return {"data": "training data of the run, without corruption"}
        return {"data": self._use, "fingerprint": self._data.fingerprint()}

    def named(self, found: Mapping[str, float]) -> Mapping[str, float]:
        """Numbers by name: those of training data are named so."""
        return found if self._data is not None else {f"train_{n}": v for n, v in found.items()}

    def batches(self, evaluation: Evaluation) -> Iterator[Batch]:
        """The images [B, ...] in their own domain, with their classes."""
        data = self._data
        whole = len(evaluation.clean) if data is None else data.info.count
        count = min(whole, self._images or whole)
        for start in range(0, count, self._batch):
            stop = min(start + self._batch, count)
            if data is not None:
                yield data.batch(torch.arange(start, stop))
            else:
                x, y = evaluation.clean, evaluation.labels
                yield Batch(x[start:stop], None if y is None else y[start:stop])
