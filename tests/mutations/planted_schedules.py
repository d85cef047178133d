"""Mistakes in noise schedules."""

from __future__ import annotations

import torch
from planted import planted

from advdiff_core import NoiseSchedule


class Healthy(NoiseSchedule):
    """Linear interpolation, with the range of training times cut short of both ends."""

    t_min = 0.001
    t_max = 0.999

    def alpha(self, t):
        """Signal."""
        return 1 - t

    def sigma(self, t):
        """Noise."""
        return t


class Discrete(Healthy):
    """The same on ten training times."""

    num_steps = 10


@planted("log-snr-falls", "log_snr", "falls strictly")
class Bump(Healthy):
    """Noise falls for a while."""

    def sigma(self, t):
        """A bump."""
        return t + 0.3 * torch.sin(12 * t)


@planted("ends", "t_zero", "exactly 1 and 0")
class NoiseAtZero(Healthy):
    """The first beta of a discrete chain is still there at t = 0."""

    def sigma(self, t):
        """Never zero."""
        return 1e-4 + t * (1 - 1e-4)


@planted("ends", "alpha", "positive")
class NoSignal(Healthy):
    """Trains where no signal is left."""

    t_max = 1.0


@planted("ends", "t_zero < t_min < t_max")
class Backwards(Healthy):
    """Range written the wrong way round."""

    t_min, t_max = 0.999, 0.001


@planted("time-of-log-snr", "comes back as")
class WrongInverse(Healthy):
    """An inverse without the factor 2 of the square."""

    def time_of_log_snr(self, log_snr):
        """Wrong."""
        return torch.sigmoid(-log_snr).clamp(self.t_min, self.t_max)


@planted("time-of-log-snr", "beyond the range", "clamp")
class UnclampedInverse(Healthy):
    """An inverse that leaves the range."""

    def time_of_log_snr(self, log_snr):
        """Not clamped."""
        return torch.sigmoid(-log_snr / 2)


@planted("log-snr-is-its-formula", "log_snr", "ratio of variances")
class HalfLogSnr(Healthy):
    """The ratio of deviations, not of variances."""

    def log_snr(self, t):
        """Half of it."""
        return self.alpha(t).log() - self.sigma(t).log()


@planted("variance-as-declared", "alpha^2 + sigma^2", "variance_preserving = True")
class FalseFlag(Healthy):
    """Says that it preserves variance."""

    variance_preserving = True


@planted("variance-as-declared", "variance_preserving = True", "set it")
class ForgottenFlag(Healthy):
    """Preserves variance and does not say so."""

    def alpha(self, t):
        """Cosine."""
        return torch.cos(t * torch.pi / 2)

    def sigma(self, t):
        """Sine."""
        return torch.sin(t * torch.pi / 2)


@planted("keeps-type-and-shape", "sigma", "dtype and shape of t")
class SinglePrecision(Healthy):
    """Casts the times."""

    def sigma(self, t):
        """Float32."""
        return t.float()


@planted("keeps-type-and-shape", "input t", "in place")
class EditsTimes(Healthy):
    """Clamps the caller's times."""

    def sigma(self, t):
        """In place."""
        return t.sub_(1e-3).clamp_(min=0) + 1e-3


@planted("each-time-on-its-own", "batch against alone", "over the batch")
class NormalisesTimes(Healthy):
    """Scales by the largest time of the batch."""

    def sigma(self, t):
        """Depends on the others."""
        return t * (1 - 1e-3 * (t.max() - t))


@planted("quantile-is-uniform", "quantile", "ends included")
class SkipsTheFirstTime(Discrete):
    """Counts training times from one."""

    def quantile(self, u):
        """Off by one."""
        index = (u * self.num_steps).floor() + 1
        return self.t_min + (self.t_max - self.t_min) * index / self.num_steps


@planted("snap", "nearest training time")
class Truncates(Discrete):
    """Rounds down."""

    def snap(self, t):
        """Floor."""
        unit = (self.t_max - self.t_min) / (self.num_steps - 1)
        index = ((t - self.t_min) / unit + 1e-9).floor()
        return (self.t_min + index * unit).clamp(self.t_min, self.t_max)


@planted("grids-fall", "grid")
class GridFromElsewhere(Healthy):
    """Snaps onto a coarser grid than it says, so that sampling times fall together."""

    num_steps = 1000

    def snap(self, t):
        """A tenth of the times."""
        return ((t * 10).round() / 10).clamp(self.t_min, self.t_max)


@planted("noise-input-in-range", "c_noise")
class WrongNoiseRange(Healthy):
    """Declares the range of another unit."""

    def c_noise_range(self):
        """As if times were fractions."""
        return 0.0, 1.0
