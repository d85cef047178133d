"""How many principal directions of its features a classifier uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from advdiff_core import Build, Evaluation, Metric
from advdiff_core.hooks.curves import write_curves
from advdiff_core.settings import setting, settings
from advdiff_dra.dimension import (
    AffineHead,
    Basis,
    best_dimension,
    least_dimension,
    prefix_accuracy,
)
from advdiff_dra.judged import Attacker, AttackSettings, Classifier, Judged
from advdiff_dra.metrics_probe import stem
from advdiff_dra.reading import affine_head

__all__ = ["ClassificationDimension"]

#: Images that the head is read off.
READ_OFF = 32


class ClassificationDimension(Metric):
    """Principal directions of its features that a classifier needs, clean and under attack.

    `cls_95` and `cls_99`: the fewest first directions whose projection keeps 95 and 99 % of the
    accuracy of all (Feng et al. 2022); neither is better or worse. With an attack `robust_dim`: the
    number with the most robust accuracy, when features of adversarial images are projected on the
    clean directions (section 5.5 of arXiv 2602.19931); the fewest of several. `dimension_accuracy`
    and, with an attack, `dimension_robust_accuracy` are those of all directions,
    `dimension_best_robust_accuracy` that at `robust_dim`. `classification-dimension-<role>.csv`
    and `.png` hold the curves over the number of directions.

    FOUND: penultimate features, clean basis. DERIVED: shares of the accuracy of all directions,
    centring, attack on the classifier without projection. UNKNOWN: attack, split, tie rule. All
    numbers of directions together take O(N D C), exactly. Without `data` on the training images;
    names begin with `train_`.
    """

    needs_samples: ClassVar[bool] = False
    decoded: ClassVar[bool] = False
    source: ClassVar[str] = "Feng et al. (2022); arXiv 2602.19931, section 5.5"

    @settings
    class Settings(AttackSettings):
        """Keys of `use = "classification-dimension"`."""

        eps: float = setting(8 / 255, ge=0, help="radius, on the [0, 1] scale of the data")
        basis: Literal["scored", "training"] = setting(
            "scored", help="images whose features give the directions; UNKNOWN in the paper"
        )

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.judged = Judged(settings, build)
        self.attacker = Attacker(settings, build)

    def protocol(self) -> Mapping[str, object]:
        """Data, features, head, basis, attack."""
        return {
            **self.judged.protocol(), **self.attacker.protocol(self.settings.eps),
            "basis": f"clean features of the {self.settings.basis} images, centred",
            "threshold": "share of the accuracy of all directions",
            "ties": "the fewest directions",
        }  # fmt: skip

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Numbers of directions and shares by name."""
        found = self.judged.bind(evaluation)
        features = self.judged.reader.features(evaluation, found.scored)
        head, basis = self._head(found), self._basis(found, features)
        clean = prefix_accuracy(features, found.labels, head=head, basis=basis)
        numbers = {
            "cls_95": float(least_dimension(clean, 0.95)),
            "cls_99": float(least_dimension(clean, 0.99)),
            "dimension_accuracy": float(clean[-1]),
        }
        curves = {"clean": clean}
        if self.attacker.attack is not None:
            moved = self._moved(found)
            robust = prefix_accuracy(moved, found.labels, head=head, basis=basis)
            numbers["robust_dim"] = float(best_dimension(robust))
            numbers["dimension_robust_accuracy"] = float(robust[-1])
            numbers["dimension_best_robust_accuracy"] = float(robust.max())
            curves["under attack"] = robust
        path = evaluation.folder / stem("classification-dimension", found.reader.settings.role, "")
        lines = {
            name: [(float(k), float(v)) for k, v in enumerate(line, start=1)]
            for name, line in curves.items()
        }
        write_curves(path, "directions", lines, title="accuracy on the first directions")
        return {self.judged.name(name): value for name, value in numbers.items()}

    def _basis(self, found: Classifier, features: Tensor) -> Basis:
        if self.settings.basis == "scored":
            return Basis.of(features)
        train = found.fitted or self.judged.source.training(found.evaluation)
        return Basis.of(self.judged.reader.features(found.evaluation, train))

    def _head(self, found: Classifier) -> AffineHead:
        if found.probe is not None:
            return found.probe.folded
        reader, few = found.reader, found.scored.x[:READ_OFF].to(found.evaluation.device)
        module = found.evaluation.module(reader.settings.role)

        def forward(x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
            out = module(x, None, None, taps=(reader.tap,))
            return out.output, out.features

        return affine_head(forward, few, tap=reader.tap, where=self.build.path)

    def _moved(self, found: Classifier) -> Tensor:
        """Features [N, D] of adversarial images against the classifier as it is."""
        parts = []
        for images in found.scored.batches(self.settings.batch):
            moved = self.attacker.run(
                found.victim(images), images, self.settings.eps, found.evaluation
            )
            eps = found.reader.noise(images, found.evaluation)
            with torch.no_grad():
                parts.append(found.reader.read(found.evaluation, moved, eps=eps).cpu())
        return torch.cat(parts)
