"""Small builds and inputs for tests of networks."""

from __future__ import annotations

import torch

from advdiff_core.interfaces.component import Build
from advdiff_core.types import DataInfo, Domain

__all__ = ["PATH", "check_taps_of", "image_build", "lively", "picture"]

PATH = "models.student"


def image_build(shape=(3, 32, 32), classes=10, domain=(0.0, 1.0), **more):
    """A `Build` with images."""
    limits = None if domain is None else Domain(*domain)
    data = DataInfo(shape=shape, count=10, domain=limits, classes=classes)
    return Build(path=PATH, data=data, **more)


def lively(net, seed=0):
    """The network with random weights and running statistics of its own, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                low = 0.5 if name.endswith("running_var") else -0.5
                tensor.add_(0.2 * (noise + low))
    return net.eval()


def picture(net, count=2, seed=0, dtype=torch.float32):
    """Images [B, C, H, W] inside the domain of a network's data."""
    data = net.build.data
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, *data.shape, generator=generator, dtype=torch.float64)
    low, span = (0.0, 1.0) if data.domain is None else (data.domain.low, data.domain.span)
    return (low + span * x).to(dtype)


def check_taps_of(net, *inputs):
    """Taps have declared shapes in forward order, and stopping early changes none of them."""
    names = tuple(net.taps)
    full = net(*inputs, taps=names)
    assert list(full.features) == list(names)
    for name, info in net.taps.items():
        feature, count = full.features[name], inputs[0].shape[0]
        images = len(info.size) == 2
        wanted = (count, info.width, *info.size) if images else (count, *info.size, info.width)
        assert feature.shape == wanted, name
        early = net(*inputs, taps=names, stop_at=name)
        assert early.output is None
        assert list(early.features) == list(names[: names.index(name) + 1])
        assert torch.equal(early.features[name], feature)
    return full
