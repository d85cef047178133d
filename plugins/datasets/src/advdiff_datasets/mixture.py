"""Real and synthetic samples, mixed in an exact share per batch."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor

from advdiff_core.draws import keyed_generator, permutation
from advdiff_core.errors import Fault, RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.dataset import Dataset
from advdiff_core.settings import Spec, setting, settings
from advdiff_core.types import Batch, DataInfo

__all__ = ["Mixture"]


class Mixture(Dataset):
    """Batches of real and synthetic samples in a fixed share (Wang et al., 2023).

    Of a batch of B samples `floor(fraction * B)` are synthetic; 0.7 of 512 are 358. Real samples
    are read without replacement, synthetic ones with, and the batch is shuffled. Samples `[0, n)`
    of the mixture are the n real ones, the others follow.
    """

    @settings
    class Settings:
        """Keys of `use = "mixture"`."""

        real: Spec = setting(kind="dataset", help="the real samples")
        synthetic: Spec = setting(kind="dataset", help="the synthetic samples")
        fraction: float = setting(0.7, help="synthetic share of each batch", ge=0, le=1)
        real_draws: Literal["without", "with"] = setting(
            "without", help="whether a real sample may come again before all have been read"
        )
        synthetic_draws: Literal["without", "with"] = setting(
            "with", help="the same of synthetic samples; without keeps 8 bytes of each in memory"
        )
        restart: Literal["exhausted", "epoch"] = setting(
            "exhausted", applies=("real_draws", ("without",)),
            help="real samples are shuffled anew when all were read, or, as in the paper's code, "
            "after as many steps as they alone would fill",
        )  # fmt: skip
        shuffle: bool = setting(True, help="shuffle each batch; false: real samples come first")

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.real, self.synthetic = (self._part(s) for s in (settings.real, settings.synthetic))
        self._check()
        real = self.real.info
        self._info = DataInfo(
            shape=real.shape, count=real.count + self.synthetic.info.count, domain=real.domain,
            classes=real.classes,
        )  # fmt: skip
        self._permutations: dict[tuple[object, ...], Tensor] = {}

    def _part(self, spec: Spec) -> Dataset:
        part = self.build.nested(spec)
        assert isinstance(part, Dataset), "the loader looks it up among datasets"
        return part

    @property
    def info(self) -> DataInfo:
        """See `Dataset.info`."""
        return self._info

    def batch(self, indices: Tensor) -> Batch:
        """See `Dataset.batch`."""
        count = self.real.info.count
        x = torch.empty(len(indices), *self._info.shape)
        y = torch.empty(len(indices), dtype=torch.int64) if self._info.classes else None
        is_real = indices < count
        for part, rows, first in ((self.real, is_real, 0), (self.synthetic, ~is_real, count)):
            if not bool(rows.any()):
                continue
            found = part.batch(indices[rows] - first)
            x[rows] = self._in_domain(found.x, part.info)
            if y is not None and found.y is not None:
                y[rows] = found.y
        return Batch(x, y)

    def fingerprint(self) -> str:
        """Digest of the fingerprints of both parts."""
        text = f"{self.real.fingerprint()} {self.synthetic.fingerprint()}"
        return hashlib.sha256(text.encode()).hexdigest()

    def order(self, position: int, size: int, *, batch: int, key: tuple[object, ...]) -> Tensor:
        """Samples of each step in the exact share; see `Dataset.order`."""
        first, last = position // batch, (position + size - 1) // batch
        steps = [self._step(step, batch, key) for step in range(first, last + 1)]
        return torch.cat(steps)[position - first * batch :][:size]

    def synthetic_per_batch(self, batch: int) -> int:
        """Synthetic samples in a batch: the whole part of `fraction * batch`, as decimals."""
        return int(Fraction(str(self.settings.fraction)) * batch)

    def _step(self, step: int, batch: int, key: tuple[object, ...]) -> Tensor:
        """The samples of one step [batch]."""
        synthetic = self.synthetic_per_batch(batch)
        chosen = torch.cat([
            self._real(step, batch - synthetic, batch, key),
            self.real.info.count + self._synthetic(step, synthetic, key),
        ])  # fmt: skip
        return (
            chosen[permutation(batch, *key, "shuffle", step)] if self.settings.shuffle else chosen
        )

    def _real(self, step: int, size: int, batch: int, key: tuple[object, ...]) -> Tensor:
        count = self.real.info.count
        if self.settings.real_draws == "with":
            return _drawn(count, size, *key, "real", step)
        if self.settings.restart == "exhausted":
            return self._dealt(count, step * size, size, *key, "real")
        steps = -(-count // batch)
        epoch, place = divmod(step, steps)
        shuffled = self._shuffled(count, *key, "real", epoch)
        return shuffled[(place * size + torch.arange(size)) % count]

    def _synthetic(self, step: int, size: int, key: tuple[object, ...]) -> Tensor:
        count = self.synthetic.info.count
        if self.settings.synthetic_draws == "with":
            return _drawn(count, size, *key, "synthetic", step)
        return self._dealt(count, step * size, size, *key, "synthetic")

    def _dealt(self, count: int, position: int, size: int, *key: object) -> Tensor:
        """Every sample once, then again in another order: the places from `position` on [size]."""
        parts = [torch.empty(0, dtype=torch.int64)]
        while size > 0:
            epoch, offset = divmod(position, count)
            part = self._shuffled(count, *key, epoch)[offset : offset + size]
            parts.append(part)
            position, size = position + len(part), size - len(part)
        return torch.cat(parts)

    def _shuffled(self, count: int, *key: object) -> Tensor:
        if key not in self._permutations:
            # A step reads the end of one epoch and the beginning of the next, of either part.
            for old in list(self._permutations)[:-3]:
                del self._permutations[old]
            self._permutations[key] = permutation(count, *key)
        return self._permutations[key]

    def _in_domain(self, x: Tensor, info: DataInfo) -> Tensor:
        """Samples of a part in the domain of the real ones."""
        domain = self._info.domain
        if domain is None or info.domain is None or info.domain == domain:
            return x
        return domain.low + (x - info.domain.low) / info.domain.span * domain.span

    def _check(self) -> None:
        real, other = self.real.info, self.synthetic.info
        facts: tuple[tuple[str, Any, Any], ...] = (
            ("shape", list(real.shape), list(other.shape)),
            ("number of classes", real.classes, other.classes),
            ("range", _range(real), _range(other)),
        )
        for what, wanted, found in facts:
            if wanted != found:
                message = f"the {what} is {found}, that of the real samples {wanted}"
                key, fix = f"{self.build.path}.synthetic", "mix data of one kind"
                raise RecipeError([Fault(code="R10", key=key, message=message, fix=fix)])


def _range(info: DataInfo) -> str:
    return "unbounded" if info.domain is None else "bounded"


def _drawn(count: int, size: int, *key: object) -> Tensor:
    """Indices [size], each drawn from all."""
    return torch.randint(count, (size,), generator=keyed_generator(*key))
