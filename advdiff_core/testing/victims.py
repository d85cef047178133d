"""What attacks are tried on: classifiers and a regressor whose calls are counted."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advdiff_core.draws import keyed_generator
from advdiff_core.interfaces.attack import Victim
from advdiff_core.testing.bench import World, numel

__all__ = ["ClassifierVictim", "CountingVictim", "RegressorVictim", "WholeVictim"]

#: Hidden features of the victims.
WIDTH = 8


def _network(world: World, outputs: int, *, linear: bool) -> nn.Sequential:
    size = numel(world)
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(size, outputs)]
    if not linear:
        # Batch norm and dropout show an attack that switches modes.
        layers = [
            nn.Flatten(), nn.Linear(size, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh(),
            nn.Dropout(0.5), nn.Linear(WIDTH, outputs),
        ]  # fmt: skip
    net = nn.Sequential(*layers)
    generator = keyed_generator("victim", size, outputs)
    with torch.no_grad():
        for parameter in net.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / size**0.5)
    return net.eval()


class ClassifierVictim:
    """A classifier's cross-entropy.

    Args:
        world: The data.
        classes: Number of classes.
        size: Number of samples; their labels are drawn.
        linear: Logits linear in the input: the loss is convex, so that every step uphill helps.
        start: Position of the first sample, for its label.
    """

    def __init__(
        self, world: World, *, classes: int, size: int, linear: bool = False, start: int = 0
    ) -> None:
        self.net: nn.Module = _network(world, classes, linear=linear)
        generator = keyed_generator("victim labels", classes)
        self.y = torch.randint(0, classes, (start + size,), generator=generator)[start:]

    @property
    def labels(self) -> Tensor:
        """True classes [B]."""
        return self.y

    def rows(self, rows: Tensor) -> ClassifierVictim:
        """The same network for the samples `rows` [N]."""
        part = copy.copy(self)
        part.y = self.y[rows]
        return part

    def outputs(self, x: Tensor) -> Tensor:
        """Logits [B, K] at `x` [B, ...]."""
        logits: Tensor = self.net(x)
        return logits

    def loss(self, outputs: Tensor) -> Tensor:
        """Cross-entropy [B] of `outputs` [B, K]."""
        return F.cross_entropy(outputs, self.y, reduction="none")

    def broken(self, outputs: Tensor) -> Tensor | None:
        """Which samples of `outputs` [B, K] are misclassified [B]."""
        return outputs.argmax(dim=1).ne(self.y)


class RegressorVictim:
    """A network whose output [B, ...] has the shape of its input, and that is never "broken"."""

    def __init__(self, world: World) -> None:
        self.net: nn.Module = _network(world, numel(world), linear=False)

    @property
    def labels(self) -> None:
        """None: there are no classes."""

    def rows(self, rows: Tensor) -> RegressorVictim:
        """Itself: it knows nothing of single samples, `rows` [N] or others."""
        del rows
        return self

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs [B, ...] at `x` [B, ...]."""
        made: Tensor = self.net(x).reshape(x.shape)
        return made

    def loss(self, outputs: Tensor) -> Tensor:
        """Mean square [B] of `outputs` [B, ...]."""
        return outputs.square().flatten(1).mean(1)

    def broken(self, outputs: Tensor) -> Tensor | None:
        """Nothing is known of `outputs` [B, ...]."""
        del outputs
        return None


class CountingVictim:
    """A victim that counts calls, and gradients that reach the inputs it was called with."""

    def __init__(self, victim: Victim, counts: dict[str, int] | None = None) -> None:
        self.victim = victim
        self._counts = {"calls": 0, "gradients": 0} if counts is None else counts

    @property
    def calls(self) -> int:
        """Calls of `outputs`, those of its parts included."""
        return self._counts["calls"]

    @property
    def gradients(self) -> int:
        """Gradients that reached inputs, those of its parts included."""
        return self._counts["gradients"]

    @property
    def labels(self) -> Tensor | None:
        """True classes [B]."""
        return self.victim.labels

    def rows(self, rows: Tensor) -> CountingVictim | None:
        """The same for the samples `rows` [N], counted together."""
        part = self.victim.rows(rows)
        return None if part is None else CountingVictim(part, self._counts)

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs at `x` [B, ...], counted."""
        self._counts["calls"] += 1
        seen = x
        if x.requires_grad:
            seen = x.view_as(x)
            seen.register_hook(self._reached)  # type: ignore[no-untyped-call]
        return self.victim.outputs(seen)

    def loss(self, outputs: Tensor) -> Tensor:
        """The objective [B] of `outputs` [B, ...]."""
        return self.victim.loss(outputs)

    def broken(self, outputs: Tensor) -> Tensor | None:
        """Which samples of `outputs` [B, ...] are beaten [B]."""
        return self.victim.broken(outputs)

    def _reached(self, _: Tensor) -> None:
        self._counts["gradients"] += 1


class WholeVictim:
    """A victim that cannot be taken apart, as that of a training step."""

    def __init__(self, victim: Victim) -> None:
        self.victim = victim

    @property
    def labels(self) -> Tensor | None:
        """True classes [B]."""
        return self.victim.labels

    def rows(self, rows: Tensor) -> None:
        """Nothing: the samples `rows` [N] cannot be had alone."""
        del rows

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs [B, ...] at `x` [B, ...]."""
        return self.victim.outputs(x)

    def loss(self, outputs: Tensor) -> Tensor:
        """The objective [B] of `outputs` [B, ...]."""
        return self.victim.loss(outputs)

    def broken(self, outputs: Tensor) -> Tensor | None:
        """Which samples of `outputs` [B, ...] are beaten [B]."""
        return self.victim.broken(outputs)
