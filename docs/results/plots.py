"""Pictures of pages of results: sample grids and curves; needs matplotlib."""

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

__all__ = ["curves", "evaluation_of", "grid", "samples_of", "save"]


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


def grid(rows: Mapping[str, Tensor], path: Path, columns: int = 16) -> None:
    """Rows of images [N, C, H, W] in [-1, 1], each with its name."""
    figure, axes = plt.subplots(len(rows), 1, figsize=(11, 0.85 * len(rows)))
    for axis, (name, x) in zip(axes, rows.items(), strict=True):
        strip = torch.cat(list(x[:columns]), dim=2).clamp(-1, 1).add(1).div(2)
        axis.imshow(strip.permute(1, 2, 0).squeeze(-1), cmap="gray", vmin=0, vmax=1)
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        axis.set(xticks=[], yticks=[])
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
