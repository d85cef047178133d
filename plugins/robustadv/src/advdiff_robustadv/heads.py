"""The network of a learned ray: two numbers per sample that shape its radius."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advdiff_core import Backbone, BackboneOutput, Build, TapInfo
from advdiff_core.interfaces.backbone import check_taps
from advdiff_core.layers import at_least_fp32, sinusoidal, zeroed
from advdiff_core.settings import setting, settings

__all__ = ["RayHead", "statistics"]

#: Added to variances below a root, whose slope at 0 is infinite.
TINY = 1e-8


class RayHead(Backbone):
    """A small perceptron on the noise level and four statistics of `x_t`, for `ray-learned`.

    It returns two raw numbers per sample, for the exponent and the bias of its ray, which the
    perturbation keeps inside its bounds. It begins at zero: with the ray it is told to start from.
    Give its role `parametrization = "none"`. Tap: `hidden`. The design is ours.
    """

    @settings
    class Settings:
        """Keys of `use = "ray-head"`."""

        width: int = setting(32, ge=2, le=65536, help="features of its two layers; even")

        def __attrs_post_init__(self) -> None:
            """Check the width.

            Raises:
                ValueError: If it is odd: features of the noise level come in pairs.
            """
            if self.width % 2:
                message = f"width: {self.width} must be even"
                raise ValueError(message)

    settings: Settings

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        width = settings.width
        self.of_level = nn.Linear(width, width)
        self.of_sample = nn.Linear(4, width)
        self.inner = nn.Linear(width, width)
        self.outer = zeroed(nn.Linear(width, 2))

    @property
    def taps(self) -> Mapping[str, TapInfo]:
        """The features before the last layer."""
        return {"hidden": TapInfo(width=self.settings.width)}

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
    ) -> BackboneOutput:
        """Two raw numbers [B, 2] for `x` [B, ...] and its share of noise times 1000 [B]."""
        del labels
        check_taps(taps, tuple(self.taps), self.build.path)
        h = self.of_sample(statistics(x))
        if c_noise is not None:
            h = h + self.of_level(sinusoidal(c_noise, self.settings.width).to(x.dtype))
        hidden = F.silu(self.inner(F.silu(h)))
        features = {"hidden": hidden} if "hidden" in taps else {}
        return BackboneOutput(None if stop_at else self.outer(hidden), features)


def statistics(x: Tensor) -> Tensor:
    """Mean, standard deviation, mean size, and size of the differences of neighbours [B, 4].

    Neighbours are entries next to each other along the last axis: noise is rough, images are not.

    Args:
        x: Samples [B, ...].
    """
    x = at_least_fp32(x)
    flat = x.flatten(1)
    rough = x.diff(dim=-1).flatten(1).square().sum(1) / flat.shape[1]
    rows = [
        flat.mean(1),
        (flat.var(1, unbiased=False) + TINY).sqrt(),
        flat.abs().mean(1),
        (rough + TINY).sqrt(),
    ]
    return torch.stack(rows, dim=1)
