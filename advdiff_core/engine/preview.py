"""Rows of pictures that show how a run is doing."""

from __future__ import annotations

import torch
from torch import Tensor

from advdiff_core.engine.assemble import Experiment
from advdiff_core.engine.generate import generate

__all__ = ["preview"]


#: Data shown by recipes that draw no samples.
SHOWN = 16


def preview(experiment: Experiment) -> dict[str, Tensor]:
    """Clean data, data as the model sees them, samples: by caption, each [N, ...] on the CPU.

    Latents are decoded.
    """
    sample = experiment.recipe.sample
    count = sample.images if sample else SHOWN
    source = experiment.source
    indices = torch.arange(min(count, source.info.count))
    rows = {"real": source.clean(indices).x}
    if source.corruptions:
        rows["training data"] = source.batch(indices).x
    if sample:
        rows["samples"] = generate(experiment, range(count)).x0
    return {caption: source.decode(x).float().cpu().contiguous() for caption, x in rows.items()}
