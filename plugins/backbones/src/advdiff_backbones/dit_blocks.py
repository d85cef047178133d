"""Blocks of `dit`: position codes, attention, feed-forward networks, adaptive norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advdiff_backbones.layers import weight_type
from advdiff_core.layers import MAX_PERIOD, at_least_fp32, attend, sinusoidal

__all__ = [
    "Block",
    "FinalLayer",
    "LabelEmbedder",
    "PatchEmbedder",
    "RotaryEmbedding",
    "TimeEmbedder",
    "grid_positions",
    "position_code",
]

EPS = 1e-6
TIME_FEATURES = 256


def grid_positions(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Row and column [N] of each patch, row by row, in float64."""
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in size)
    return rows.repeat_interleave(size[1]), columns.repeat(size[0])


def position_code(size: tuple[int, int], width: int) -> Tensor:
    """Sines and cosines of columns, then of rows (Peebles & Xie, 2023), [1, N, width].

    Args:
        size: Patches along height and width.
        width: Features; a multiple of 4.
    """
    rows, columns = grid_positions(size)
    halves = []
    for position in (columns, rows):
        cosine, sine = sinusoidal(position, width // 2).chunk(2, dim=1)
        halves += [sine, cosine]
    return torch.cat(halves, dim=1)[None].to(torch.get_default_dtype())


class RotaryEmbedding(nn.Module):
    """Rotates pairs of features by the row (first half) and the column of their patch (RoFormer).

    Args:
        size: Patches along height and width.
        width: Features of a head; a multiple of 4.
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, size: tuple[int, int], width: int) -> None:
        super().__init__()
        pairs = width // 4
        rates = MAX_PERIOD ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        turns = torch.cat([p[:, None] * rates for p in grid_positions(size)], dim=1)
        turns = turns.repeat_interleave(2, dim=1)
        # Buffers of this shape, in this order, are what LightningDiT's checkpoints hold.
        self.register_buffer("freqs_cos", turns.cos().to(torch.get_default_dtype()))
        self.register_buffer("freqs_sin", turns.sin().to(torch.get_default_dtype()))

    def forward(self, x: Tensor) -> Tensor:
        """Queries or keys [B, heads, N, width], rotated, in their own type."""
        wide = at_least_fp32(x)
        turned = torch.stack([-wide[..., 1::2], wide[..., 0::2]], dim=-1).flatten(-2)
        return (wide * self.freqs_cos + turned * self.freqs_sin).to(x.dtype)


class RMSNorm(nn.RMSNorm):
    """RMSNorm in at least fp32."""

    def forward(self, x: Tensor) -> Tensor:
        """Output like `x` [B, ..., D]."""
        return super().forward(at_least_fp32(x)).to(x.dtype)


def norm_layer(config: Any, width: int) -> nn.Module:
    """The norm in front of a layer; a LayerNorm has no weights: the embedding scales it."""
    if config.norm == "rms":
        return RMSNorm(width, eps=EPS)
    return nn.LayerNorm(width, eps=EPS, elementwise_affine=False)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`x` [B, N, D] scaled and shifted by [B, D] each."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


class Attention(nn.Module):
    """Self-attention over tokens; norms of queries and keys and rotary positions are options."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.width
        each = width // config.heads
        self.heads, self.kernel = config.heads, config.attention_kernel
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        kind = RMSNorm if config.norm == "rms" else nn.LayerNorm
        self.q_norm = kind(each, eps=EPS) if config.qk_norm else nn.Identity()
        self.k_norm = kind(each, eps=EPS) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, rotate: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Output [B, N, D] for `x` [B, N, D]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        mixed = attend(q.to(v.dtype), k.to(v.dtype), v, self.kernel)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class GeluMLP(nn.Module):
    """Two layers with a tanh-approximated GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Output [B, N, D]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class SwiGLU(nn.Module):
    """Gated feed-forward network (Shazeer, 2020), of two thirds of the hidden width."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        hidden = int(2 * hidden / 3)
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Output [B, N, D]."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        out: Tensor = self.w3(F.silu(gate) * value)
        return out


def modulation(width: int, parts: int) -> nn.Sequential:
    """Scales, shifts and gates from an embedding; the layer starts at zero (adaLN-Zero)."""
    last = nn.Linear(width, parts * width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.SiLU(), last)


class Block(nn.Module):
    """Attention and feed-forward network, each between an adaptive norm and a gate."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.width
        hidden = int(width * config.mlp_ratio)
        self.norm1 = norm_layer(config, width)
        self.attn = Attention(config)
        self.norm2 = norm_layer(config, width)
        self.mlp = (SwiGLU if config.mlp == "swiglu" else GeluMLP)(width, hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.adaLN_modulation = modulation(width, 6)

    def forward(
        self, x: Tensor, embedding: Tensor, rotate: Callable[[Tensor], Tensor] | None
    ) -> Tensor:
        """Output [B, N, D] for `x` [B, N, D] and an embedding [B, D]."""
        shift, scale, gate, shift2, scale2, gate2 = self.adaLN_modulation(embedding).chunk(6, dim=1)
        h = self.attn(modulate(self.norm1(x), shift, scale), rotate)
        x = torch.addcmul(x, gate[:, None], self.dropout(h))
        h = self.mlp(modulate(self.norm2(x), shift2, scale2))
        return torch.addcmul(x, gate2[:, None], self.dropout(h))

    def modulated(self, x: Tensor, embedding: Tensor) -> Tensor:
        """What its attention reads [B, N, D] of `x` [B, N, D] and an embedding [B, D]."""
        shift, scale = self.adaLN_modulation(embedding).chunk(6, dim=1)[:2]
        return modulate(self.norm1(x), shift, scale)


class PatchEmbedder(nn.Module):
    """Patches as tokens."""

    def __init__(self, colours: int, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(colours, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, N, D] of images [B, C, H, W]."""
        out: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return out


class TimeEmbedder(nn.Module):
    """Embedding of noise levels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, level: Tensor) -> Tensor:
        """Embedding [B, D] of noise levels [B]."""
        out: Tensor = self.mlp(sinusoidal(level, TIME_FEATURES).to(weight_type(self)))
        return out


class LabelEmbedder(nn.Module):
    """A vector per class, and one for "no label"."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        """Embedding [B, D] of labels [B]."""
        out: Tensor = self.embedding_table(labels)
        return out


class FinalLayer(nn.Module):
    """Adaptive norm and the values of each patch; it starts at zero."""

    def __init__(self, config: Any, values: int) -> None:
        super().__init__()
        self.norm_final = norm_layer(config, config.width)
        self.linear = nn.Linear(config.width, values)
        self.adaLN_modulation = modulation(config.width, 2)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Values [B, N, P] of tokens [B, N, D] and an embedding [B, D]."""
        out: Tensor = self.linear(self.modulated(x, embedding))
        return out

    def modulated(self, x: Tensor, embedding: Tensor) -> Tensor:
        """What its linear layer reads [B, N, D] of `x` [B, N, D] and an embedding [B, D]."""
        shift, scale = self.adaLN_modulation(embedding).chunk(2, dim=1)
        return modulate(self.norm_final(x), shift, scale)
