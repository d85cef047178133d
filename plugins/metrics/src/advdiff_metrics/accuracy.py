"""Clean accuracy of a classifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from attrs import define
from torch import Tensor, nn

from advdiff_core.errors import DataError, NumericsError
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.dataset import Dataset
from advdiff_core.interfaces.metric import Evaluation, Metric
from advdiff_core.math.copies import Seen
from advdiff_core.math.statistics import wilson
from advdiff_core.settings import Spec, setting, settings
from advdiff_core.types import Batch, Domain
from advdiff_metrics.faults import refused

__all__ = ["Accuracy"]

TOP = 5


@define
class _Tally:
    """Sums over samples."""

    count: int = 0
    first: int = 0
    top: int = 0
    loss: float = 0.0
    classes: int = 0

    def add(self, logits: Tensor, y: Tensor) -> None:
        """Add a batch: logits [B, K] and labels [B]."""
        ranked = logits.topk(min(TOP, logits.shape[1]), dim=1).indices == y[:, None]
        self.classes = logits.shape[1]
        self.count += len(y)
        self.first += int(ranked[:, 0].sum())
        self.top += int(ranked.sum())
        self.loss += float(F.cross_entropy(logits.double(), y, reduction="sum"))


class Accuracy(Metric):
    """Share of images that a classifier names right, with its Wilson interval; higher is better.

    `accuracy`, `accuracy_low` and `accuracy_high` (the ends of the interval), `accuracy_top5` where
    there are more than five classes, and `cross_entropy`, the mean loss in nats, lower is better.
    On the training data, if `data` is left out, all names begin with `train_`. Nothing is sampled.
    The protocol says how many of the images are training images, too.
    """

    needs_samples = False
    # A classifier of latents takes latents.
    decoded = False

    @settings
    class Settings:
        """Keys of `use = "accuracy"`."""

        role: str = setting("student", ref="role", help="the classifier")
        data: Spec | None = setting(
            None, kind="dataset", help="labelled images; the training data if left out"
        )
        images: int = setting(0, ge=0, unit="images", help="the first so many of them; 0: all")
        confidence: float = setting(0.95, gt=0, lt=1, help="coverage of the interval")
        batch: int = setting(256, ge=1, unit="images", help="images per forward")

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        known = build.models.get(settings.role)
        if known is None or known.kind != "backbone" or known.parametrization != "none":
            message = f"{settings.role!r} is no classifier"
            fix = 'name a backbone with parametrization = "none"'
            raise refused(build, "role", message, fix)
        self._data: Dataset | None = None
        self._known: Seen | None = None
        if settings.data is not None:
            self._data = cast("Dataset", build.nested(settings.data))
        self._check_data()

    def _check_data(self) -> None:
        mine, theirs = self.build.data, self._data.info if self._data else None
        if mine is not None and theirs is not None and mine.shape != theirs.shape:
            message = (
                f"the images are {list(theirs.shape)}, the classifier's are {list(mine.shape)}"
            )
            raise refused(self.build, "data", message, "name data of the same shape")
        if not (theirs or mine) or not (theirs or mine).classes:  # type: ignore[union-attr]
            message = "the data have no labels"
            raise refused(self.build, "data", message, "name a dataset with classes")

    def protocol(self) -> Mapping[str, object]:
        """Data, their number and fingerprint, classifier, interval."""
        told: dict[str, object] = {"data": "training data of the run, without corruption"}
        if self._data is not None:
            spec = self.settings.data
            told = {"data": spec.use, "fingerprint": self._data.fingerprint()}
            told["images"] = self._limit(self._data.info.count)
        return {
            **told,
            "role": self.settings.role,
            "view": "clean images, no attack, no augmentation",
            "interval": f"Wilson, {100 * self.settings.confidence:g} %",
            "top": TOP,
        }

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Shares in [0, 1] by name, and the loss."""
        module, tally = evaluation.module(self.settings.role), _Tally()
        seen = self._seen(evaluation)
        copies = 0
        for start, batch in self._batches(evaluation):
            _add(tally, module, batch, start, evaluation.device)
            copies += seen.among(batch.x) if seen is not None else 0
        low, high = wilson(tally.first, tally.count, self.settings.confidence)
        found = {
            "accuracy": tally.first / tally.count,
            "accuracy_low": low,
            "accuracy_high": high,
            "cross_entropy": tally.loss / tally.count,
        }
        if tally.classes > TOP:
            found["accuracy_top5"] = tally.top / tally.count
        if seen is not None:
            evaluation.note(
                f"{copies} of {tally.count} images are among the {seen.count} training images "
                "they were compared with"
            )
            return found
        evaluation.note(f"{tally.count} training images")
        return {f"train_{name}": value for name, value in found.items()}

    def _seen(self, evaluation: Evaluation) -> Seen | None:
        """The training images, which images of another dataset may not be."""
        if self._data is None:
            return None
        if self._known is None:
            # Data do not change while a run is validated again and again.
            domain = self.build.data.domain if self.build.data is not None else None
            self._known = Seen(evaluation.clean, domain)
        return self._known

    def _limit(self, count: int) -> int:
        return min(count, self.settings.images or count)

    def _batches(self, evaluation: Evaluation) -> Iterator[tuple[int, Batch]]:
        """Batches in the run's domain, with the index of the first sample of each."""
        data = self._data
        if data is None:
            x, y = evaluation.clean, evaluation.labels
            count = self._limit(len(x))
        else:
            count = self._limit(data.info.count)
        for start in range(0, count, self.settings.batch):
            rows = slice(start, min(start + self.settings.batch, count))
            if data is None:
                yield start, Batch(x[rows], None if y is None else y[rows])
            else:
                batch = data.batch(torch.arange(rows.start, rows.stop))
                yield start, batch._replace(x=_moved(batch.x, data.info.domain, self.build))


def _moved(x: Tensor, native: Domain | None, build: Build) -> Tensor:
    """Images [B, ...] of another dataset in the domain that the classifier was trained in."""
    wanted = build.data.domain if build.data is not None else None
    if native is None or wanted is None or native == wanted:
        return x
    return wanted.low + (x - native.low) / native.span * wanted.span


@torch.no_grad()
def _add(tally: _Tally, module: nn.Module, batch: Batch, start: int, device: torch.device) -> None:
    if batch.y is None:
        fix = "name data with labels"
        raise DataError("the images have no labels", code="D03", where="accuracy", fix=fix)
    logits = module(batch.x.to(device), None, None).output
    if logits is None or logits.dim() != 2:
        found = None if logits is None else list(logits.shape)
        message = f"the network returned {found}, wanted one logit per class [B, K]"
        raise DataError(message, code="R10", where="accuracy", fix="name a classifier")
    logits, y = logits.float().cpu(), batch.y.cpu()
    if not bool(logits.isfinite().all()):
        message = f"logits are not finite from image {start} on"
        raise NumericsError(message, code="E22", where="accuracy", fix="look at the training")
    wrong = (y < 0) | (y >= logits.shape[1])
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        message = f"image {start + at} has label {int(y[at])}, the classifier has "
        message += f"{logits.shape[1]} classes"
        raise DataError(message, code="D03", where="accuracy", fix="name data of the same classes")
    tally.add(logits, y)
