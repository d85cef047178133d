"""How accuracies are compared: in pairs, on the same images and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

__all__ = ["Change", "accuracy", "change", "clean", "robust", "shares"]

#: Standard errors of an interval of 95 %.
WIDTH = 1.96

Run = Mapping[str, Any]


class Change(NamedTuple):
    """A difference of robust accuracies, in points.

    Attributes:
        mean: Over seeds and images.
        error: Half the width of its 95 % interval over images, the seeds being what they are.
        higher: Seeds in which it is positive.
        seeds: Seeds that both have.
    """

    mean: float
    error: float
    higher: int
    seeds: int

    def __str__(self) -> str:
        """In points, with the interval and the seeds."""
        return f"{self.mean:+.1f} +- {self.error:.1f}, higher in {self.higher} of {self.seeds}"


def clean(run: Run) -> float:
    """Accuracy on all test images, in per cent."""
    return 100 * float(run["metrics"]["accuracy"])


def robust(run: Run) -> float:
    """Accuracy under attack, in per cent."""
    return 100 * fmean(map(int, run["robust"]))


def change(runs: Mapping[str, Run], base: Mapping[str, Run]) -> Change:
    """Difference of robust accuracies; each image counts once, as the mean over seeds.

    The interval is that of a mean over images that were drawn at random: images are the same for
    all seeds, so that 1,000 of them attacked three times are no 3,000.
    """
    both = sorted(set(runs) & set(base))
    pairs = [(runs[seed]["robust"], base[seed]["robust"]) for seed in both]
    images = [
        fmean(int(ours) - int(theirs) for ours, theirs in each)
        for each in zip(*(zip(a, b, strict=True) for a, b in pairs), strict=True)
    ]
    higher = sum(a.count("1") > b.count("1") for a, b in pairs)
    error = WIDTH * stdev(images) / len(images) ** 0.5
    return Change(100 * fmean(images), 100 * error, higher, len(both))


def shares(values: Sequence[float]) -> str:
    """Mean of shares in per cent, and the range over seeds if there are several."""
    text = f"{fmean(values):.1f}"
    return f"{text} ({min(values):.1f}-{max(values):.1f})" if len(values) > 1 else text


def accuracy(found: Mapping[str, Any]) -> str:
    """A count of an attack's report as a share, with its interval."""
    share = 100 * found["hits"] / found["count"]
    return f"{share:.1f} ({100 * found['low']:.1f}-{100 * found['high']:.1f})"
