"""Pictures of the page alone: points with score fields, a trade-off; needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import torch
from plots import evaluation_of, save
from torch import Tensor

from advdiff_core.engine.evaluation import RunEvaluation

mpl.use("agg")
import matplotlib.pyplot as plt

__all__ = ["fields", "tradeoff"]

#: Unit normal of the plane, and a direction inside it.
NORMAL = torch.tensor([1.0, 1.0, -2.0]) / 6**0.5
INSIDE = torch.tensor([1.0, -1.0, 0.0]) / 2**0.5
REACH, CELLS, LEVEL = 1.6, 17, 0.3


def fields(runs: Mapping[str, Path], path: Path) -> None:
    """Samples of each run over its field of predicted noise, across the plane."""
    figure, axes = plt.subplots(1, len(runs), figsize=(4 * len(runs), 4), squeeze=False)
    for axis, (name, run) in zip(axes[0], runs.items(), strict=True):
        trained, seen = evaluation_of(run)
        x = trained.sample(range(1500)).x0
        across, along = x @ NORMAL, x @ INSIDE
        axis.scatter(along, across, s=2, alpha=0.5, color="#2654a4")
        start, arrow = field_of(seen)
        axis.quiver(*start, *arrow, color="#b0552a", width=0.004, alpha=0.8)
        axis.axhline(0, color="#888", linewidth=0.8)
        axis.set(title=name, xlim=(-REACH, REACH), ylim=(-REACH, REACH), xlabel="along the plane")
    axes[0][0].set_ylabel("distance from the plane")
    save(figure, path)


def field_of(seen: RunEvaluation) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Places and steps `-sigma eps_hat / alpha` towards x0_hat, at sigma / alpha = LEVEL."""
    line = torch.linspace(-REACH, REACH, CELLS)
    along, across = torch.meshgrid(line, line, indexing="xy")
    z = along.reshape(-1, 1) * INSIDE + across.reshape(-1, 1) * NORMAL
    schedule = seen.schedule
    assert schedule is not None
    times = torch.linspace(float(schedule.t_min), float(schedule.t_max), 2001).double()
    ratio = schedule.sigma(times) / schedule.alpha(times)
    t = times[(ratio - LEVEL).abs().argmin()].to(z.dtype).expand(len(z))
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    with torch.no_grad():
        eps = seen.denoiser()(alpha[:, None] * z, t).eps
    step = -(sigma / alpha)[:, None] * eps
    return (along.flatten(), across.flatten()), (step @ INSIDE, step @ NORMAL)


def tradeoff(points: Mapping[str, tuple[float, float]], line: Sequence[str], path: Path) -> None:
    """Noise left against the price in detail: one point per method, a line through a sweep."""
    figure, axis = plt.subplots(figsize=(7, 5))
    swept = [points[name] for name in line]
    axis.plot(*zip(*swept, strict=True), color="#2654a4", zorder=1)
    for name, (x, y) in points.items():
        axis.scatter(x, y, s=22, color="#2654a4" if name in line else "#b0552a", zorder=2)
        axis.annotate(name, (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8)
    axis.set(xlabel="noise left in samples of the model of damaged data (data: 1)")
    axis.set(ylabel="Frechet distance of the model of clean data", yscale="log")
    save(figure, path)
