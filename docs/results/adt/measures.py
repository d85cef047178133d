"""What tuned runs are measured with: distance by steps and sampler, the judge, the alarm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["RECIPES", "TRANSFER", "alarm", "curve", "few_steps", "told_by_judge"]

RECIPES = Path(__file__).parents[3] / "plugins/adt/src/advdiff_adt/recipes"

#: The sampler that runs are tuned with, and those that they are tried with: transfer.
TRANSFER: dict[str, dict[str, Any]] = {
    "ddim": {"use": "ddim"},
    "dpmpp2m": {"use": "dpm++2m"},
    "euler": {"use": "euler"},
    "ancestral": {"use": "ddpm", "variance": "fixed-small"},
}
#: The path that the judge's numbers are taken on: that of tuning.
PATH: dict[str, Any] = {"sampler": {"use": "ddim"}, "steps": 10}


def few_steps(
    metric: Mapping[str, Any], names: Sequence[str], steps: Sequence[int], *, clip: bool
) -> dict[str, Any]:
    """A metric at several numbers of steps, a curve for each sampler."""
    samplers = [{**TRANSFER[name], "clip_x0": clip} for name in names]
    return {
        "use": "few-steps", "metric": dict(metric), "steps": list(steps), "samplers": samplers,
        "labels": list(names),
    }  # fmt: skip


def curve(numbers: Mapping[str, float], name: str, label: str) -> dict[int, float]:
    """Values by steps of one sampler, from the numbers of `few-steps`."""
    prefix = f"few_steps_{name}_{label}_"
    # Numbers of a metric that is listed a second time end in #2.
    plain = {key.partition("#")[0]: value for key, value in numbers.items()}
    found = {key.removeprefix(prefix): value for key, value in plain.items()}
    return {int(end): value for end, value in found.items() if end.isdigit()}


def told_by_judge(num: int) -> list[dict[str, Any]]:
    """What the run's own discriminator can tell."""
    return [{"use": "discriminator-accuracy", "num": num, **PATH}]


def alarm(metric: Mapping[str, Any], num: int, number: str) -> list[dict[str, Any]]:
    """Whether the score rose while the distance got worse, beside the role `before`."""
    return [{
        "use": "discriminator-hacking", "before": "before", "metric": dict(metric), "num": num,
        "number": number, **PATH,
    }]  # fmt: skip
