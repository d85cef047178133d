"""Mistakes in augmentations, and in datasets that order samples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from planted import planted
from planted_data import COUNT, Healthy

from advdiff_core import Augmentation
from advdiff_core.draws import keyed_generator


class Turn(Augmentation):
    """Turns half of the samples around their centre, healthy."""

    condition_dim = 1

    def hit(self, rng, size):
        """Which samples [B], bool."""
        return rng.uniform((size,)) < 0.5

    def told(self, hit):
        """What a denoiser is told [B, 1]."""
        return hit.float()[:, None]

    def augment(self, batch, rng):
        """Changed copies."""
        hit = self.hit(rng, len(batch.x))
        scale = torch.where(hit, 0.5, 1.0).reshape(-1, *([1] * (batch.x.dim() - 1)))
        return batch._replace(x=batch.x * scale, c_augment=self.told(hit))


class Mix(Augmentation):
    """Averages each sample with its partner, healthy."""

    mixes = True

    def labels(self, y, mates):
        """Probabilities [B, K]."""
        one_hot = F.one_hot(y, self.build.data.classes).float()
        return (one_hot + one_hot[mates]) / 2

    def augment(self, batch, rng):
        """Mixed copies."""
        mates = rng.partners()
        return batch._replace(x=(batch.x + batch.x[mates]) / 2, y=self.labels(batch.y, mates))


@planted("keeps-shape-and-range", "values from", "clamp")
class Brightens(Turn):
    """Leaves the domain."""

    def augment(self, batch, rng):
        """Up."""
        return super().augment(batch._replace(x=batch.x + 1), rng)


@planted("follows-its-generator", "augmented again", "rng")
class GlobalTurn(Turn):
    """Draws from the global generator."""

    def hit(self, rng, size):
        """Global."""
        return torch.rand(size) < 0.5


@planted("follows-its-generator", "the same samples from other draws", "corruption")
class AlwaysTheSame(Turn):
    """Never changes its mind."""

    def hit(self, rng, size):
        """By place."""
        return torch.arange(size) % 2 == 0


@planted("any-cut-of-the-batch", "in two parts", "sample axis")
class OneForAll(Turn):
    """One generator for the micro-batch."""

    def hit(self, rng, size):
        """Shared by the batch, read in sequence."""
        return torch.rand(size, generator=rng.generator()) < 0.5


@planted("labels-as-declared", "labels", "mixes = True")
class NewLabels(Turn):
    """Renames classes."""

    def augment(self, batch, rng):
        """Another label."""
        return super().augment(batch._replace(y=batch.y * 0), rng)


@planted("labels-as-declared", "that sum to", "1 - lambda")
class HalfLabels(Mix):
    """Forgets the partner's share."""

    def labels(self, y, mates):
        """Half."""
        return F.one_hot(y, self.build.data.classes).float() / 2


@planted("labels-as-declared", "int64", "one-hot")
class WholeLabels(Mix):
    """Keeps whole labels."""

    def labels(self, y, mates):
        """Own."""
        return y


@planted("tells-what-it-did", "c_augment is zero", "same draws")
class TellsNothing(Turn):
    """Zeros."""

    def told(self, hit):
        """Nothing."""
        return torch.zeros(len(hit), 1)


@planted("tells-what-it-did", "condition_dim = 0", "declare condition_dim")
class Undeclared(Turn):
    """Tells more than it declares."""

    condition_dim = 0


@planted("leaves-everything-alone", "its input x", "in place")
class TurnsOriginal(Turn):
    """Writes into the samples."""

    def augment(self, batch, rng):
        """In place."""
        made = super().augment(batch, rng)
        return made._replace(x=batch.x.copy_(made.x))


class Ordered(Healthy):
    """A random sample at each position, healthy."""

    def word(self, position, first):
        """What an index depends on."""
        return position

    def order(self, position, size, *, batch, key):
        """Keyed by position."""
        places = range(position, position + size)
        draws = [keyed_generator(*key, self.word(p, position)) for p in places]
        return torch.cat([torch.randint(COUNT, (1,), generator=draw) for draw in draws])


@planted("orders-as-asked", "in two parts", "position and the key")
class OrdersByCall(Ordered):
    """Counts from the start of the call."""

    def word(self, position, first):
        """From zero."""
        return position - first


@planted("orders-as-asked", "inside [0, count", "indices of samples")
class OrdersBeyond(Ordered):
    """One too far."""

    def order(self, position, size, *, batch, key):
        """From one."""
        return super().order(position, size, batch=batch, key=key) + COUNT
