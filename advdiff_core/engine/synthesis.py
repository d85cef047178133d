"""Synthetic data sets: labelled images in shards, resumable, the best of each class if wanted.

The procedure of Wang et al. (2023): class-conditional samples, of which the share that a classifier
is surest of is kept per class. An image depends on its seed and label alone, and a shard is written
whole or not at all: a run that was killed goes on with the first shard that is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from attrs import evolve, field, frozen
from torch import Tensor

from advdiff_core.engine import strict_json
from advdiff_core.engine.distributed import World
from advdiff_core.engine.fsio import make_dirs, sweep_temps, write_atomic
from advdiff_core.engine.judge import Judge
from advdiff_core.engine.lock import Lock
from advdiff_core.engine.safe_read import read_bytes
from advdiff_core.engine.shards import DISK, read_shard, shard_name, write_index, write_shard
from advdiff_core.errors import DataError, Interrupted, NumericsError, UsageError

if TYPE_CHECKING:
    from advdiff_core.engine.api import Trained
    from advdiff_core.engine.signals import StopFlag

__all__ = ["CANDIDATES", "JOB", "Job", "Synthesis", "best_of_each_class"]

JOB = "job.json"
#: Where all images are kept when some are chosen.
CANDIDATES = "candidates"


@frozen(kw_only=True)
class Job:
    """Which images are made.

    Attributes:
        first: Seed of the first image; the others follow.
        num: Number of images.
        labels: Labels, given to the images in turn; empty for data without classes.
        shard: Images per shard.
        select: Share of each class that is kept; None for all.
    """

    first: int = 0
    num: int = 64
    labels: tuple[int, ...] = ()
    shard: int = 10_000
    select: float | None = None

    @property
    def shards(self) -> int:
        """Number of shards before any choice."""
        return -(-self.num // self.shard)

    def seeds(self, number: int) -> range:
        """Seeds of a shard."""
        low = number * self.shard
        return range(self.first + low, self.first + min(low + self.shard, self.num))

    def labels_of(self, seeds: range) -> Tensor | None:
        """Labels of images [n], by their place from the first one."""
        if not self.labels:
            return None
        places = [(seed - self.first) % len(self.labels) for seed in seeds]
        return torch.tensor([self.labels[place] for place in places], dtype=torch.int64)


@frozen(kw_only=True, eq=False)
class Synthesis:
    """Makes a synthetic data set.

    Attributes:
        trained: The run that is sampled.
        job: Which images.
        folder: Where they go.
        judge: Says how sure it is of each label; None for no judgement.
        judged_by: What is recorded of the judge.
        ema: See `generate`.
        batch: Images at once; changes memory, not images.
        stop: Set by a signal; honoured after the batch in progress.
        tell: Gets a line per shard.

    Several processes (`trained.world`) make the shards in turn; each of them runs this.
    """

    trained: Trained
    job: Job
    folder: Path
    judge: Judge | None = None
    judged_by: dict[str, Any] | None = None
    ema: int | None = None
    batch: int = 256
    stop: StopFlag | tuple[()] = ()
    tell: Callable[[str], None] = field(default=lambda line: None)

    def run(self) -> dict[str, Any]:
        """Make what is missing, and the index; returns count, shards and how it was made.

        Raises:
            UsageError: If the folder holds another job, or the run cannot make images of it.
            Interrupted: If a signal asked to stop; whole shards are kept.
            NumericsError: If a sample is not finite.
            StorageError: If the folder cannot be written, or another process is at it.
        """
        self._check()
        ranks = self.trained.world.ranks
        source = self.folder if self.job.select is None else self.folder / CANDIDATES
        with ExitStack() as stack:
            ranks.on_main(lambda: self._open(source, stack))
            parts = ranks.agree(lambda: self._mine(source))
            made = dict(entry for part in parts for entry in part)
            entries = ranks.on_main(lambda: self._finish(source, made))
        return {
            "out": str(self.folder), "count": sum(entry["count"] for entry in entries),
            "made": self.job.num, "shards": len(entries), **self.facts(),
        }  # fmt: skip

    def _open(self, source: Path, stack: ExitStack) -> None:
        """Take the folder for this job."""
        make_dirs(self.folder)
        stack.enter_context(Lock(self.folder / ".lock"))
        self._claim()
        make_dirs(source)
        for folder in {self.folder, source}:
            sweep_temps(folder)

    def _finish(self, source: Path, made: Mapping[int, dict[str, Any]]) -> list[dict[str, Any]]:
        """Write the index of all shards, and choose if there is a choice; the final entries."""
        entries = [made[number] for number in range(self.job.shards)]
        write_index(source, entries, classes=self._classes, made=self.facts())
        return entries if self.job.select is None else self._choose(source)

    def facts(self) -> dict[str, Any]:
        """How the images are made: the same facts, the same images."""
        recipe, info = self.trained.recipe, self.pictures
        return {
            "run": self.trained.rundir.path.name,
            "nimg": self.trained.nimg,
            "weights": self.trained.weights_id(),
            "sample": {**recipe.to_dict()["sample"], **self._average()},
            "device": self.trained.experiment.scene.compute.device.type,
            "first_seed": self.job.first,
            "num": self.job.num,
            "labels": list(self.job.labels),
            "shard": self.job.shard,
            "domain": [info.domain.low, info.domain.high],
            "judge": self.judged_by,
            "select": self.job.select,
        }

    @property
    def pictures(self) -> Any:
        """Description of the images: the data's, or what latents are decoded to."""
        return self.trained.experiment.source.pictures

    def _average(self) -> dict[str, int]:
        return {} if self.ema is None else {"ema": self.ema}

    def _check(self) -> None:
        info = self.pictures
        if self.trained.recipe.sample is None:
            raise UsageError("this recipe has no denoiser to sample", code="R10", where="sample")
        if not info.is_image or info.domain is None:
            message = f"shards hold images, the run's data have shape {list(info.shape)}"
            raise UsageError(message, where="--to shards", fix="leave out --to")
        if self.judge is not None:
            self.judge.check(info.shape)

    def _claim(self) -> None:
        """Write down the job, or find that the folder holds this very one."""
        path, facts = self.folder / JOB, strict_json.dumps(self.facts())
        if not path.exists():
            write_atomic(path, facts, fs=DISK)
            return
        found = strict_json.loads(read_bytes(path, limit=2**20), where=str(path))
        wanted = strict_json.loads(facts, where=str(path))
        for key, value in wanted.items():
            old = found.get(key) if isinstance(found, dict) else None
            if old != value:
                message = f"the folder holds images made otherwise: {key} was {old!r}, is {value!r}"
                fix = "choose another --out, or repeat the options of the first call"
                raise UsageError(message, where=str(self.folder), fix=fix)

    def _mine(self, folder: Path) -> list[tuple[int, dict[str, Any]]]:
        """Number and entry of the shards of this process; those that are whole are kept."""
        entries, began, fresh = [], time.monotonic(), 0
        world = self.trained.world
        for number in range(world.rank, self.job.shards, world.size):
            seeds, path = self.job.seeds(number), folder / shard_name(number)
            entry = self._whole(path, seeds)
            if entry is None:
                entry = write_shard(path, self._shard(seeds))
                fresh += len(seeds)
                rate = world.size * fresh / max(time.monotonic() - began, 1e-9)
                done = seeds.stop - self.job.first
                self.tell(f"{done:,} of {self.job.num:,} images, {rate:,.1f} images/s")
            entries.append((number, entry))
        return entries

    @property
    def _classes(self) -> int:
        return int(self.trained.info.classes) if self.job.labels else 0

    def _whole(self, path: Path, seeds: range) -> dict[str, Any] | None:
        """The entry of a shard that is there already; None if it has to be made."""
        if not path.exists():
            return None
        try:
            arrays, entry = read_shard(path)
            fits = np.array_equal(arrays["seed"], np.array(seeds))
        except (DataError, KeyError):
            fits = False
        if not fits:
            self.tell(f"{path.name} is damaged and made again")
            return None
        return entry

    def _shard(self, seeds: range) -> dict[str, np.ndarray]:
        """The arrays of a shard."""
        parts = []
        for low in range(0, len(seeds), self.batch):
            if self.stop:
                raise self._interrupted()
            parts.append(self._pixels(seeds[low : low + self.batch]))
        image, labels = np.concatenate(parts), self.job.labels_of(seeds)
        arrays = {"image": image, "seed": np.array(seeds, dtype=np.int64)}
        if labels is not None:
            arrays["label"] = labels.numpy()
            if self.judge is not None:
                arrays["confidence"] = self.judge.confidence(image, labels)
        return arrays

    def _interrupted(self) -> Interrupted:
        message = "stopped; whole shards are kept"
        return Interrupted(message, where=str(self.folder), fix="go on with the same command")

    def _pixels(self, seeds: range) -> np.ndarray:
        """Images [n, H, W, C], uint8."""
        labels = self.job.labels_of(seeds)
        alone = evolve(self.trained, world=World())
        x0 = alone.sample(seeds, batch=len(seeds), labels=labels, ema=self.ema).x0
        bad = ~x0.flatten(1).isfinite().all(1)
        if bool(bad.any()):
            first = seeds[int(bad.nonzero()[0])]
            message = f"{int(bad.sum())} of {len(bad)} samples are not finite, first seed {first}"
            fix = "train longer or with a lower rate"
            raise NumericsError(message, code="E22", where=str(self.folder), fix=fix)
        x0 = self.trained.experiment.source.decode(x0)
        domain = self.pictures.domain
        levels = ((x0 - domain.low) / domain.span * 255).round().clamp(0, 255)
        return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()

    def _choose(self, source: Path) -> list[dict[str, Any]]:
        """Write the best images of each class, in the order of their seeds."""
        assert self.job.select is not None
        labels, sure = self._judgements(source)
        chosen = best_of_each_class(labels, sure, self.job.select)
        entries = []
        for number, low in enumerate(range(0, len(chosen), self.job.shard)):
            rows = chosen[low : low + self.job.shard]
            entries.append(
                write_shard(self.folder / shard_name(number), self._gather(source, rows))
            )
        write_index(self.folder, entries, classes=self._classes, made=self.facts())
        return entries

    def _judgements(self, source: Path) -> tuple[np.ndarray, np.ndarray]:
        """Labels and confidences of all candidates."""
        labels, sure = [], []
        for number in range(self.job.shards):
            arrays, _ = read_shard(source / shard_name(number))
            labels.append(arrays["label"])
            sure.append(arrays["confidence"])
        return np.concatenate(labels), np.concatenate(sure)

    def _gather(self, source: Path, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The candidates at `rows` [n], which ascend."""
        parts: dict[str, list[np.ndarray]] = {}
        for number in np.unique(rows // self.job.shard):
            arrays, _ = read_shard(source / shard_name(int(number)))
            here = rows[rows // self.job.shard == number] - number * self.job.shard
            for name, array in arrays.items():
                parts.setdefault(name, []).append(array[here])
        return {name: np.concatenate(part) for name, part in parts.items()}


def best_of_each_class(labels: np.ndarray, sure: np.ndarray, share: float) -> np.ndarray:
    """Rows of the surest images of each class, ascending; earlier ones win ties.

    Args:
        labels: Labels [N].
        sure: How sure the judge is of each [N].
        share: Share of each class that is kept; the whole part of it, at least one image.
    """
    kept = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        order = np.argsort(-sure[rows], kind="stable")
        # A hair more, so that 0.2 of 50 is 10 whatever the last bit says.
        count = max(int(share * len(rows) + 1e-9), 1)
        kept.append(rows[order[:count]])
    return np.sort(np.concatenate(kept)) if kept else np.empty(0, np.int64)
