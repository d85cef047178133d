"""Parametrizations: from raw outputs to predictions that every loss and sampler reads alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from attrs import frozen
from torch import Tensor

from advdiff_core.interfaces.backbone import BackboneOutput
from advdiff_core.interfaces.noise_schedule import NoiseSchedule
from advdiff_core.math import parametrization
from advdiff_core.types import Prediction, PredictionKind, expand

__all__ = ["PARAMETRIZATIONS", "Wear", "full_features", "precise"]

#: Largest magnitude of the log-sigma noise input: e^16 covers every signal-to-noise ratio in use.
MAX_LOG_SIGMA = 4.0

PARAMETRIZATIONS = ("eps", "x0", "v", "flow", "edm", "none")


@frozen(kw_only=True)
class Wear:
    """How a backbone is worn as a denoiser.

    Attributes:
        schedule: The noise schedule.
        parametrization: What the raw output means: "eps", "x0", "v", "flow" or "edm".
        sigma_data: Standard deviation of the data, for input scaling and EDM's coefficients.
        c_noise: "index" (time on [0, 1000]) or "log-sigma" (`log(sigma / alpha) / 4`, Karras et
            al., 2022).
    """

    schedule: NoiseSchedule
    parametrization: str = "eps"
    sigma_data: float = 1.0
    c_noise: str = "index"

    def noise_input(self, t: Tensor) -> Tensor:
        """Noise-level input of the backbone at `t` [B]."""
        if self.c_noise == "log-sigma":
            # log(sigma / alpha) / 4; infinite where a schedule ends in pure noise.
            return (-self.schedule.log_snr(t) / 8).clamp(-MAX_LOG_SIGMA, MAX_LOG_SIGMA)
        return self.schedule.c_noise(t)

    def __call__(  # noqa: PLR0913 - one forward of a network.
        self,
        forward: Callable[..., BackboneOutput],
        x_t: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
    ) -> Prediction:
        """Run `forward` as a denoiser.

        Args:
            forward: The backbone.
            x_t: Noised sample [B, ...].
            t: Time [B].
            labels: Labels [B] or None.
            taps: Features to return.
            stop_at: Stop the network at this tap; the prediction's value is then empty.
        """
        alpha, sigma = expand(self.schedule.alpha(t), x_t), expand(self.schedule.sigma(t), x_t)
        c_in = (alpha.square() * self.sigma_data**2 + sigma.square()).rsqrt()
        # VP with unit data variance needs no scaling: c_in would be 1 up to rounding.
        x_in = x_t if self._unit_input() else (c_in * x_t).to(x_t.dtype)
        out = forward(x_in, self.noise_input(t).to(x_t.dtype), labels, taps=taps, stop_at=stop_at)
        if out.output is None:
            return Prediction(
                "raw", x_t.new_empty(0), x_t, alpha, sigma, full_features(out.features)
            )
        kind, value = self._meaning(out.output.to(x_t.dtype), x_t, alpha, sigma)
        variance = None if out.variance is None else out.variance.to(x_t.dtype)
        return Prediction(kind, value, x_t, alpha, sigma, full_features(out.features), variance)

    def _unit_input(self) -> bool:
        return self.sigma_data == 1.0 and self.schedule.variance_preserving

    def _meaning(
        self, raw: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor
    ) -> tuple[PredictionKind, Tensor]:
        if self.parametrization != "edm":
            return cast("PredictionKind", self.parametrization), raw
        c = parametrization.edm_scales(alpha, sigma, self.sigma_data)
        return "x0", c.c_skip * x_t + c.c_out * raw


def full_features(features: Mapping[str, Any]) -> dict[str, Tensor]:
    """Features in full precision."""
    return {name: precise(feature) for name, feature in features.items()}


def precise(x: Tensor) -> Tensor:
    """`x` of any shape in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
