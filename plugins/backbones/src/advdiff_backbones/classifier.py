"""What the classifiers share: settings, normalisation of the input, stages with taps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from advdiff_core.errors import Fault, RecipeError
from advdiff_core.interfaces.backbone import BackboneOutput
from advdiff_core.interfaces.component import Build
from advdiff_core.settings import setting

__all__ = [
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "Normalize",
    "activations",
    "halved",
    "image_shape",
    "mean_setting",
    "num_outputs",
    "outputs_setting",
    "run_stages",
    "std_setting",
]

#: Mean and standard deviation of the CIFAR-10 training images on the [0, 1] scale, by channel.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2471, 0.2435, 0.2616)

#: A part of a network: tap name ("" for none) and what it does.
Stage = tuple[str, Callable[[Tensor], Tensor]]

activations: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU}


def mean_setting(default: tuple[float, ...] = CIFAR10_MEAN) -> Any:
    """The key `mean`."""
    return setting(
        default, help="subtracted from the image, on the [0, 1] scale: one, or one per channel"
    )


def std_setting(default: tuple[float, ...] = CIFAR10_STD) -> Any:
    """The key `std`."""
    return setting(
        default, help="divides the image, on the [0, 1] scale: one, or one per channel", gt=0
    )


def outputs_setting() -> Any:
    """The key `outputs`."""
    return setting(0, help="logits; 0: as many as the data have classes", ge=0)


def image_shape(build: Build, name: str, *, least: int = 1) -> tuple[int, int, int]:
    """Channels, height and width of the data.

    Args:
        build: What the component is told.
        name: What a recipe calls the network.
        least: Smallest height and width it can take.

    Raises:
        RecipeError: R10 if the data are no images, or smaller.
    """
    shape = build.data.shape if build.data is not None else ()
    if len(shape) != 3:
        raise refusal(
            build, "use", f'"{name}" needs images (C, H, W), the data have shape {list(shape)}',
            fix='write use = "mlp" for points',
        )  # fmt: skip
    if min(shape[1:]) < least:
        raise refusal(
            build, "use", f'"{name}" needs {least} x {least} pixels, the data have shape '
            f"{list(shape)}", fix="take a network for small images, or larger images",
        )  # fmt: skip
    return shape[0], shape[1], shape[2]


def refusal(build: Build, key: str, message: str, *, fix: str) -> RecipeError:
    """The fault R10 at a key of the component's table, to be raised."""
    return RecipeError([Fault(code="R10", key=f"{build.path}.{key}", message=message, fix=fix)])


def num_outputs(build: Build, outputs: int) -> int:
    """Number of logits: `outputs`, or as many as the data have classes.

    Raises:
        RecipeError: R10 if neither says how many.
    """
    found = outputs or (build.data.classes if build.data is not None else 0)
    if not found:
        raise refusal(
            build, "outputs", "0 means one logit per class, but the data have no classes",
            fix="write outputs = 10 (or as many logits as wanted), or take data with labels",
        )  # fmt: skip
    return found


class Normalize(nn.Module):
    """`(unit - mean) / std`, where `unit` is the image on the [0, 1] scale, whatever its domain.

    An attack thus works on the pixels as the data have them. Mean and std are settings, not
    weights: they are no part of the state. Data without a finite domain (latents) are taken as they
    are, `unit = x`.

    Args:
        build: What the network is told; gives the domain.
        mean: One number, or one per channel.
        std: The same.
        channels: Channels of the image.

    Raises:
        RecipeError: R10 for another number of numbers.
    """

    def __init__(
        self, build: Build, mean: Sequence[float], std: Sequence[float], channels: int
    ) -> None:
        super().__init__()
        domain = build.data.domain if build.data is not None else None
        finite = domain is not None and math.isfinite(domain.span)
        low, span = (domain.low, domain.span) if domain is not None and finite else (0.0, 1.0)
        center, width = (
            torch.tensor(_per_channel(build, key, numbers, channels), dtype=torch.float64)
            for key, numbers in (("mean", mean), ("std", std))
        )
        scale = 1 / (span * width)
        shift = -(low / span + center) / width
        self.register_buffer("scale", scale.float()[:, None, None], persistent=False)
        self.register_buffer("shift", shift.float()[:, None, None], persistent=False)

    scale: Tensor
    shift: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [B, C, H, W], of the type of `x` [B, C, H, W]."""
        return torch.addcmul(self.shift.to(x.dtype), x, self.scale.to(x.dtype))


def _per_channel(
    build: Build, key: str, numbers: Sequence[float], channels: int
) -> tuple[float, ...]:
    if len(numbers) == 1:
        return tuple(numbers) * channels
    if len(numbers) != channels:
        raise refusal(
            build, key, f"{len(numbers)} numbers, but the images have {channels} channels",
            fix=f"write {key} = [0.5] for all channels alike, or {channels} numbers",
        )  # fmt: skip
    return tuple(numbers)


def halved(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width after a stride of 2, rounded up."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def run_stages(
    x: Tensor, stages: Iterable[Stage], *, taps: tuple[str, ...], stop_at: str | None
) -> BackboneOutput:
    """Run stages one after the other.

    Args:
        x: Input of the first stage [B, ...].
        stages: Tap name and function of each; the last one gives the output.
        taps: Names of the features to return.
        stop_at: Tap after which no further stage runs.
    """
    features: dict[str, Tensor] = {}
    for name, stage in stages:
        x = stage(x)
        if name and name in taps:
            features[name] = x
        if name and name == stop_at:
            return BackboneOutput(None, features)
    return BackboneOutput(x.float() if x.dtype.itemsize < 4 else x, features)


def validator_of(rule: Callable[[Any], str]) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    """A validator of a settings field that refuses what `rule` complains of ("" if it does not)."""

    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        complaint = rule(value)
        if complaint:
            message = f"{attribute.name}: {complaint}"
            raise ValueError(message)

    return check
