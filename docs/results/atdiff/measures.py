"""What the experiments are measured with: distance against network evaluations, by sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["METHODS", "RECIPES", "curve", "few_steps", "samplers"]

RECIPES = Path(__file__).parents[3] / "plugins/atdiff/src/advdiff_atdiff/recipes"

#: A sampler without noise and one with, as the released code clips them. The posterior's variance,
#: as the larger one is no use for few steps.
METHODS: dict[str, dict[str, Any]] = {
    "ddpm": {"use": "ddpm", "variance": "fixed-small"},
    "ddim": {"use": "ddim"},
}


def samplers(
    names: Sequence[str], *, clip: bool = True, scale: float | None = None
) -> dict[str, dict[str, Any]]:
    """Samplers by label; with `scale` each also with epsilon scaling, as `<name>-es`."""
    plain = {name: {**METHODS[name], "clip_x0": clip} for name in names}
    if scale is None:
        return plain
    scaled = {
        f"{name}-es": {"use": "epsilon-scaling", "sampler": spec, "scale": scale}
        for name, spec in plain.items()
    }
    return {**plain, **scaled}


def few_steps(
    metric: Mapping[str, Any], chosen: Mapping[str, Mapping[str, Any]], steps: Sequence[int]
) -> dict[str, Any]:
    """A metric at several numbers of steps, a curve for each sampler."""
    return {
        "use": "few-steps", "metric": dict(metric), "steps": list(steps),
        "samplers": list(chosen.values()), "labels": list(chosen),
    }  # fmt: skip


def curve(numbers: Mapping[str, float], name: str, label: str) -> dict[int, float]:
    """Values by steps of one sampler, from the numbers of `few-steps`; "" for the run's own."""
    prefix = "_".join(filter(None, ("few_steps", name, label))) + "_"
    # Numbers of a metric that is listed a second time end in #2.
    plain = {key.partition("#")[0]: value for key, value in numbers.items()}
    found = {key.removeprefix(prefix): value for key, value in plain.items()}
    return {int(end): value for end, value in found.items() if end.isdigit()}
