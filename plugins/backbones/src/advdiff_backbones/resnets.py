"""Residual networks for small images: those of 2015, with pre-activation, and without norms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

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

__all__ = ["CifarResNet", "NormlessResNet", "PreActResNet18"]

#: Mean and standard deviation of ImageNet, with which He et al.'s networks for CIFAR-10 are trained
#: by common custom.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class CifarBlock(nn.Module):
    """Convolution, norm, ReLU, convolution, norm beside a shortcut without weights, ReLU.

    Where the channels change the shortcut takes every second pixel and pads channels with zeros,
    equally on both sides (option A of He et al. 2015, section 4.2).
    """

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.added = (outer - inner) // 2
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)

    def forward(self, x: Tensor) -> Tensor:
        """Output [B, outer, H / stride, W / stride] for `x` [B, inner, H, W]."""
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        beside = x[:, :, :: self.stride, :: self.stride]
        return F.relu(h + F.pad(beside, (0, 0, 0, 0, self.added, self.added)))


def _cifar_depth_complaint(depth: int) -> str:
    if (depth - 2) % 6 or depth < 8:
        near = max(8, 6 * round((depth - 2) / 6) + 2)
        return f"found {depth}, wanted 6 n + 2 (20, 32, 44, 56, 110, ...); the nearest is {near}"
    return ""


def _cifar_depth_setting() -> Any:
    field = setting(20, help="layers of weights: 6 n + 2, with n blocks in each of three stages")
    field.validator(validator_of(_cifar_depth_complaint))
    return field


class CifarResNet(Backbone):
    """ResNet-20, 32, 44, 56, 110 for CIFAR-10 (He et al. 2015, section 4.2).

    Parameters: `conv1`, `bn1`, `layer<1..3>.<n>.{conv1,bn1,conv2,bn2}`, `linear`. Taps: `conv1`
    (after norm and ReLU), `layer<s>.<n>`, and `pooled`, the 64 features before the last layer.
    """

    @settings
    class Settings:
        """Keys of `use = "cifar-resnet"`."""

        depth: int = _cifar_depth_setting()
        mean: tuple[float, ...] = mean_setting(IMAGENET_MEAN)
        std: tuple[float, ...] = std_setting(IMAGENET_STD)
        outputs: int = outputs_setting()

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        channels, *size = image_shape(build, "cifar-resnet", least=4)
        self.normalize = Normalize(build, settings.mean, settings.std, channels)
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        count = self._blocks = (settings.depth - 2) // 6
        self.layer1 = _stage(CifarBlock, 16, 16, 1, count)
        self.layer2 = _stage(CifarBlock, 16, 32, 2, count)
        self.layer3 = _stage(CifarBlock, 32, 64, 2, count)
        self.linear = nn.Linear(64, num_outputs(build, settings.outputs))
        self._size = (size[0], size[1])
        _he_normal(self)

    @property
    def taps(self) -> Mapping[str, TapInfo]:
        """Stem, every block, and the features before the last layer."""
        return _stage_taps(self._size, stem=16, widths=(16, 32, 64), blocks=self._blocks)

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
        yield "conv1", lambda x: F.relu(self.bn1(self.conv1(x)))
        yield from _layers((self.layer1, self.layer2, self.layer3))
        yield "pooled", lambda x: x.mean((2, 3))
        yield "", self.linear


class PreActBlock(nn.Module):
    """Norm, activation, convolution, twice, beside a shortcut (He et al. 2016, figure 1b).

    Where size or channels change the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, inner: int, outer: int, stride: int, *, activation: str) -> None:
        super().__init__()
        self.activation = activations[activation]()
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or inner != outer:
            self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Output [B, outer, H / stride, W / stride] for `x` [B, inner, H, W]."""
        active = self.activation(self.bn1(x))
        h = self.conv2(self.activation(self.bn2(self.conv1(active))))
        beside: Tensor = x if self.shortcut is None else self.shortcut(active)
        return beside + h


class PreActResNet18(Backbone):
    """Pre-activation ResNet-18 for small images, the usual small network of adversarial training.

    He et al. (2016) with a 3x3 stem, as in Rice et al. (2020), "Overfitting in adversarially robust
    deep learning". Parameters: `conv1`, `layer<1..4>.<n>.{bn1,conv1,bn2,conv2,shortcut.0}`, `bn`,
    `linear`. Taps: `conv1`, `layer<s>.<n>`, and `pooled`, the features before the last layer.
    """

    @settings
    class Settings:
        """Keys of `use = "preact-resnet18"`."""

        channels: int = setting(64, help="channels of the first stage", ge=1, le=4096)
        activation: str = setting("relu", help="relu (2016) or silu", choices=("relu", "silu"))
        final_norm: bool = setting(
            True, help="norm and activation before pooling; some published weights have none"
        )
        mean: tuple[float, ...] = mean_setting()
        std: tuple[float, ...] = std_setting()
        outputs: int = outputs_setting()

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        channels, *size = image_shape(build, "preact-resnet18", least=8)
        self.normalize = Normalize(build, settings.mean, settings.std, channels)
        w, kind = settings.channels, settings.activation
        self.conv1 = nn.Conv2d(channels, w, 3, padding=1, bias=False)
        self.layer1 = _stage(PreActBlock, w, w, 1, 2, activation=kind)
        self.layer2 = _stage(PreActBlock, w, 2 * w, 2, 2, activation=kind)
        self.layer3 = _stage(PreActBlock, 2 * w, 4 * w, 2, 2, activation=kind)
        self.layer4 = _stage(PreActBlock, 4 * w, 8 * w, 2, 2, activation=kind)
        self.bn = nn.BatchNorm2d(8 * w) if settings.final_norm else None
        self.activation = activations[kind]()
        self.linear = nn.Linear(8 * w, num_outputs(build, settings.outputs))
        self._size = (size[0], size[1])

    @property
    def taps(self) -> Mapping[str, TapInfo]:
        """Stem, every block, and the features before the last layer."""
        w = self.settings.channels
        return _stage_taps(self._size, stem=w, widths=(w, 2 * w, 4 * w, 8 * w), blocks=2)

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
        yield "conv1", self.conv1
        yield from _layers((self.layer1, self.layer2, self.layer3, self.layer4))
        yield "pooled", self._pool
        yield "", self.linear

    def _pool(self, x: Tensor) -> Tensor:
        return (x if self.bn is None else self.activation(self.bn(x))).mean((2, 3))


class NormlessBlock(nn.Module):
    """Convolution, ReLU, convolution, all with bias, beside a shortcut, ReLU."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        changes = stride != 1 or inner != outer
        self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride)) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Output [B, outer, H / stride, W / stride] for `x` [B, inner, H, W]."""
        h = self.conv2(F.relu(self.conv1(x)))
        return F.relu(h + (x if self.shortcut is None else self.shortcut(x)))


class NormlessResNet(Backbone):
    """Small residual network without norms, made for verification: ResNet-2B and ResNet-4B.

    The networks of Wang et al. (2021), "Beta-CROWN": a stem of stride 2, one or two stages that
    halve the size, and two linear layers. ResNet-2B is `channels = 8, stages = 1`, ResNet-4B is
    `channels = 16, stages = 2`. Parameters: `conv1`, `layer<s>.<n>.{conv1,conv2,shortcut.0}`,
    `linear1`, `linear2`. Taps: `conv1`, `layer<s>.<n>`, and `hidden`, the features before the last
    layer.
    """

    @settings
    class Settings:
        """Keys of `use = "normless-resnet"`."""

        channels: int = setting(8, help="channels of the stem; the stages have twice as many", ge=1)
        stages: int = setting(1, help="stages of two blocks", choices=(1, 2))
        hidden: int = setting(100, help="features before the last layer", ge=1)
        mean: tuple[float, ...] = mean_setting()
        std: tuple[float, ...] = std_setting()
        outputs: int = outputs_setting()

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        channels, *size = image_shape(build, "normless-resnet", least=8)
        self.normalize = Normalize(build, settings.mean, settings.std, channels)
        w = settings.channels
        self.conv1 = nn.Conv2d(channels, w, 3, 2, padding=1)
        self.layer1 = _stage(NormlessBlock, w, 2 * w, 2, 2)
        if settings.stages == 2:
            self.layer2 = _stage(NormlessBlock, 2 * w, 2 * w, 2, 2)
        self._size = halved((size[0], size[1]))
        last = list(self.taps.values())[-2]
        self.linear1 = nn.Linear(last.width * last.size[0] * last.size[1], settings.hidden)
        self.linear2 = nn.Linear(settings.hidden, num_outputs(build, settings.outputs))

    @property
    def taps(self) -> Mapping[str, TapInfo]:
        """Stem, every block, and the features before the last layer."""
        w = self.settings.channels
        found = {"conv1": TapInfo(width=w, size=self._size)}
        size = self._size
        for stage in range(1, self.settings.stages + 1):
            size = halved(size)
            found |= {f"layer{stage}.{n}": TapInfo(width=2 * w, size=size) for n in range(2)}
        return {**found, "hidden": TapInfo(width=self.settings.hidden)}

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
        yield "conv1", lambda x: F.relu(self.conv1(x))
        second = (self.layer2,) if self.settings.stages == 2 else ()
        yield from _layers((self.layer1, *second))
        yield "hidden", lambda x: F.relu(self.linear1(x.flatten(1)))
        yield "", self.linear2


def _stage(
    block: type[nn.Module], inner: int, outer: int, stride: int, count: int, **more: Any
) -> nn.Sequential:
    first = block(inner, outer, stride, **more)
    return nn.Sequential(first, *(block(outer, outer, 1, **more) for _ in range(count - 1)))


def _layers(layers: tuple[nn.Sequential, ...]) -> Iterator[Stage]:
    for number, layer in enumerate(layers, 1):
        for n, block in enumerate(layer):
            yield f"layer{number}.{n}", block


def _stage_taps(
    size: tuple[int, int], *, stem: int, widths: tuple[int, ...], blocks: int
) -> dict[str, TapInfo]:
    """Taps of a stem at full size, stages that halve it from the second on, and the pooled end."""
    found = {"conv1": TapInfo(width=stem, size=size)}
    for number, width in enumerate(widths, 1):
        size = halved(size) if number > 1 else size
        found |= {f"layer{number}.{n}": TapInfo(width=width, size=size) for n in range(blocks)}
    return {**found, "pooled": TapInfo(width=widths[-1])}


def _he_normal(net: nn.Module) -> None:
    """Weights from N(0, 2 / fan in) (He et al. 2015, "Delving deep into rectifiers")."""
    for part in net.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight)
