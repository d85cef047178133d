"""How smooth the path of sampling is: what a coarse grid of times can afford to skip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from advdiff_core import Evaluation, Metric, Prediction, Spec
from advdiff_core.hooks.curves import slug, write_curves
from advdiff_core.interfaces.quality import sampler_of
from advdiff_core.settings import setting, settings
from advdiff_robustadv.rays import SOURCE

__all__ = ["Smoothness", "Walk"]


class Smoothness(Metric):
    """Lipschitz constant, travel and turning of the predictions along the path of sampling.

    In `z = x_t / alpha` and `s = sigma / alpha` the path solves `dz / ds = eps_hat`: where eps_hat
    stays the same along it, it is straight and one step is enough. With D numbers a sample:

    - `smoothness_lipschitz`: largest rate `|d eps_hat| / (sqrt(D) |d log s|)` of a step, what the
      error of few DDIM steps is proportional to (Lu et al., 2022); `_q95`: 95 % quantile over
      samples;
    - `smoothness_travel`: `sum |d eps_hat| / sqrt(D)`, the way that eps_hat goes in all;
    - `smoothness_turning`: sum of the angles in degrees between consecutive steps of z;
    - `smoothness_detour`: way of x0_hat over its distance from start to end, 1 if it goes straight.

    Means over samples; lower is smoother; 0 but for the detour on a path to a single known point.
    `smoothness.csv` and `.png` (`smoothness-<sampler>` for another one) hold the mean rate over
    log10 s. Meant for samplers without noise;
    numbers depend on the number of steps and are to be compared at equal ones.
    """

    source: ClassVar[str] = SOURCE

    @settings
    class Settings:
        """Keys of `use = "smoothness"`."""

        sampler: Spec | None = setting(None, kind="sampler", help="sampler; the run's own if none")
        steps: int = setting(0, ge=0, help="steps of the sampler; 0: as it is set", unit="steps")
        num: int = setting(0, ge=0, help="the first so many seeds; 0: all", unit="images")

    settings: Settings

    def protocol(self) -> Mapping[str, object]:
        """Coordinates, sampler and what is pooled."""
        made = self.settings
        return {
            "coordinates": "z = x_t / alpha over s = sigma / alpha, per root of the dimension",
            "path": made.sampler.use if made.sampler else "the run's sampler",
            "steps": made.steps or "of the sampler",
            "paths": made.num or "all seeds",
            "pooling": "mean over paths",
        }

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Numbers by name; lower is smoother."""
        sampler = sampler_of(self.build, evaluation, self.settings.sampler, self.settings.steps)
        walk = Walk()
        evaluation.generate(sampler, num=self.settings.num, callback=walk)
        found = walk.numbers()
        rates = [(place, float(rate)) for place, rate in walk.profile()]
        spec = self.settings.sampler
        path = evaluation.folder / (f"smoothness-{slug(spec.use)}" if spec else "smoothness")
        write_curves(path, "log10 s", {"rate": rates}, title="rate of the predicted noise")
        lipschitz = found["lipschitz"]
        return {
            **{f"smoothness_{name}": float(values.mean()) for name, values in found.items()},
            "smoothness_lipschitz_q95": float(torch.quantile(lipschitz, 0.95)),
        }


class Walk:
    """A callback of samplers that follows their paths, a batch at a time, and keeps sums alone."""

    def __init__(self) -> None:
        self._batches: list[_Path] = []

    def __call__(self, index: int, state: Tensor, prediction: Prediction) -> None:
        """See `StepCallback`; `state` [B, ...]."""
        del state
        if index == 0:
            self._batches.append(_Path())
        self._batches[-1].step(prediction)

    def numbers(self) -> dict[str, Tensor]:
        """Numbers of each path [N], float64, by name."""
        found = [batch.numbers() for batch in self._batches]
        return {name: torch.cat([one[name] for one in found]) for name in found[0]}

    def profile(self) -> list[tuple[float, float]]:
        """`log10 s` and the mean rate of each step but the first, in order."""
        count = sum(batch.size for batch in self._batches)
        summed: dict[float, float] = {}
        for batch in self._batches:
            for place, rate in batch.rates:
                summed[place] = summed.get(place, 0.0) + float(rate.sum()) / count
        return list(summed.items())


class _Path:
    """Running sums of the paths of one batch."""

    def __init__(self) -> None:
        self.rates: list[tuple[float, Tensor]] = []
        self._last: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        self._leg: Tensor | None = None

    def step(self, prediction: Prediction) -> None:
        """Add the prediction of a step."""
        assert prediction.alpha is not None, "samplers ask denoisers"
        assert prediction.sigma is not None
        alpha, sigma = prediction.alpha.double(), prediction.sigma.double()
        z = (prediction.x_t.double() / alpha).flatten(1)
        log_s = (sigma / alpha).log().flatten()
        eps, x0 = prediction.eps.double().flatten(1), prediction.x0.double().flatten(1)
        if self._last is None:
            self._begin(eps, x0)
        else:
            self._go_on(z, eps, x0, log_s)
        self._last = z, eps, x0, log_s

    def _begin(self, eps: Tensor, x0: Tensor) -> None:
        self.size, self._start = len(eps), x0
        zero = eps.new_zeros(len(eps))
        self._lipschitz, self._travel, self._turning, self._way = zero, zero, zero, zero

    def _go_on(self, z: Tensor, eps: Tensor, x0: Tensor, log_s: Tensor) -> None:
        assert self._last is not None
        before, eps_before, x0_before, log_before = self._last
        moved = _rms(eps - eps_before)
        # At a level without signal log s is infinite, and the rate of a step from it 0.
        rate = moved / (log_before - log_s).abs()
        self.rates.append((float(log_s[0]) / 2.302585092994046, rate.cpu()))
        self._travel = self._travel + moved
        self._lipschitz = torch.maximum(self._lipschitz, rate)
        self._way = self._way + _rms(x0 - x0_before)
        leg = z - before
        if self._leg is not None:
            self._turning = self._turning + _angle(self._leg, leg)
        self._leg = leg if bool(leg.isfinite().all()) else None

    def numbers(self) -> dict[str, Tensor]:
        """Numbers of each path [B] by name, on the CPU."""
        assert self._last is not None, "a sampler makes a step or more"
        direct = _rms(self._last[2] - self._start)
        detour = torch.where(direct > 0, self._way / direct.clamp_min(1e-300), 1.0)
        found = {
            "lipschitz": self._lipschitz, "travel": self._travel,
            "turning": torch.rad2deg(self._turning), "detour": detour,
        }  # fmt: skip
        return {name: values.cpu() for name, values in found.items()}


def _rms(x: Tensor) -> Tensor:
    """Root mean square of each row [B, D]."""
    return x.square().mean(dim=1).sqrt()


def _angle(a: Tensor, b: Tensor) -> Tensor:
    """Angle of two rows each [B, D]; exact for small ones (Kahan's formula), 0 for no step."""
    a, b = (x / x.norm(dim=1, keepdim=True).clamp_min(1e-300) for x in (a, b))
    angle = 2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1))
    still = (a.abs().amax(1) == 0) | (b.abs().amax(1) == 0)
    return torch.where(still, 0.0, angle)
