"""Layers shared by the backbones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advdiff_core.layers import GroupNorm, at_least_fp32, attend, sinusoidal, zeroed

__all__ = ["Condition", "ResBlock", "SelfAttention", "added_parts", "group_norm"]


def added_parts(*, guided: bool, learn_sigma: bool) -> tuple[str, ...]:
    """Tensors that start without effect, and that weights of a plain network may lack.

    Args:
        guided: Whether the strength of guidance is embedded.
        learn_sigma: Whether there is a variance head.
    """
    guidance = ("condition.guidance.weight",) if guided else ()
    return (*guidance, "variance.weight", "variance.bias") if learn_sigma else guidance


def group_norm(channels: int) -> GroupNorm:
    """GroupNorm with the most groups, at most 32, that are even and hold at least 4 channels."""
    groups = next(g for g in range(max(1, min(32, channels // 4)), 0, -1) if channels % g == 0)
    return GroupNorm(groups, channels)


class Condition(nn.Module):
    """Embedding of noise level and class label.

    `c_noise` is scaled from its range to [0, 1000]: every schedule spreads over the same features.
    Class K is "no label": used for missing labels and, in training, in place of dropped ones
    (classifier-free guidance, Ho & Salimans 2022).

    Args:
        width: Width of the embedding.
        features: Sinusoidal features of the noise level.
        c_noise: Range of the noise-level input.
        classes: Number of classes K; 0 ignores labels.
        label_dropout: Share of labels dropped in training.
        guided: Whether the strength of guidance is embedded too, as 1000 w with the same features
            (Luo et al. 2023, latent consistency models), through a layer that starts at zero.
    """

    def __init__(  # noqa: PLR0913 - what a network may be told.
        self,
        width: int,
        *,
        features: int,
        c_noise: tuple[float, float],
        classes: int = 0,
        label_dropout: float = 0.0,
        guided: bool = False,
    ) -> None:
        super().__init__()
        self.features = features
        self.low, span = c_noise[0], c_noise[1] - c_noise[0]
        self.scale = 1000.0 / span if span > 0 else 1.0
        self.classes = classes
        self.label_dropout = label_dropout
        self.hidden = nn.Linear(features, width)
        self.out = nn.Linear(width, width)
        self.label_embedding = nn.Embedding(classes + 1, width) if classes else None
        self.guidance = zeroed(nn.Linear(features, width, bias=False)) if guided else None

    @property
    def drops_labels(self) -> bool:
        """True if a forward in train mode draws which labels to drop."""
        return self.classes > 0 and self.label_dropout > 0

    def forward(
        self,
        c_noise: Tensor | None,
        labels: Tensor | None,
        like: Tensor,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Embedding [B, width].

        Args:
            c_noise: Noise-level input [B]; None gives the embedding of its lowest value.
            labels: Labels [B], int64, or None.
            like: Input of the network [B, ...]; gives batch size, dtype and device.
            guidance: Strength of guidance [B], for networks that are told; None is 0.
        """
        level = like.new_full((like.shape[0],), self.low) if c_noise is None else c_noise
        features = sinusoidal((at_least_fp32(level) - self.low) * self.scale, self.features)
        hidden = F.silu(self.hidden(features.to(self.hidden.weight.dtype)))
        if self.label_embedding is not None:
            hidden = hidden + self.label_embedding(self._classes(labels, like))
        if self.guidance is not None:
            strength = torch.zeros_like(level) if guidance is None else guidance
            features = sinusoidal(1000.0 * at_least_fp32(strength), self.features)
            hidden = hidden + self.guidance(features.to(hidden.dtype))
        return F.silu(self.out(hidden))

    def _classes(self, labels: Tensor | None, like: Tensor) -> Tensor:
        count = like.shape[0]
        if labels is None:
            return torch.full((count,), self.classes, dtype=torch.int64, device=like.device)
        if not self.training or not self.drops_labels:
            return labels
        dropped = torch.rand(count, device=labels.device) < self.label_dropout
        return torch.where(dropped, self.classes, labels)


class ResBlock(nn.Module):
    """Residual block: GroupNorm, SiLU, 3x3 convolution, twice, modulated by an embedding.

    Scale and shift after the second norm as in Dhariwal & Nichol (2021), section 3; the last
    convolution starts at zero.
    """

    def __init__(self, inner: int, outer: int, embedding: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = group_norm(inner)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outer)
        self.norm2 = group_norm(outer)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(outer, outer, 3, padding=1))
        self.skip = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Output [B, outer, H, W] for `x` [B, inner, H, W] and an embedding [B, D]."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        out: Tensor = self.skip(x) + self.conv2(self.dropout(F.silu(h)))
        return out


class SelfAttention(nn.Module):
    """Residual self-attention over the positions of an image; its output layer starts at zero.

    Args:
        channels: Channels of the input.
        head_channels: Least channels of a head; as many heads as divide `channels` evenly.
        kernel: "fused", "math" or "auto"; see `advdiff_core.layers.attend`.
    """

    def __init__(self, channels: int, head_channels: int, *, kernel: str = "auto") -> None:
        super().__init__()
        most = max(1, channels // head_channels)
        self.heads = next(n for n in range(most, 0, -1) if channels % n == 0)
        self.kernel = kernel
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Output [B, C, H, W] for `x` [B, C, H, W]."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v, self.kernel).transpose(1, 2).flatten(2)
        out: Tensor = x + self.out(mixed).transpose(1, 2).unflatten(2, x.shape[2:])
        return out
