"""What a model will see of its data: pictures, statistics and the speed of reading."""

from __future__ import annotations

import time
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

from advdiff_core.draws import Draws
from advdiff_core.engine.feed import Feed
from advdiff_core.engine.parts import DataParts, assemble_data
from advdiff_core.interfaces.noise_schedule import NoiseSchedule
from advdiff_core.math.densities import draw_times
from advdiff_core.recipe import Recipe
from advdiff_core.types import Augmented, DataInfo, expand

__all__ = ["DataReport", "look"]

#: Samples that the statistics are taken over, read so many at a time.
SCANNED, CHUNK = 10_000, 500
#: Shares of the training times at which noised samples are shown.
LEVELS = (0.1, 0.5, 0.9)
#: Batches that are timed, after one that is not.
TIMED = 20


@frozen(kw_only=True)
class DataReport:
    """Statistics of a recipe's data.

    Attributes:
        info: Shape, count, domain and classes.
        scanned: Samples that the numbers below are of; evenly spread over the data.
        mean: Mean of each channel (or coordinate) as the model sees them, not augmented.
        std: Standard deviation of each.
        low: Smallest value.
        high: Largest value.
        labels: Samples of each class among the scanned; empty without labels.
        corrupted: Share of the scanned that is damaged.
        skipped: Samples that could not be read and were skipped.
        images_per_s: Samples per second of the feed, augmentations included.
        fingerprint: Digest of the data, as runs record it.
        rows: Pictures by caption, each [N, ...] on the CPU.
    """

    info: DataInfo
    scanned: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: float
    high: float
    labels: tuple[int, ...]
    corrupted: float
    skipped: int
    images_per_s: float
    fingerprint: str
    rows: dict[str, Tensor] = field(factory=dict, repr=False)

    def as_json(self) -> dict[str, Any]:
        """The object that `advdiff data --json` prints, but for the picture."""
        domain = self.info.domain
        return {
            "shape": list(self.info.shape), "count": self.info.count,
            "domain": None if domain is None else [domain.low, domain.high],
            "classes": self.info.classes, "subspace": self._subspace(),
            "scanned": self.scanned, "mean": list(self.mean),
            "std": list(self.std), "min": self.low, "max": self.high, "labels": list(self.labels),
            "corrupted": self.corrupted, "skipped": self.skipped,
            "images_per_s": self.images_per_s, "fingerprint": self.fingerprint,
        }  # fmt: skip

    def _subspace(self) -> dict[str, Any] | None:
        """Dimensions of the clean samples' subspace and what share of the variance it holds."""
        known = self.info.subspace
        if known is None:
            return None
        return {"dimensions": len(known.basis), "explained": known.explained}


def look(recipe: Recipe, num: int) -> DataReport:
    """Read data as a run of this recipe would; builds no model.

    Args:
        recipe: The checked recipe.
        num: Samples per row of pictures.

    Raises:
        DataError: As a run would, if the data are missing or damaged.
    """
    parts = assemble_data(recipe)
    parts.source.check(torch.arange(min(parts.source.info.count, CHUNK)))
    feed = Feed(
        parts.source, seed=recipe.run.seed, place=torch.Tensor.cpu, workers=recipe.data.workers,
        augment=parts.augment,
    )  # fmt: skip
    try:
        speed = _speed(feed, recipe.run.batch)
        rows = _rows(parts, feed, recipe, num)
    finally:
        feed.close()
    return DataReport(
        info=parts.source.info, images_per_s=speed, rows=rows,
        fingerprint=parts.source.fingerprint, **_statistics(parts),
    )  # fmt: skip


def _speed(feed: Feed, batch: int) -> float:
    """Samples per second, as a run reads them: one batch ahead of the networks."""
    feed.batch(0, batch, ahead=batch)
    began = time.perf_counter()
    for step in range(1, TIMED + 1):
        feed.batch(step * batch, batch, ahead=(step + 1) * batch)
    return TIMED * batch / (time.perf_counter() - began)


def _rows(parts: DataParts, feed: Feed, recipe: Recipe, num: int) -> dict[str, Tensor]:
    """Clean, damaged, augmented and noised forms of the samples that a run sees first."""
    source = parts.source
    indices = feed.indices(0, min(num, recipe.run.batch))
    rows = {"data": source.clean(indices).x}
    if source.corruptions:
        rows["corrupted"] = source.batch(indices).x
    seen: Augmented = feed.batch(0, len(indices))
    if parts.augment:
        rows["augmented"] = seen.x
    if any(model.parametrization != "none" for model in recipe.models.values()):
        rows |= _noised(parts.schedule, seen.x, recipe)
    return rows


def _noised(schedule: NoiseSchedule, x0: Tensor, recipe: Recipe) -> dict[str, Tensor]:
    """`x_t` at quantiles of the training times, scaled back to the spread of the data."""
    law = recipe.schedule.density
    u = torch.tensor(LEVELS, dtype=torch.float64)
    times = draw_times(schedule, u, law=law.law, mean=law.mean, std=law.std)
    size = len(x0)
    rng = Draws((recipe.run.seed, "look"), start=0, size=size, total=size, device=x0.device)
    eps = rng.normal(x0.shape)
    rows = {}
    for share, t in zip(LEVELS, times, strict=True):
        each = t.expand(len(x0))
        alpha, sigma = (
            expand(scale(each).float(), x0) for scale in (schedule.alpha, schedule.sigma)
        )
        spread = (alpha.square() + sigma.square()).sqrt()
        ratio = float(sigma.flatten()[0] / alpha.flatten()[0].clamp_min(1e-12))
        caption = f"noised: sigma / alpha = {ratio:.3g}, {share:.0%} of the times have less"
        rows[caption] = (alpha * x0 + sigma * eps) / spread
    return rows


def _statistics(parts: DataParts) -> dict[str, Any]:
    """Numbers over an even selection of the samples, in float64."""
    source, info = parts.source, parts.source.info
    scanned = min(info.count, SCANNED)
    picked = (torch.arange(scanned, dtype=torch.float64) * info.count / scanned).long()
    total, squares = (torch.zeros(info.shape[0], dtype=torch.float64) for _ in range(2))
    labels = torch.zeros(info.classes, dtype=torch.int64)
    low, high, hurt = float("inf"), float("-inf"), 0
    for part in torch.split(picked, CHUNK):
        x, y = source.batch(part)
        values = x.double().movedim(1, 0).flatten(1)
        total += values.sum(1)
        squares += values.square().sum(1)
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        if y is not None and info.classes:
            labels += torch.bincount(y, minlength=info.classes)
        damaged = torch.zeros(len(part), dtype=torch.bool)
        for corruption in source.corruptions:
            damaged |= corruption.affected(part)
        hurt += int(damaged.sum())
    count = scanned * torch.Size(info.shape[1:]).numel()
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    return {
        "scanned": scanned, "mean": tuple(mean.tolist()), "std": tuple(std.tolist()), "low": low,
        "high": high, "labels": tuple(labels.tolist()), "corrupted": hurt / scanned,
        "skipped": len(source.skipped),
    }  # fmt: skip
