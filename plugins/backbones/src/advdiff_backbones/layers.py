"""What the diffusion networks of this plugin share: settings, conditioning, taps, recomputation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from advdiff_core.errors import Fault, RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.layers import ATTENTION_KERNELS, GroupNorm, at_least_fp32
from advdiff_core.settings import setting, settings

__all__ = [
    "DiffusionSettings",
    "Trail",
    "divides",
    "drop_labels",
    "group_norm",
    "noise_levels",
    "refused",
    "run_block",
    "weight_type",
]

MAX_GROUPS = 32


@settings
class DiffusionSettings:
    """Keys that every diffusion network of this plugin has."""

    dropout: float = setting(0.0, help="share of features dropped in training", ge=0, lt=1)
    conditional: bool = setting(False, help="embed class labels; else they are ignored")
    classes: int = setting(0, help="classes if conditional; 0: as many as the data have", ge=0)
    label_dropout: float = setting(
        0.0, help="share of labels replaced by `no label` in training", ge=0, le=1
    )
    attention_kernel: str = setting(
        "auto",
        help="fused: fast and lean; math: allows second derivatives; auto: math for few "
        "positions on a CPU, else fused",
        choices=ATTENTION_KERNELS,
    )
    checkpoint_blocks: bool = setting(
        False, help="recompute each block in the backward: less memory, a third more time"
    )
    c_noise_scale: float = setting(1.0, help="factor on the noise-level input")
    c_noise_shift: float = setting(
        0.0, help="added to the noise-level input after that; -1: times counted from 0"
    )


class Trail:
    """Features collected on the way through a network.

    Args:
        taps: Names of those to keep.
        stop_at: Name of the last one; None to go on to the end.
    """

    def __init__(self, taps: tuple[str, ...], stop_at: str | None) -> None:
        self.taps, self.stop_at = taps, stop_at
        self.features: dict[str, Tensor] = {}

    def ends(self, name: str, h: Tensor) -> bool:
        """Keep `h` [B, ...] if `name` is asked for; True if the network has to stop there."""
        if name in self.taps:
            self.features[name] = h
        return name == self.stop_at


def noise_levels(config: Any, build: Build, c_noise: Tensor | None, like: Tensor) -> Tensor:
    """Noise levels [B] as the network reads them, in at least fp32.

    Args:
        config: Settings with `c_noise_scale` and `c_noise_shift`.
        build: Gives the lowest level, which stands for a missing one.
        c_noise: Noise-level input [B] or None.
        like: Input of the network [B, ...].
    """
    level = like.new_full((like.shape[0],), build.c_noise[0]) if c_noise is None else c_noise
    return at_least_fp32(level) * config.c_noise_scale + config.c_noise_shift


def drop_labels(labels: Tensor | None, like: Tensor, *, classes: int, share: float = 0.0) -> Tensor:
    """Labels [B], of which a share is replaced by `classes`, which means "no label".

    Args:
        labels: Labels [B], int64, or None: no label for any.
        like: Input of the network [B, ...]; gives batch size and device.
        classes: Number of classes.
        share: Share that is replaced, drawn from torch's generator, which the core keys.
    """
    if labels is None:
        return torch.full((like.shape[0],), classes, dtype=torch.int64, device=like.device)
    if not share:
        return labels
    dropped = torch.rand(labels.shape[0], device=labels.device) < share
    return torch.where(dropped, classes, labels)


def group_norm(channels: int, *, eps: float = 1e-5, least: int = 1) -> GroupNorm:
    """GroupNorm with the most groups, at most 32, that are even and hold `least` channels."""
    most = max(1, min(MAX_GROUPS, channels // least))
    groups = next(g for g in range(most, 0, -1) if channels % g == 0)
    return GroupNorm(groups, channels, eps=eps)


def run_block(block: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """Output of a block, which with `recompute` keeps its inputs alone for the backward."""
    call: Callable[..., Any] = block
    if recompute and torch.is_grad_enabled():
        return checkpoint(call, *inputs, use_reentrant=False)
    return call(*inputs)


def weight_type(module: nn.Module) -> torch.dtype:
    """Type of a module's weights, which its inputs need outside autocast."""
    return next(module.parameters()).dtype


def refused(build: Build, key: str, message: str, fix: str) -> RecipeError:
    """The error for a setting that does not fit the data or another setting."""
    return RecipeError([Fault(code="R10", key=f"{build.path}.{key}", message=message, fix=fix)])


def divides(build: Build, size: tuple[int, int], factor: int, key: str, use: str) -> None:
    """Refuse images whose sides are no multiples of what a network halves or cuts them by.

    Args:
        build: What the network is told.
        size: Height and width.
        factor: What has to divide both.
        key: The setting that `factor` follows from.
        use: The network's name in a recipe.

    Raises:
        RecipeError: Naming the setting, the size and the factor.
    """
    if size[0] % factor or size[1] % factor:
        message = f'"{use}" needs sides that {factor} divides, the data have {size[0]}x{size[1]}'
        raise refused(build, key, message, "change it, or resize the images")
