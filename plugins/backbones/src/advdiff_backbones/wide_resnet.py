"""Wide residual networks in the form that adversarial training uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from advdiff_backbones.classifier import (
    Normalize,
    Stage,
    activations,
    halved,
    image_shape,
    mean_setting,
    num_outputs,
    outputs_setting,
    run_stages,
    std_setting,
    validator_of,
)
from advdiff_core.interfaces.backbone import Backbone, BackboneOutput, check_taps
from advdiff_core.interfaces.component import Build
from advdiff_core.settings import setting, settings
from advdiff_core.types import TapInfo

__all__ = ["WideResNet"]


def _depth_complaint(depth: int) -> str:
    if (depth - 4) % 6 or depth < 10:
        near = max(10, 6 * round((depth - 4) / 6) + 4)
        return f"found {depth}, wanted 6 n + 4 (10, 16, 22, 28, 34, ...); the nearest is {near}"
    return ""


def depth_setting() -> Any:
    """The key `depth`."""
    field = setting(28, help="layers of weights: 6 n + 4, with n blocks in each of three groups")
    field.validator(validator_of(_depth_complaint))
    return field


class Block(nn.Module):
    """Norm, activation, 3x3 convolution, twice, beside a shortcut.

    Where the channels change the shortcut is a 1x1 convolution of the activated input, else the
    input itself. A stride of 2 pads as TensorFlow's "SAME" does: below and to the right only, if
    the size is even. At a stride of 1 that is the padding of a convolution, which costs no copy.
    """

    def __init__(
        self, inner: int, outer: int, stride: int, activation: type[nn.Module], momentum: float
    ) -> None:
        super().__init__()
        self.stride = stride
        self.activation = activation()
        self.batchnorm_0 = nn.BatchNorm2d(inner, momentum=momentum)
        self.conv_0 = nn.Conv2d(inner, outer, 3, stride, padding=int(stride == 1), bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(outer, momentum=momentum)
        self.conv_1 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        changes = inner != outer
        self.shortcut = nn.Conv2d(inner, outer, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Output [B, outer, H / stride, W / stride] for `x` [B, inner, H, W]."""
        active = self.activation(self.batchnorm_0(x))
        h = self.conv_0(active if self.stride == 1 else same_padding(active, self.stride))
        h = self.conv_1(self.activation(self.batchnorm_1(h)))
        beside: Tensor = x if self.shortcut is None else self.shortcut(active)
        return beside + h


def same_padding(x: Tensor, stride: int) -> Tensor:
    """`x` [B, C, H, W] padded with zeros for a 3x3 convolution as TensorFlow's "SAME" pads.

    Along an axis of n pixels the output has `ceil(n / stride)`; of an odd total the larger part is
    added at the end.
    """
    pads = []
    for n in (x.shape[3], x.shape[2]):
        total = max(0, (-(-n // stride) - 1) * stride + 3 - n)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


class Group(nn.Module):
    """Blocks of one width; the first changes size and channels."""

    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.block = nn.Sequential(*blocks)


class WideResNet(Backbone):
    """Wide ResNet classifier with SiLU, as adversarially trained on generated images (DM-AT).

    Zagoruyko & Komodakis (2016) as changed by Gowal et al. (2020) and used by Rebuffi et al. (2021)
    and Wang et al. (2023): pre-activation blocks, "SAME" padding, batch norm with momentum 0.01.
    Parameters are named as in the checkpoints of Wang et al. and of RobustBench: `init_conv`,
    `layer.<group>.block.<n>.{batchnorm_0,conv_0,batchnorm_1,conv_1,shortcut}`, `batchnorm`,
    `logits`. Taps: `init_conv`, `layer.<group>.block.<n>`, and `pooled`, the features [B, 64 width]
    before the last layer.
    """

    @settings
    class Settings:
        """Keys of `use = "wide-resnet"`."""

        depth: int = depth_setting()
        width: int = setting(10, help="channels are 16, 32 and 64 times this", ge=1, le=64)
        activation: str = setting(
            "silu", help="silu (DM-AT) or relu (2016)", choices=("silu", "relu")
        )
        norm_momentum: float = setting(
            0.01, help="share of a batch in the running statistics of batch norm", gt=0, le=1
        )
        mean: tuple[float, ...] = mean_setting()
        std: tuple[float, ...] = std_setting()
        outputs: int = outputs_setting()

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        channels, *size = image_shape(build, "wide-resnet", least=4)
        self.normalize = Normalize(build, settings.mean, settings.std, channels)
        self.init_conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.layer = nn.Sequential(*_groups(settings))
        last = 64 * settings.width
        self.batchnorm = nn.BatchNorm2d(last, momentum=settings.norm_momentum)
        self.activation = activations[settings.activation]()
        self.logits = nn.Linear(last, num_outputs(build, settings.outputs))
        self._size = (size[0], size[1])
        _initialise(self)

    @property
    def taps(self) -> Mapping[str, TapInfo]:
        """Stem, every block, and the features before the last layer."""
        size, width = self._size, self.settings.width
        found = {"init_conv": TapInfo(width=16, size=size)}
        for group in range(3):
            size = halved(size) if group else size
            for n in range(_blocks(self.settings)):
                info = TapInfo(width=16 * 2**group * width, size=size)
                found[f"layer.{group}.block.{n}"] = info
        return {**found, "pooled": TapInfo(width=64 * width)}

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
        yield "init_conv", self.init_conv
        for group, layer in enumerate(self.layer):
            for n, block in enumerate(cast("Group", layer).block):
                yield f"layer.{group}.block.{n}", block
        yield "pooled", lambda x: self.activation(self.batchnorm(x)).mean((2, 3))
        yield "", self.logits


def _blocks(config: Any) -> int:
    return (config.depth - 4) // 6


def _groups(config: Any) -> Iterator[Group]:
    inner, activation = 16, activations[config.activation]
    for number in range(3):
        outer = 16 * 2**number * config.width
        blocks = []
        for n in range(_blocks(config)):
            stride = 2 if number and not n else 1
            blocks.append(Block(inner, outer, stride, activation, config.norm_momentum))
            inner = outer
        yield Group(blocks)


def _initialise(net: nn.Module) -> None:
    """Convolutions from N(0, 2 / (9 outer)) (He et al. 2015, fan out), linear biases 0."""
    for part in net.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
