"""Honest little classifiers of digits, for the zoo of soundness flags.

`python tests/helpers_zoo.py` trains them anew (a minute) and writes `golden/zoo.safetensors`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

__all__ = ["NETS", "RADIUS", "Digits", "classifier", "digits"]

WEIGHTS = Path(__file__).parent / "golden" / "zoo.safetensors"
#: Trained networks: five without and five with an adversary.
NETS = tuple(f"{kind}{number}" for kind in ("standard", "adversarial") for number in range(5))
#: Linf radius that the adversarial ones were trained for, and all are attacked with.
RADIUS = 0.1


class Digits(nn.Module):
    """Two convolutions and a layer: images [B, 1, 8, 8] in [0, 1] to logits [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 12, 3, padding=1)
        self.second = nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.last = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        hidden = F.relu(self.second(F.relu(self.first(2 * x - 1))))
        return self.last(hidden.flatten(1))


@cache
def digits() -> tuple[Tensor, Tensor]:
    """All images [1797, 1, 8, 8] in [0, 1] and their labels; the last 500 were not trained on."""
    raw = load_digits()
    x = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 16
    return x, torch.tensor(raw.target, dtype=torch.int64)


@cache
def _weights() -> dict[str, Tensor]:
    return load_file(WEIGHTS)


def classifier(name: str) -> Digits:
    """A trained network, in eval mode and frozen; a new one each time."""
    net = Digits()
    prefix = f"{name}."
    net.load_state_dict(
        {k.removeprefix(prefix): v for k, v in _weights().items() if k.startswith(prefix)}
    )
    return net.eval().requires_grad_(False)


def attacked(net: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Seven projected steps on the cross-entropy."""
    delta = RADIUS * (2 * torch.rand(x.shape, generator=generator) - 1)
    for _ in range(7):
        moved = (x + delta).clamp(0, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(moved), y), moved)
        delta = (moved.detach() + 0.03 * gradient.sign() - x).clamp(-RADIUS, RADIUS)
    return (x + delta).clamp(0, 1)


def train(name: str) -> Digits:
    """Train a network on all but the last 500 digits."""
    generator = torch.Generator().manual_seed(NETS.index(name))
    torch.manual_seed(NETS.index(name))
    net = Digits()
    x, y = (part[:-500] for part in digits())
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(25):
        for rows in torch.randperm(len(x), generator=generator).split(64):
            images = x[rows]
            if name.startswith("adversarial"):
                images = attacked(net, images, y[rows], generator)
            optimizer.zero_grad()
            F.cross_entropy(net(images), y[rows]).backward()
            optimizer.step()
    return net


def record() -> None:
    """Train all networks and write their weights."""
    tensors: dict[str, Tensor] = {}
    x, y = (part[-500:] for part in digits())
    for name in NETS:
        net = train(name)
        generator = torch.Generator().manual_seed(0)
        right = (net(x).argmax(1) == y).float().mean()
        kept = (net(attacked(net, x, y, generator)).argmax(1) == y).float().mean()
        print(f"{name}: {right:.3f} clean, {kept:.3f} after seven steps")
        tensors |= {f"{name}.{key}": value for key, value in net.state_dict().items()}
    save_file(tensors, WEIGHTS)


if __name__ == "__main__":
    record()
