"""At which noise level, and with which noise, a teacher looks at an image."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from advdiff_core.draws import Draws
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.noise_schedule import NoiseSchedule
from advdiff_core.settings import setting, settings
from advdiff_core.types import expand
from advdiff_dra.classifiers import refuse

__all__ = ["GUESSED_SIGMA", "LevelSettings", "NoiseLevels"]

#: The paper says that its level is near the best one of a linear probe (Xiang et al., 2023), whose
#: published configuration for CIFAR-10 uses 0.0599; the paper's own number is not known.
GUESSED_SIGMA = 0.06


@settings
class LevelSettings:
    """Keys of targets whose network sees noised images."""

    sigma: float | None = setting(
        None, gt=0.0, applies=("level", ("fixed",)),
        help="noise level, standard deviation of the noise per unit of signal; 0.06 if neither it "
        "nor t is written: our guess, the paper's value is unknown",
    )  # fmt: skip
    t: float | None = setting(
        None, ge=0.0, applies=("level", ("fixed",)),
        help="noise level as a time of the recipe's schedule, instead of sigma",
    )  # fmt: skip
    level: Literal["fixed", "random"] = setting(
        "fixed", help="one noise level, or log sigma drawn from a normal law for each image"
    )
    mean: float = setting(-1.2, applies=("level", ("random",)), help="mean of log sigma")
    std: float = setting(
        1.2, gt=0.0, applies=("level", ("random",)), help="standard deviation of log sigma"
    )
    noise: Literal["fresh", "fixed"] = setting(
        "fresh", help="new noise in each step, or the same for all images: a function of the image"
    )


class NoiseLevels(nn.Module):
    """Noised images at the levels that settings name.

    Args:
        keys: Settings with the keys of `LevelSettings`.
        build: What the target is told: schedule, data.
        shape: Shape of what is noised; that of the data if left out.

    Raises:
        RecipeError: R10 if a level is named twice or lies outside of the schedule.
    """

    #: The fixed noise [1, ...]; None where it is fresh.
    eps: Tensor | None

    def __init__(self, keys: Any, build: Build, shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        assert build.schedule is not None, "every recipe has a schedule"
        assert build.data is not None
        shape = build.data.shape if shape is None else shape
        self.keys, self.schedule = keys, build.schedule
        #: The fixed time; None where times are drawn.
        self.t = None if keys.level == "random" else _fixed_time(keys, build, build.schedule)
        drawn = torch.randn(1, *shape, generator=build.generator("noise"))
        self.register_buffer("eps", drawn if keys.noise == "fixed" else None, persistent=False)

    def times(self, x0: Tensor, rng: Draws) -> Tensor:
        """Times [B] for images `x0` [B, ...], in their type; training times of the schedule."""
        if self.t is not None:
            return x0.new_full((x0.shape[0],), self.t)
        log_sigma = self.keys.mean + self.keys.std * rng.normal((x0.shape[0],)).double()
        t = self.schedule.time_of_log_snr(-2 * log_sigma)
        return self.schedule.snap(t).to(x0.dtype)

    def noised(self, x0: Tensor, rng: Draws) -> tuple[Tensor, Tensor]:
        """Noised images `alpha x0 + sigma eps` [B, ...] of `x0` [B, ...], and their times [B].

        Args:
            x0: Clean images, in the range of the network that will see them.
            rng: The target's own numbers; noise and level are drawn apart from each other.
        """
        t = self.times(x0, rng.child("level"))
        eps = self.eps if self.eps is not None else rng.child("noise").normal(x0.shape)
        alpha, sigma = expand(self.schedule.alpha(t), x0), expand(self.schedule.sigma(t), x0)
        return (alpha * x0 + sigma * eps.to(x0)).to(x0.dtype), t


def _fixed_time(keys: Any, build: Build, schedule: NoiseSchedule) -> float:
    if keys.sigma is not None and keys.t is not None:
        refuse(build, "t", f"{keys.t:g} beside sigma = {keys.sigma:g}", "write one of the two")
    if keys.t is not None:
        if not schedule.t_min <= keys.t <= schedule.t_max:
            span = f"from {schedule.t_min:g} to {schedule.t_max:g}"
            refuse(build, "t", f"{keys.t:g}, the schedule goes {span}", "choose a time in between")
        return float(schedule.snap(torch.tensor(keys.t, dtype=torch.float64)))
    sigma = GUESSED_SIGMA if keys.sigma is None else keys.sigma
    low, high = _range(schedule)
    if not low <= sigma <= high:
        message = f"{sigma:g}, the schedule has levels from {low:.3g} to {high:.3g}"
        refuse(build, "sigma", message, "choose a level in between, or the teacher's own schedule")
    wanted = torch.tensor(-2 * math.log(sigma), dtype=torch.float64)
    return float(schedule.snap(schedule.time_of_log_snr(wanted)))


def _range(schedule: NoiseSchedule) -> tuple[float, float]:
    """Least and largest noise per unit of signal."""
    ends = torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)
    low, high = (-schedule.log_snr(ends) / 2).exp().tolist()
    return low, high
