"""Pictures of the page: sample grids, points with score fields, curves; needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from advdiff_core.engine.api import Trained, open_trained
from advdiff_core.engine.evaluation import RunEvaluation

mpl.use("agg")
import matplotlib.pyplot as plt

__all__ = ["curves", "fields", "grid", "tradeoff"]

#: Unit normal of the plane, and a direction inside it.
NORMAL = torch.tensor([1.0, 1.0, -2.0]) / 6**0.5
INSIDE = torch.tensor([1.0, -1.0, 0.0]) / 2**0.5
REACH, CELLS, LEVEL = 1.6, 17, 0.3


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG with few colours: a picture in git stays below 200 kB."""
    figure.savefig(path, dpi=90, bbox_inches="tight")
    plt.close(figure)
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(128).save(path, optimize=True)


def evaluation_of(run: Path) -> tuple[Trained, RunEvaluation]:
    """A trained run, and what metrics see of it."""
    trained = open_trained(run)
    return trained, RunEvaluation(trained.experiment, run)


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


def grid(rows: Mapping[str, Tensor], path: Path, columns: int = 16) -> None:
    """Rows of images [N, C, H, W] in [-1, 1], each with its name."""
    figure, axes = plt.subplots(len(rows), 1, figsize=(11, 0.85 * len(rows)))
    for axis, (name, x) in zip(axes, rows.items(), strict=True):
        strip = torch.cat(list(x[:columns]), dim=2).clamp(-1, 1).add(1).div(2)
        axis.imshow(strip.permute(1, 2, 0).squeeze(-1), cmap="gray", vmin=0, vmax=1)
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        axis.set(xticks=[], yticks=[])
    save(figure, path)


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


def curves(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], path: Path) -> None:
    """Panels side by side, each with named lines."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 3.4), squeeze=False)
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for name, line in lines.items():
            if line:
                axis.plot(*zip(*line, strict=True), marker="o", markersize=3, label=name)
        axis.set(title=title, yscale="log")
        axis.legend(fontsize=7)
    save(figure, path)


def samples_of(run: Path, count: int = 16) -> Tensor:
    """Samples [N, ...] of a run, from the first seeds."""
    stored = run / "samples" / "samples.safetensors"
    if stored.exists():
        return load_file(stored)["samples"][:count].float()
    return open_trained(run).sample(range(count)).x0.float()
