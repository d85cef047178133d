"""Which part of the inference path a step runs, and which of its steps are trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from attrs import frozen

from advdiff_adt.rules import Rule

__all__ = ["Choice", "Start", "Stretch", "StretchLaw", "Truncation"]

Start = Literal["uniform", "fixed", "curriculum"]
Choice = Literal["random", "spaced"]
Truncation = Literal["fixed", "random"]


@frozen
class Stretch:
    """A part of the path of n steps.

    Attributes:
        first: Step that it starts with; 0 starts at t = T.
        last: Step that ends the path: the ones between it and the path's end are skipped.
        trained: Steps that keep a graph to the parameters, counted from `first`.
    """

    first: int
    last: int
    trained: tuple[int, ...]

    @property
    def count(self) -> int:
        """Steps that are run."""
        return self.last - self.first + 1

    def times(self, grid: torch.Tensor) -> torch.Tensor:
        """Its times [count + 1] of a path `grid` [n + 1]; the last is always the path's own."""
        return torch.cat([grid[self.first : self.last + 1], grid[-1:]])


@frozen(kw_only=True)
class StretchLaw:
    """How the part and the trained steps are drawn, once for a whole batch.

    FOUND (arXiv 2504.11423 by secondary sources): starts uniform on the discrete path, K = 3
    trained steps. UNKNOWN: how these are drawn; ours are uniform without replacement among the
    steps that are run ("random"). FOUND (arXiv 2405.00760): evenly spaced steps with a random
    offset ("spaced"), and a random stop near the end. Fewer steps than K: all are trained.

    Attributes:
        rule: The gradient rule.
        start: "uniform" over all steps; "fixed"; "curriculum": uniform over the last steps, of
            which there are more and more (ours).
        first: Step that a fixed start begins with.
        curriculum: Images after which a curriculum covers the path.
        count: K.
        choice: How K steps are chosen under `adt` and `drtune`.
        truncation: Under `last-k`: K steps, or a number uniform in 1..K (AlignProp).
        early_stop: Share of the path's steps, its last ones, among which a run ends; 0: none.
    """

    rule: Rule
    start: Start = "uniform"
    first: int = 0
    curriculum: int = 0
    count: int = 3
    choice: Choice = "random"
    truncation: Truncation = "fixed"
    early_stop: float = 0.0

    def draw(self, steps: int, nimg: int, generator: torch.Generator) -> Stretch:
        """A part of a path.

        Args:
            steps: Steps of the path.
            nimg: Images seen so far.
            generator: A generator on the CPU: nothing here waits for a device.
        """
        first = self._first(steps, nimg, generator)
        stops = int(self.early_stop * steps)
        low = max(first, steps - stops) if stops else steps - 1
        last = _integer(low, steps, generator)
        return Stretch(first, last, self._trained(last - first + 1, generator))

    def means(self, steps: int) -> tuple[float, float]:
        """Steps that are run on average, and how many of them are trained; a curriculum at its end.

        Args:
            steps: Steps of the path.
        """
        starts = [self.first] if self.start == "fixed" else list(range(steps))
        stops = int(self.early_stop * steps)
        pairs = []
        for first in starts:
            lasts = range(max(first, steps - stops) if stops else steps - 1, steps)
            counts = [last - first + 1 for last in lasts]
            pairs.append((_mean(counts), _mean([self._kept(count) for count in counts])))
        return _mean([run for run, _ in pairs]), _mean([kept for _, kept in pairs])

    def _kept(self, count: int) -> float:
        """Trained steps on average of `count` that are run."""
        if self.rule in ("full", "none"):
            return float(count if self.rule == "full" else 1)
        chosen = min(self.count, count)
        random = self.rule == "last-k" and self.truncation == "random"
        return (1 + chosen) / 2 if random else float(chosen)

    def _first(self, steps: int, nimg: int, generator: torch.Generator) -> int:
        if self.start == "fixed":
            return self.first
        known = steps
        if self.start == "curriculum":
            share = min(1.0, nimg / self.curriculum) if self.curriculum else 1.0
            known = max(1, round(share * steps))
        return _integer(steps - known, steps, generator)

    def _trained(self, count: int, generator: torch.Generator) -> tuple[int, ...]:
        if self.rule == "full":
            return tuple(range(count))
        if self.rule == "none":
            return (count - 1,)
        chosen = min(self.count, count)
        if self.rule == "last-k":
            random = self.truncation == "random"
            chosen = _integer(1, chosen + 1, generator) if random else chosen
            return tuple(range(count - chosen, count))
        if self.choice == "random":
            return tuple(sorted(torch.randperm(count, generator=generator)[:chosen].tolist()))
        offset = float(torch.rand((), generator=generator, dtype=torch.float64))
        return tuple(int((place + offset) * count / chosen) for place in range(chosen))


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    """Uniform in [low, high)."""
    return int(torch.randint(low, high, (), generator=generator))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
