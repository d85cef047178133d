"""A classifier that says how sure it is of the labels of generated images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor
from torch.func import functional_call

from advdiff_core.engine.assemble import Experiment
from advdiff_core.engine.generate import evaluation_mode, weights_of
from advdiff_core.errors import UsageError

__all__ = ["Judge", "find_judge"]


@frozen(kw_only=True, eq=False)
class Judge:
    """A classifier of a run, in eval mode, with averaged weights where it has any.

    Attributes:
        experiment: The run it belongs to.
        role: Its role there.
        batch: Images at once.
    """

    experiment: Experiment
    role: str
    batch: int = 256

    def confidence(self, pixels: np.ndarray, labels: Tensor) -> np.ndarray:
        """Probability of the label of each image [N], float32.

        Args:
            pixels: Images [N, H, W, C], uint8.
            labels: Their labels [N], int64.

        Raises:
            UsageError: If the classifier knows fewer classes, or the images do not fit it.
        """
        parts = []
        for first in range(0, len(pixels), self.batch):
            rows = slice(first, first + self.batch)
            logits = self._logits(self._images(pixels[rows]))
            if int(labels[rows].max()) >= logits.shape[1]:
                found = f"knows {logits.shape[1]} classes, the labels go to {int(labels.max())}"
                raise _unfit(self.role, found)
            sure = logits.double().softmax(1).cpu()
            parts.append(sure.gather(1, labels[rows, None])[:, 0].float())
        return torch.cat(parts).numpy()

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse images [C, H, W] of another shape than the classifier's.

        Raises:
            UsageError: If it was trained on other shapes.
        """
        wanted = self.experiment.source.info.shape
        if wanted != shape:
            raise _unfit(self.role, f"takes samples of shape {list(wanted)}, not {list(shape)}")

    def _images(self, pixels: np.ndarray) -> Tensor:
        """The images as the classifier's own data are: in its domain, on its device."""
        domain = self.experiment.source.info.domain
        assert domain is not None, "images have a domain"
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 * domain.span + domain.low
        return self.experiment.scene.compute.place(x.contiguous())

    @torch.no_grad()
    def _logits(self, x: Tensor) -> Tensor:
        module = self.experiment.scene.roles[self.role].module
        weights = weights_of(self.experiment, self.role, None)
        with evaluation_mode(module), self.experiment.scene.compute.forward():
            out: Any = module(x) if weights is None else functional_call(module, weights, (x,))
        found: Tensor = out.output
        return found


def find_judge(experiment: Experiment, role: str | None, *, batch: int = 256) -> Judge:
    """The classifier of a run.

    Args:
        experiment: The run.
        role: Its role; the only classifier if None.
        batch: Images at once.

    Raises:
        UsageError: If there is no such classifier, or more than one to choose from.
    """
    roles = experiment.scene.roles
    known = [name for name, one in roles.items() if one.info.kind == "backbone" and not one.wear]
    listed = ", ".join(known) or "none"
    if role is None and len(known) != 1:
        message = f"the run has {len(known)} classifiers ({listed})"
        raise UsageError(message, where="--judge", fix="name one with --judge-role")
    name = role or known[0]
    if name not in known:
        message = f"{name!r} is no classifier of the run; it has {listed}"
        raise UsageError(message, where="--judge", fix="name a run or role of a classifier")
    return Judge(experiment=experiment, role=name, batch=batch)


def _unfit(role: str, found: str) -> UsageError:
    fix = "choose a classifier of the same data"
    return UsageError(f"the judge {role!r} {found}", where="--judge", fix=fix)
