"""Residual multi-layer perceptron for points."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advdiff_core.backbones.layers import Condition, added_parts
from advdiff_core.interfaces.backbone import Backbone, BackboneOutput, check_taps
from advdiff_core.interfaces.component import Build
from advdiff_core.layers import at_least_fp32, num_labels, zeroed
from advdiff_core.settings import setting, settings
from advdiff_core.types import TapInfo

__all__ = ["MLP"]


class Block(nn.Module):
    """Residual block: LayerNorm modulated by an embedding, two linear layers with SiLU between."""

    def __init__(self, width: int, embedding: int, *, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(embedding, 2 * width)
        self.inner = nn.Linear(width, 2 * width)
        self.dropout = nn.Dropout(dropout)
        self.outer = zeroed(nn.Linear(2 * width, width))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Output [B, width] for `x` [B, width] and an embedding [B, D]."""
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm(x), 1 + scale)
        out: Tensor = x + self.outer(self.dropout(F.silu(self.inner(h))))
        return out


class MLP(Backbone):
    """Residual perceptron for points, with noise-level and class embedding; images are flattened.

    Coordinates enter as they are and as sines and cosines of a few frequencies (`fourier`), without
    which a small network learns fine structure slowly. Taps: `block.<n>`. With `outputs` it is a
    classifier: that many logits, no noise level.
    """

    @settings
    class Settings:
        """Keys of `use = "mlp"`."""

        width: int = setting(128, help="features of a block", ge=1, le=65536)
        blocks: int = setting(3, help="residual blocks", ge=1, le=256)
        fourier: int = setting(
            0,
            help="frequencies pi, 2 pi, 4 pi ... added to the input as sines and cosines",
            ge=0,
            le=16,
        )
        outputs: int = setting(
            0, help="logits of a classifier; 0: a denoiser, with outputs like inputs", ge=0
        )
        dropout: float = setting(0.0, help="share of features dropped in training", ge=0, lt=1)
        conditional: bool = setting(False, help="embed class labels; else they are ignored")
        classes: int = setting(0, help="classes if conditional; 0: as many as the data have", ge=0)
        label_dropout: float = setting(
            0.0, help="share of labels replaced by `no label` in training", ge=0, le=1
        )
        guided: bool = setting(False, help="embed the strength of guidance it is to have inside")
        learn_sigma: bool = setting(
            False, applies=("outputs", (0,)), help="a head for the variance of a reverse step, too"
        )

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        assert build.data is not None, "a backbone is built after the data"
        dims, width = math.prod(build.data.shape), settings.width
        classes = num_labels(build, conditional=settings.conditional, classes=settings.classes)
        self.condition = Condition(
            width,
            features=2 * ((width + 1) // 2),
            c_noise=build.c_noise,
            classes=classes,
            label_dropout=settings.label_dropout,
            guided=settings.guided,
        )
        self.classes, self.guided = classes, settings.guided
        self.added = added_parts(guided=settings.guided, learn_sigma=settings.learn_sigma)
        self.linear_in = nn.Linear(dims * (1 + 2 * settings.fourier), width)
        self.blocks = nn.ModuleList(
            Block(width, width, dropout=settings.dropout) for _ in range(settings.blocks)
        )
        self._names = tuple(f"block.{n}" for n in range(settings.blocks))
        self.norm_out = nn.LayerNorm(width)
        self.linear_out = zeroed(nn.Linear(width, settings.outputs or dims))
        self.learns_sigma = settings.learn_sigma and not settings.outputs
        self.variance: nn.Module | None = None
        if self.learns_sigma:
            self.variance = zeroed(nn.Linear(width, dims))

    @property
    def draws_random(self) -> bool:
        """True with dropout of features or labels."""
        return self.settings.dropout > 0 or self.condition.drops_labels

    @property
    def taps(self) -> Mapping[str, TapInfo]:
        """Output of every block, in forward order."""
        return {name: TapInfo(width=self.settings.width) for name in self._names}

    def forward(  # noqa: PLR0913 - one forward of a network.
        self,
        x: Tensor,
        c_noise: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
        guidance: Tensor | None = None,
    ) -> BackboneOutput:
        """Run the network on points `x` [B, D]; see `Backbone.forward`. Output in fp32."""
        wanted = taps if stop_at is None else (*taps, stop_at)
        check_taps(wanted, self._names, self.build.path)
        embedding = self.condition(c_noise, labels, x, guidance)
        h = self.linear_in(self._coordinates(x))
        features: dict[str, Tensor] = {}
        for name, block in zip(self._names, self.blocks, strict=True):
            h = block(h, embedding)
            if name in taps:
                features[name] = h
            if name == stop_at:
                return BackboneOutput(None, features)
        last = F.silu(self.norm_out(h))
        out = at_least_fp32(self.linear_out(last))
        if self.settings.outputs:
            return BackboneOutput(out, features)
        variance = None
        if self.variance is not None:
            variance = at_least_fp32(self.variance(last)).reshape(x.shape)
        return BackboneOutput(out.reshape(x.shape), features, variance)

    def _coordinates(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        turns = [math.pi * 2**n * flat for n in range(self.settings.fourier)]
        waves = [wave for turn in turns for wave in (turn.sin(), turn.cos())]
        return torch.cat([flat, *waves], dim=1)
