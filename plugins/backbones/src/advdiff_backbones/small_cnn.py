"""The small convolutional network of TRADES."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from advdiff_backbones.classifier import (
    Normalize,
    Stage,
    image_shape,
    mean_setting,
    num_outputs,
    outputs_setting,
    run_stages,
    std_setting,
)
from advdiff_core.interfaces.backbone import Backbone, BackboneOutput, check_taps
from advdiff_core.interfaces.component import Build
from advdiff_core.settings import setting, settings
from advdiff_core.types import TapInfo

__all__ = ["TradesCNN"]

#: Smallest image of which two rounds of convolutions without padding leave a pixel.
LEAST = 16


class TradesCNN(Backbone):
    """The small network for MNIST of TRADES (Zhang et al. 2019).

    Four 3x3 convolutions without padding, two max-pools, three linear layers; no normalisation of
    the input by default. Parameters: `feature_extractor.conv<1..4>`, `classifier.fc<1..3>`. Taps:
    `pool1`, `pool2`, and `hidden`, the features before the last layer.
    """

    @settings
    class Settings:
        """Keys of `use = "trades-cnn"`."""

        dropout: float = setting(
            0.5, help="share of the first 200 features dropped in training", ge=0, lt=1
        )
        mean: tuple[float, ...] = mean_setting((0.0,))
        std: tuple[float, ...] = std_setting((1.0,))
        outputs: int = outputs_setting()

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        channels, *size = image_shape(build, "trades-cnn", least=LEAST)
        self.normalize = Normalize(build, settings.mean, settings.std, channels)
        self.feature_extractor = nn.Sequential(OrderedDict(_features(channels)))
        self._sizes = ((h := _shrunk(size[0])), _shrunk(h)), ((w := _shrunk(size[1])), _shrunk(w))
        flat = 64 * self._sizes[0][1] * self._sizes[1][1]
        outputs = num_outputs(build, settings.outputs)
        self.classifier = nn.Sequential(OrderedDict(_head(flat, outputs, settings.dropout)))

    @property
    def taps(self) -> Mapping[str, TapInfo]:
        """Both max-pools and the features before the last layer."""
        (h1, h2), (w1, w2) = self._sizes
        return {
            "pool1": TapInfo(width=32, size=(h1, w1)),
            "pool2": TapInfo(width=64, size=(h2, w2)),
            "hidden": TapInfo(width=200),
        }

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
    ) -> BackboneOutput:
        """Logits [B, K] of images `x` [B, C, H, W]; see `Backbone.forward`. Output in fp32."""
        del c_noise, labels
        wanted = taps if stop_at is None else (*taps, stop_at)
        check_taps(wanted, tuple(self.taps), self.build.path)
        return run_stages(x, self._stages(), taps=taps, stop_at=stop_at)

    def _stages(self) -> Iterator[Stage]:
        yield "", self.normalize
        yield "pool1", self.feature_extractor[:5]
        yield "pool2", self.feature_extractor[5:]
        yield "hidden", lambda x: self.classifier[:-1](x.flatten(1))
        yield "", self.classifier[-1]


def _shrunk(size: int) -> int:
    """Pixels along an axis after two convolutions and a max-pool."""
    return (size - 4) // 2


def _features(channels: int) -> Iterator[tuple[str, nn.Module]]:
    widths = (channels, 32, 32, 64, 64)
    for n in range(1, 5):
        yield f"conv{n}", nn.Conv2d(widths[n - 1], widths[n], 3)
        yield f"relu{n}", nn.ReLU()
        if n % 2 == 0:
            yield f"pool{n // 2}", nn.MaxPool2d(2)


def _head(flat: int, outputs: int, dropout: float) -> Iterator[tuple[str, nn.Module]]:
    yield "fc1", nn.Linear(flat, 200)
    yield "relu1", nn.ReLU()
    yield "dropout", nn.Dropout(dropout)
    yield "fc2", nn.Linear(200, 200)
    yield "relu2", nn.ReLU()
    yield "fc3", nn.Linear(200, outputs)
