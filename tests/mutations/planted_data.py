"""Mistakes in datasets, corruptions and metrics."""

from __future__ import annotations

import math

import torch
from planted import planted

from advdiff_core import Batch, Corruption, DataInfo, Dataset, Domain, Metric
from advdiff_core.draws import keyed_generator
from advdiff_core.settings import setting, settings

COUNT = 12


class Healthy(Dataset):
    """Twelve grey images of two classes."""

    def __init__(self, settings, build):
        super().__init__(settings, build)
        self.x = torch.rand(COUNT, 1, 4, 4, generator=keyed_generator("data"))
        self.y = torch.arange(COUNT) % 2

    @property
    def info(self):
        """Description."""
        return DataInfo(shape=(1, 4, 4), count=COUNT, domain=Domain(0.0, 1.0), classes=2)

    def batch(self, indices):
        """Samples."""
        return Batch(self.x[indices], self.y[indices])

    def fingerprint(self):
        """A digest."""
        return "0123"


@planted("batches-as-described", "values from", "domain")
class WrongRange(Healthy):
    """Hands out bytes."""

    def batch(self, indices):
        """0 to 255."""
        return Batch(255 * self.x[indices], self.y[indices])


@planted("batches-as-described", "float64", "float32")
class DoubleData(Healthy):
    """numpy's default type."""

    def batch(self, indices):
        """float64."""
        return Batch(self.x[indices].double(), self.y[indices])


@planted("batches-as-described", "labels from", "from 0")
class LabelsFromOne(Healthy):
    """Counts classes from one."""

    def batch(self, indices):
        """1, 2."""
        return Batch(self.x[indices], self.y[indices] + 1)


@planted("batches-as-described", "samples of shape", "info.shape")
class ChannelsLastShape(Healthy):
    """NHWC."""

    def batch(self, indices):
        """[B, 4, 4, 1]."""
        return Batch(self.x[indices].permute(0, 2, 3, 1), self.y[indices])


@planted("pure-function-of-indices", "read again", "index alone")
class Counter(Healthy):
    """Depends on how often it was read."""

    reads = 0

    def batch(self, indices):
        """Fades."""
        self.reads += 1
        return Batch(self.x[indices] / self.reads, self.y[indices])


@planted("pure-function-of-indices", "index alone")
class GlobalFlip(Healthy):
    """Flips by the global generator."""

    def batch(self, indices):
        """Flips."""
        x = self.x[indices]
        return Batch(x * (1 - 0.5 * torch.rand(len(x), 1, 1, 1)), self.y[indices])


@planted("pure-function-of-indices", "alone against in a batch", "over the batch")
class StandardisesBatch(Healthy):
    """Centres each batch."""

    def batch(self, indices):
        """Over the batch."""
        x = self.x[indices]
        return Batch((x - x.mean(0) + 0.5).clamp(0, 1), self.y[indices])


@planted("pure-function-of-indices", "another copy", "index alone")
class AnotherEachTime(Healthy):
    """Draws its samples from the global generator when it is built."""

    built = 0

    def __init__(self, settings, build):
        super().__init__(settings, build)
        AnotherEachTime.built += 1
        self.x = (self.x + 0.01 * AnotherEachTime.built).clamp(0, 1)


@planted("leaves-everything-alone", "its input indices", "in place")
class EditsIndices(Healthy):
    """Wraps indices in place."""

    def batch(self, indices):
        """In place."""
        return super().batch(indices.add_(1).remainder_(COUNT))


@planted("hands-out-copies", "edited", "copies")
class HandsOutViews(Healthy):
    """A view of the first rows, however many."""

    def batch(self, indices):
        """A view where indices are consecutive."""
        first, count = int(indices[0]), len(indices)
        if torch.equal(indices, torch.arange(first, first + count)):
            return Batch(self.x[first : first + count], self.y[first : first + count])
        return super().batch(indices)


@planted("fingerprint-is-stable", "another fingerprint", "no times, ids")
class FingerprintOfObject(Healthy):
    """The identity of an object."""

    def fingerprint(self):
        """Id."""
        return str(id(self.x))


class Damage(Corruption):
    """Noise on a fraction of the samples, healthy."""

    @settings
    class Settings:
        """Keys."""

        fraction: float = setting(0.5, ge=0.0, le=1.0, help="share of samples")
        seed: int = setting(0, ge=0, help="seed")

    def key(self, index):
        """What the numbers of a sample depend on."""
        return ("damage", self.settings.seed, index)

    def affected(self, indices):
        """By a number per index."""
        numbers = [torch.rand((), generator=keyed_generator(*self.key(int(i)))) for i in indices]
        return torch.stack(numbers) < self.settings.fraction

    def noise(self, x, indices):
        """Numbers [B, ...]."""
        made = [
            torch.randn(x[0].shape, generator=keyed_generator("n", *self.key(int(i))))
            for i in indices
        ]
        return torch.stack(made)

    def corrupt(self, x, indices):
        """Damaged copies."""
        hit = self.affected(indices).reshape(-1, *([1] * (x.dim() - 1)))
        return torch.where(hit, x + 0.1 * self.noise(x, indices), x)


