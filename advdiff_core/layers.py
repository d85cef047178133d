"""Layers and questions that networks of the core and of plugins share; a public module."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advdiff_core.errors import Fault, RecipeError

if TYPE_CHECKING:
    from advdiff_core.interfaces.component import Build

__all__ = [
    "ATTENTION_KERNELS",
    "MAX_PERIOD",
    "GroupNorm",
    "at_least_fp32",
    "attend",
    "image_shape",
    "num_labels",
    "sinusoidal",
    "zeroed",
]

#: What attention may be computed with; see `attend`.
ATTENTION_KERNELS = ("auto", "fused", "math")

#: Most positions for which plain products are the faster attention on a CPU.
FEW_POSITIONS = 256

#: Longest period of position features, in units of 2 pi.
MAX_PERIOD = 10_000.0


def zeroed(layer: nn.Linear | nn.Conv1d | nn.Conv2d) -> Any:
    """The layer with weight and bias set to zero, so that its branch starts as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def at_least_fp32(x: Tensor) -> Tensor:
    """`x`, of any shape, in fp32 if it is a half type, else as it is."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def sinusoidal(position: Tensor, width: int) -> Tensor:
    """Cosine and sine features of positions (Vaswani et al. 2017, section 3.5), in at least fp32.

    Args:
        position: Positions [B], about 0 to 1000.
        width: Even number of features.

    Returns:
        Features [B, width]; periods run from 2 pi to 2 pi * 10,000.
    """
    position = at_least_fp32(position)
    steps = torch.arange(width // 2, device=position.device, dtype=position.dtype)
    phase = position[:, None] * torch.exp(steps * (-math.log(MAX_PERIOD) / max(width // 2, 1)))
    return torch.cat([phase.cos(), phase.sin()], dim=1)


class GroupNorm(nn.GroupNorm):
    """GroupNorm in at least fp32, as autocast does on CUDA; the CPU kernel is slow in bf16."""

    def forward(self, x: Tensor) -> Tensor:
        """Output like `x` [B, C, H, W]."""
        return super().forward(at_least_fp32(x)).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, kernel: str = "auto") -> Tensor:
    """Softmax attention `softmax(q k^T / sqrt(D)) v`.

    Args:
        q: Queries [B, heads, N, D].
        k: Keys [B, heads, M, D].
        v: Values [B, heads, M, E].
        kernel: "fused" (torch's own, which has no second derivative and needs no memory for the
            weights), "math" (plain products; torch's softmax adds up in at least fp32 whatever the
            type) or "auto" (math on the CPU, where it is the faster one, up to `FEW_POSITIONS`
            positions; else fused).

    Returns:
        Values mixed [B, heads, N, E].
    """
    few = q.device.type == "cpu" and k.shape[-2] <= FEW_POSITIONS
    if kernel == "fused" or (kernel == "auto" and not few):
        # Strided features would silently fall back to the slow kernel that keeps all weights.
        return F.scaled_dot_product_attention(_packed(q), _packed(k), _packed(v))
    # There are N weights for D numbers of a query: scale those, and keep the weights' type.
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return weights.softmax(dim=-1).to(v.dtype) @ v


def _packed(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def num_labels(build: Build, *, conditional: bool, classes: int) -> int:
    """Classes a network is conditioned on: none, `classes`, or else as many as the data have.

    Raises:
        RecipeError: If conditioning is asked for, `classes` is 0 and the data have no labels.
    """
    if not conditional:
        return 0
    known = classes or (build.data.classes if build.data is not None else 0)
    if not known:
        fault = Fault(
            code="R10",
            key=f"{build.path}.conditional",
            message="true, but the data have no labels",
            fix="set conditional = false, or train on data with labels",
        )
        raise RecipeError([fault])
    return known


def image_shape(build: Build, use: str) -> tuple[int, int, int]:
    """Channels, height and width of the data.

    Args:
        build: What the network is told of the data.
        use: The network's name in a recipe.

    Raises:
        RecipeError: If the data are no images.
    """
    shape = build.data.shape if build.data is not None else ()
    if len(shape) != 3:
        fault = Fault(
            code="R10",
            key=f"{build.path}.use",
            message=f'"{use}" needs images (C, H, W), the data have shape {list(shape)}',
            fix='write use = "mlp" for points',
        )
        raise RecipeError([fault])
    return shape
