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


class Subset(Dataset):
    """So many samples of another dataset, as for few-shot training or studies of memorization.

    A larger `count` with the same `seed` keeps the samples of a smaller one, for `choose = "first"`
    and `"random"`. The seed of the run plays no part.
    """

    @settings
    class Settings:
        """Keys of `use = "subset"`."""

        of: Spec = setting(kind="dataset", help="the whole")
        count: int = setting(help="number of samples", ge=1, unit="samples")
        choose: Literal["first", "even", "random"] = setting(
            "random", help="the first ones; evenly spread over the whole; or drawn once by `seed`"
        )
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
        self._rows = self._chosen()

    def _chosen(self) -> Tensor:
        """Indices of the samples in the whole [count]."""
        made, total = self.settings, self.whole.info.count
        if made.count > total:
            message = f"{made.count:,} samples are wanted, there are {total:,}"
            key, fix = f"{self.build.path}.count", f"write at most {total}"
            raise RecipeError([Fault(code="R10", key=key, message=message, fix=fix)])
        if made.choose == "random":
            return permutation(total, "subset", made.seed)[: made.count]
        rows = torch.arange(made.count)
        return rows if made.choose == "first" else rows * total // made.count

    @property
    def info(self) -> DataInfo:
        """See `Dataset.info`."""
        return attrs.evolve(self.whole.info, count=self.settings.count)

    def batch(self, indices: Tensor) -> Batch:
        """See `Dataset.batch`."""
        return self.whole.batch(self._rows[indices])

    def fingerprint(self) -> str:
        """Digest of the whole's fingerprint and of which samples were chosen."""
        digest = hashlib.sha256(f"subset {self.whole.fingerprint()}".encode())
        digest.update(self._rows.numpy().tobytes())
        return digest.hexdigest()

    @property
    def pictures(self) -> DataInfo | None:
        """See `Dataset.pictures`."""
        shown = self.whole.pictures
        return None if shown is None else attrs.evolve(shown, count=self.settings.count)

    def decode(self, x: Tensor) -> Tensor:
        """See `Dataset.decode`; `x` [B, ...]."""
        return self.whole.decode(x)

    def originals(self, indices: Tensor) -> Tensor:
        """See `Dataset.originals`; `indices` [B]."""
        return self.whole.originals(self._rows[indices])