@planted("pure-function-of-indices", "damaged", "seed and index")
class GlobalDamage(Damage):
    """Noise from the global generator."""

    def noise(self, x, indices):
        """Global."""
        return torch.randn_like(x)


@planted("pure-function-of-indices", "damaged in reverse", "seed and index")
class DamagesByPlace(Damage):
    """Draws for the batch, from one generator."""

    def noise(self, x, indices):
        """By position."""
        return torch.randn(x.shape, generator=keyed_generator("batch", self.settings.seed))


@planted("pure-function-of-indices", "damaged")
class FirstHalf(Damage):
    """Damages the first half of whatever batch it gets."""

    def affected(self, indices):
        """By position."""
        return torch.arange(len(indices)) < math.ceil(self.settings.fraction * len(indices))


@planted("damages-what-it-says", "not affected", "affected samples only")
class ClipsEverything(Damage):
    """Clips the others, too."""

    def corrupt(self, x, indices):
        """Clamp."""
        return super().corrupt(x, indices).clamp(-0.2, 0.2)


@planted("damages-a-fraction", "share of", "fraction =")
class PercentFraction(Damage):
    """Reads the fraction as percent."""

    def affected(self, indices):
        """Too few."""
        numbers = [torch.rand((), generator=keyed_generator(*self.key(int(i)))) for i in indices]
        return torch.stack(numbers) < self.settings.fraction / 100


@planted("obeys-its-seed", "same damage", "seed into the key")
class IgnoresSeed(Damage):
    """One seed for all."""

    def key(self, index):
        """No seed."""
        return ("damage", index)


@planted("leaves-everything-alone", "its input x", "in place")
class DamagesOriginal(Damage):
    """Writes into the clean samples."""

    def corrupt(self, x, indices):
        """In place."""
        return x.copy_(super().corrupt(x, indices))


class Distance(Metric):
    """Distance of means, healthy."""

    def protocol(self):
        """What it depends on."""
        return {"features": "pixels"}

    def distance(self, samples, clean):
        """A number."""
        return (samples.double().mean(0) - clean.double().mean(0)).norm()

    def compute(self, evaluation):
        """Named."""
        return {"distance": float(self.distance(evaluation.samples, evaluation.clean))}


@planted("order-does-not-matter", "another order", "pairs by position")
class PairsByPosition(Distance):
    """Compares sample n with image n."""

    def distance(self, samples, clean):
        """Pairs."""
        return (samples - clean).flatten(1).norm(dim=1).double().mean()


@planted("symmetric-as-claimed", "sets exchanged", "symmetric", symmetric=("distance",))
class OneSided(Distance):
    """Divides by the spread of one set alone."""

    def distance(self, samples, clean):
        """Whitened by the data."""
        return super().distance(samples, clean) / clean.double().std()


@planted("finite-numbers", "nan", "finite number")
class LogOfZero(Distance):
    """A logarithm that may be of a negative number."""

    def distance(self, samples, clean):
        """NaN."""
        return (-super().distance(samples, clean) - 1).log()


@planted("finite-numbers", "tensor", "float(value)")
class TensorNumbers(Distance):
    """Returns tensors."""

    def compute(self, evaluation):
        """Not floats."""
        return {"distance": self.distance(evaluation.samples, evaluation.clean)}


@planted("protocol-says-something", "empty protocol")
class NoProtocol(Distance):
    """Says nothing of itself."""

    def protocol(self):
        """Empty."""
        return {}


@planted("protocol-says-something", "JSON")
class TensorProtocol(Distance):
    """A protocol that cannot be stored."""

    def protocol(self):
        """A tensor."""
        return {"weights": torch.ones(2)}


@planted("repeats-itself", "torch's global generator", "generator")
class RandomProjection(Distance):
    """Projects by the global generator."""

    def distance(self, samples, clean):
        """Random."""
        x, y = samples.flatten(1), clean.flatten(1)
        direction = torch.randn(x.shape[1])
        return (x @ direction).mean() - (y @ direction).mean()


@planted("repeats-itself", "its input samples", "in place")
class EditsSamples(Distance):
    """Rounds samples to bytes in place."""

    def distance(self, samples, clean):
        """In place."""
        return super().distance(samples.mul_(127.5).round_().div_(127.5), clean)


@planted("best-on-equal-sets", "samples that are the data", best={"distance": 0.0})
class ComparesWithNothing(Distance):
    """Forgets to subtract the data."""

    def distance(self, samples, clean):
        """Not a distance of the two."""
        return samples.double().mean(0).norm()
