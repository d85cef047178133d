"""The 1,797 handwritten digits that ship with scikit-learn."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.dataset import Dataset
from advdiff_core.settings import setting, settings
from advdiff_core.types import Batch, DataInfo, Domain

__all__ = ["Digits"]

#: Cut without shuffling: neighbours in scikit-learn's order tend to come from one writer.
NUM_TRAIN = 1500

PARTS = {"all": slice(None), "train": slice(NUM_TRAIN), "test": slice(NUM_TRAIN, None)}


class Digits(Dataset):
    """1,797 handwritten digits, 8x8 grey with 17 levels, 10 classes; no network needed.

    From the "Optical Recognition of Handwritten Digits" set of the UCI repository (Alpaydin &
    Kaynak 1998), as shipped in scikit-learn. Values 0 to 16 are scaled to [-1, 1].
    """

    @settings
    class Settings:
        """Keys of `use = "digits"`."""

        part: str = setting(
            "all",
            help="all 1,797 images; train: the first 1,500; test: the last 297",
            choices=tuple(PARTS),
        )

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        # Imported here: scikit-learn takes a second, and listing components must not pay for it.
        from sklearn.datasets import load_digits

        raw = load_digits()
        part = PARTS[settings.part]
        self._x = torch.from_numpy(raw.images[part]).float()[:, None] / 8 - 1
        self._y = torch.from_numpy(raw.target[part]).long()

    @property
    def info(self) -> DataInfo:
        """See `Dataset.info`."""
        return DataInfo(shape=(1, 8, 8), count=len(self._x), domain=Domain(-1.0, 1.0), classes=10)

    def batch(self, indices: Tensor) -> Batch:
        """See `Dataset.batch`."""
        return Batch(self._x[indices], self._y[indices])

    def fingerprint(self) -> str:
        """Digest of all pixels and labels."""
        digest = hashlib.sha256(self._x.numpy().tobytes() + self._y.numpy().tobytes())
        return digest.hexdigest()
