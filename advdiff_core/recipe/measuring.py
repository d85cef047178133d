"""The tables of a recipe that say what is measured, `[evaluate]` and `[validate]`; no torch."""

from __future__ import annotations

from typing import Literal

from advdiff_core.settings import Spec, setting, settings

__all__ = ["MAX_COUNT", "Evaluate", "Validate"]

#: Largest number of images a count may be: 64-bit counters with room to add.
MAX_COUNT = 2**53


@settings
class Evaluate:
    """`[evaluate]`: what is measured at the end of a run and by `advdiff evaluate`."""

    metrics: tuple[Spec, ...] = setting((), kind="metric", help="the metrics", safe=True)
    num: int = setting(1_000, ge=2, le=2**31, unit="images", safe=True, help="samples they see")
    seed: int = setting(0, ge=0, lt=2**63, safe=True, help="seed of the first sample")
    repeats: int = setting(
        1, ge=1, le=1_000, safe=True,
        help="ranges of num seeds, one after the other; numbers are means, with their spread",
    )  # fmt: skip
    batch: int = setting(256, ge=1, le=2**31, unit="images", safe=True, help="samples per batch")


@settings
class Validate:
    """`[validate]`: what is measured during the training, and which weights are the best."""

    metrics: tuple[Spec, ...] = setting(
        (), kind="metric", safe=True, help="the metrics; best of samples that are not trained on"
    )
    every: int = setting(
        50_000, ge=1, le=MAX_COUNT, unit="images", safe=True,
        help="images between measurements; there is one at the end, too",
    )  # fmt: skip
    start: bool = setting(
        True, safe=True, help="measure before the first step, too, which finds faults at once"
    )
    best: str = setting(
        "", safe=True,
        help="the number that says which weights are the best, as the metrics name it; their first"
        " number if left out",
    )  # fmt: skip
    goal: Literal["max", "min"] = setting("max", safe=True, help="which of its values is better")
    ties: Literal["first", "last"] = setting(
        "first", safe=True, help="which of several equal values is the best"
    )
    patience: int = setting(
        0, ge=0, le=MAX_COUNT, unit="images", safe=True,
        help="images without a better value after which the run ends; 0: it never ends early",
    )  # fmt: skip
    num: int = setting(
        1_000, ge=2, le=2**31, unit="images", safe=True, help="samples that metrics of samples see"
    )
    seed: int = setting(0, ge=0, lt=2**63, safe=True, help="seed of the first sample")
    batch: int = setting(256, ge=1, le=2**31, unit="images", safe=True, help="samples per batch")
