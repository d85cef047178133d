"""Spectral normalisation whose power iteration follows the optimizer, not the forward.

`torch.nn.utils.parametrizations.spectral_norm` iterates in each forward in train mode. Here one
step has several forwards of a discriminator, some of them for the generator's gradient and some run
again by a backward: they all have to see the same weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["SpectralNorm", "advance", "normed"]

#: Power iterations with which a layer begins.
FIRST = 15


class SpectralNorm(nn.Module):
    """Divides a weight by its largest singular value (Miyato et al. 2018, eq. 8).

    Args:
        weight: The weight [O, I, ...], taken as a matrix [O, I * ...].
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        self.left: Tensor
        self.right: Tensor
        for name, like in (("left", matrix[:, 0]), ("right", matrix[0])):
            vector = nn.init.normal_(torch.empty_like(like))
            self.register_buffer(name, F.normalize(vector, dim=0))
        for _ in range(FIRST):
            self.advance(weight)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight [O, I, ...] over `u W v`, where u and v are constants."""
        # A norm in bfloat16 would be off by up to half a percent.
        with torch.autocast(weight.device.type, enabled=False):
            return weight / torch.dot(self.left, weight.flatten(1) @ self.right)

    @torch.no_grad()
    def advance(self, weight: Tensor) -> None:
        """One power iteration for the weight [O, I, ...] as it is now."""
        matrix = weight.flatten(1)
        self.left.copy_(F.normalize(torch.mv(matrix, self.right), dim=0))
        self.right.copy_(F.normalize(torch.mv(matrix.T, self.left), dim=0))


def normed(layer: nn.Conv2d | nn.Linear, *, spectral: bool) -> nn.Module:
    """The layer, its weight normalised if asked for."""
    if spectral:
        parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight))
    return layer


def advance(module: nn.Module) -> None:
    """One power iteration in each normalised layer of a module."""
    for part in module.modules():
        if isinstance(part, parametrize.ParametrizationList):
            for one in part:
                if isinstance(one, SpectralNorm):
                    one.advance(part.original)
