"""A part of another dataset."""

from __future__ import annotations

import hashlib
from typing import Literal

import attrs
import torch
from torch import Tensor

from advdiff_core.draws import permutation
from advdiff_core.errors import Fault, RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.dataset import Dataset
from advdiff_core.settings import Spec, setting, settings
from advdiff_core.types import Batch, DataInfo

__all__ = ["Subset"]

#: Indices made at once for a fingerprint.
CHUNK = 2**20


class Subset(Dataset):
    """So many samples of another dataset: few-shot training, memorization, a part held out.

    A larger `count` with the same `seed` keeps the samples of a smaller one, for `choose = "first"`
    and `"random"`. With these, `count = n` and `skip = n` share nothing and have all: `[validate]`
    measures on the one, and the run trains on the other. The seed of the run plays no part.
    """

    @settings
    class Settings:
        """Keys of `use = "subset"`."""

        of: Spec = setting(kind="dataset", help="the whole")
        count: int = setting(0, help="number of samples; 0: all there are", ge=0, unit="samples")
        choose: Literal["first", "even", "random"] = setting(
            "random", help="the first ones; evenly spread over the whole; or drawn once by `seed`"
        )
        skip: int = setting(
            0, ge=0, unit="samples", applies=("choose", ("first", "random")),
            help="samples left out at the beginning of that order",
        )  # fmt: skip
        seed: int = setting(
            0, ge=0, applies=("choose", ("random",)),
            help="chooses the samples; the run's seed does not",
        )  # fmt: skip

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        whole = build.nested(settings.of)
        assert isinstance(whole, Dataset), "the loader looks it up among datasets"
        self.whole = whole
        self.skip = settings.skip if settings.choose != "even" else 0
        self.count = self._counted()
        self._shuffled: Tensor | None = None
        if settings.choose == "random":
            shuffled = permutation(whole.info.count, "subset", settings.seed)
            self._shuffled = shuffled[self.skip : self.skip + self.count]

    def _counted(self) -> int:
        """Number of samples."""
        made, total = self.settings, self.whole.info.count
        if self.skip >= total:
            message = f"{self.skip:,} samples are left out, there are {total:,}"
            raise self._refusal("skip", message, f"write at most {total - 1}")
        left = total - self.skip
        if made.count > left:
            message = f"{made.count:,} samples are wanted, there are {left:,}"
            message += f" after the first {self.skip:,}" if self.skip else ""
            raise self._refusal("count", message, f"write at most {left}")
        return made.count or left

    def _refusal(self, key: str, message: str, fix: str) -> RecipeError:
        place = f"{self.build.path}.{key}"
        return RecipeError([Fault(code="R10", key=place, message=message, fix=fix)])

    def _rows(self, indices: Tensor) -> Tensor:
        """Indices in the whole of samples `indices` [B]."""
        if self._shuffled is not None:
            return self._shuffled[indices]
        if self.settings.choose == "first":
            return indices + self.skip
        return indices * self.whole.info.count // self.count

    @property
    def info(self) -> DataInfo:
        """See `Dataset.info`."""
        return attrs.evolve(self.whole.info, count=self.count)

    def batch(self, indices: Tensor) -> Batch:
        """See `Dataset.batch`."""
        return self.whole.batch(self._rows(indices))

    def fingerprint(self) -> str:
        """Digest of the whole's fingerprint and of which samples were chosen."""
        digest = hashlib.sha256(f"subset {self.whole.fingerprint()}".encode())
        for first in range(0, self.count, CHUNK):
            rows = self._rows(torch.arange(first, min(first + CHUNK, self.count)))
            digest.update(rows.numpy().tobytes())
        return digest.hexdigest()

    @property
    def pictures(self) -> DataInfo | None:
        """See `Dataset.pictures`."""
        shown = self.whole.pictures
        return None if shown is None else attrs.evolve(shown, count=self.count)

    def decode(self, x: Tensor) -> Tensor:
        """See `Dataset.decode`; `x` [B, ...]."""
        return self.whole.decode(x)

    def originals(self, indices: Tensor) -> Tensor:
        """See `Dataset.originals`; `indices` [B]."""
        return self.whole.originals(self._rows(indices))
