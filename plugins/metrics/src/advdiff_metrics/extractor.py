"""Feature extractors: frozen networks with a provenance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn

from advdiff_core.math.statistics import Moments
from advdiff_core.types import Domain
from advdiff_metrics.images import batches, resized, unit_images

__all__ = ["Extractor", "features_of", "moments_of", "unseeded"]


class Extractor(ABC):
    """Turns images into features. Built without its weights, which are read at the first use.

    Attributes:
        name: What numbers and files are called after it.
    """

    name: str

    @abstractmethod
    def check(self) -> None:
        """Refuse to start without a library or a file; reads no weights.

        Raises:
            AdvdiffError: One line naming what to install or where to put a file.
        """

    @abstractmethod
    def provenance(self) -> Mapping[str, object]:
        """What features depend on: network, hash of the weights, resize rule, scaling, dtype."""

    @abstractmethod
    def load(self) -> nn.Module:
        """The network with its weights, in eval mode, on the CPU."""

    @abstractmethod
    def extract(self, net: nn.Module, x: Tensor) -> Tensor:
        """Features [B, D] of images `x` [B, 3, H, W] in [0, 1] of any size."""

    @cached_property
    def net(self) -> nn.Module:
        """The network, read once."""
        with unseeded():
            return self.load().eval().requires_grad_(False)


@contextmanager
def unseeded() -> Iterator[None]:
    """Leave torch's global generator as it was: layers draw weights that are overwritten."""
    with torch.random.fork_rng(devices=[]):
        yield


class Resized:
    """What most extractors do first: resize, then subtract and divide by channel.

    Args:
        size: Height and width of the network's input.
        mean: Subtracted from each channel of images in [0, 1].
        std: Divides each channel.
        mode: "bicubic" or "bilinear", with antialiasing.
    """

    def __init__(
        self, size: int, mean: tuple[float, ...], std: tuple[float, ...], mode: str = "bicubic"
    ) -> None:
        self.size, self.mean, self.std, self.mode = size, mean, std, mode

    def __call__(self, x: Tensor) -> Tensor:
        """Network input [B, 3, size, size] of images `x` [B, 3, H, W] in [0, 1]."""
        mean, std = (x.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (resized(x, self.size, self.mode) - mean) / std

    def provenance(self) -> dict[str, object]:
        """Resize rule and normalisation."""
        return {
            "resize": f"{self.mode}, antialias, {self.size} x {self.size}, clipped to [0, 1]",
            "normalise": {"mean": list(self.mean), "std": list(self.std)},
        }


@torch.no_grad()
def features_of(
    extractor: Extractor, x: Tensor, domain: Domain, *, batch: int, device: torch.device
) -> Iterator[Tensor]:
    """Features [B, D] of images, float32 on the CPU, batch by batch.

    Args:
        extractor: The network.
        x: Images [N, C, H, W] in `domain`.
        domain: Range of valid values.
        batch: Images per forward.
        device: Where the network runs.
    """
    net = extractor.net.to(device)
    for part in batches(x, batch, device):
        yield extractor.extract(net, unit_images(part, domain)).float().cpu()


def moments_of(
    extractor: Extractor, x: Tensor, domain: Domain, *, batch: int, device: torch.device
) -> Moments:
    """Mean and covariance in float64 of features of images [N, C, H, W]; see `features_of`."""
    moments: Moments | None = None
    for part in features_of(extractor, x, domain, batch=batch, device=device):
        moments = moments or Moments(part.shape[1])
        moments.update(part)
    assert moments is not None, "there are images"
    return moments
