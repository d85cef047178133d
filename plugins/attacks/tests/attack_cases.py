"""Victims and batches that the tests of several attacks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from advdiff_core import Attack, Build, Draws, Spec
from advdiff_core.types import Domain

UNIT = Domain(0.0, 1.0)


class FunctionVictim:
    """A classifier given as a function of the input; counts its calls."""

    def __init__(self, logits: Callable[[Tensor], Tensor], y: Tensor) -> None:
        self.logits, self.labels = logits, y
        self.calls = 0
        self.sizes: list[int] = []

    def outputs(self, x: Tensor) -> Tensor:
        """Logits."""
        self.calls += 1
        self.sizes.append(len(x))
        return self.logits(x)

    def loss(self, outputs: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(outputs, self.labels, reduction="none")

    def broken(self, outputs: Tensor) -> Tensor:
        """Misclassified."""
        return outputs.argmax(1) != self.labels

    def rows(self, rows: Tensor) -> FunctionVictim:
        """Some samples; calls are counted together."""
        part = FunctionVictim(self.logits, self.labels[rows])
        part.sizes = self.sizes
        return part


def draws(size: int, key: object = 0) -> Draws:
    """Fresh numbers for a batch."""
    return Draws(("tests", key), start=0, size=size, total=size, device="cpu")


def attack(component: type[Attack], *, nested: Spec | None = None, **keys: Any) -> Attack:
    """An attack with these settings."""
    keys = {**keys, "attack": nested} if nested is not None else keys
    make = lambda spec: spec.component(spec.settings, Build(path=spec.path))  # noqa: E731
    return component(component.Settings(**keys), Build(path="attack", make=make))


def spec(component: type[Attack], use: str, **keys: Any) -> Spec:
    """A nested attack."""
    return Spec(
        kind="attack", use=use, settings=component.Settings(**keys), component=component,
        path="attack.attack",
    )  # fmt: skip


def linear(width: int = 12, classes: int = 3, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """Linear logits of inputs [B, ...]."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    return lambda x: x.flatten(1) @ weight.to(x.dtype).T
