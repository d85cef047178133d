"""How well sparse codes explain features: TopK autoencoders of several k."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from advdiff_core import Build, Evaluation, Metric, NumericsError
from advdiff_core.hooks.curves import write_curves
from advdiff_core.settings import setting, settings
from advdiff_dra.images import ImageSource
from advdiff_dra.metrics_probe import stem
from advdiff_dra.reading import Reader, ReadSettings
from advdiff_dra.sparse import Normaliser, Plan, fit_sae, fvu, relative_error

__all__ = ["SparseAutoencoder"]


class SparseAutoencoder(Metric):
    """Error of TopK sparse autoencoders of features over active latents; lower is better.

    Trained on features of training images, scored on those of `data`; without `data` on a part of
    the training images that it did not see, and names begin with `train_`. Both normalised errors
    that go by that name: `sae_fvu_k<k>`, `sum |a^ - a|^2 / sum |a - mean|^2` (Gao et al. 2024, the
    text), and `sae_relative_k<k>`, the mean of `|a^ - a|^2 / |a|^2` (their code);
    `sae_dead_k<k>` is the share of latents that no scored feature uses.
    `topk-sae-<role>.csv` and `.png` hold the curves over k.

    FOUND: architecture, initialisation, losses, Adam 1e-4, average 0.999, AuxK 1/32. UNKNOWN in
    section 5.4 of arXiv 2602.19931: k, width, steps, batch, normalisation, split; these are ours.
    DERIVED: b_pre begins at the mean of the features.
    """

    needs_samples: ClassVar[bool] = False
    decoded: ClassVar[bool] = False
    source: ClassVar[str] = "Gao et al. (2024); arXiv 2602.19931, section 5.4"

    @settings
    class Settings(ReadSettings):
        """Keys of `use = "topk-sae"`."""

        k: tuple[int, ...] = setting(
            (4, 8, 16, 32), ge=1, help="active latents, one curve point each"
        )
        expansion: float = setting(4.0, gt=0, help="latents per feature")
        normalise: Literal["none", "scale", "layer"] = setting(
            "scale",
            help='"scale": one factor to mean squared length D; "layer": each vector to mean 0 and '
            'deviation 1; "none"',
        )
        steps: int = setting(2000, ge=1, help="updates")
        update: int = setting(256, ge=1, unit="features", help="features per update")
        lr: float = setting(1e-4, gt=0, help="Adam's learning rate")
        aux: float = setting(1 / 32, ge=0, help="weight of the loss of dead latents")
        aux_k: int = setting(512, ge=1, help="dead latents that explain the residual")
        dead_after: int = setting(
            10_000_000, ge=1, unit="features", help="after so many a silent latent is dead"
        )
        average: float = setting(0.999, ge=0, lt=1, help="decay of the averaged weights")
        train_images: int = setting(
            0, ge=0, unit="images", help="the first so many training images; 0: all"
        )
        holdout: float = setting(
            0.2, gt=0, lt=1, help="share of training images scored, not fitted, without `data`"
        )

        def __attrs_post_init__(self) -> None:
            """Refuse a curve without points.

            Raises:
                ValueError: If there is no k, or one comes twice.
            """
            if not self.k or len(set(self.k)) < len(self.k):
                message = f"k: found {list(self.k)}, wanted one or more, each once"
                raise ValueError(message)

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.images = ImageSource(settings, build, labelled=False)
        self.reader = Reader(settings, build)

    def protocol(self) -> Mapping[str, object]:
        """Data, features, normalisation, training."""
        s = self.settings
        told = {**self.images.protocol(), **self.reader.protocol()}
        if not self.images.given:
            told["scored"] = f"{s.holdout:g} of the training images, chosen by content, not fitted"
        return {
            **told, "k": sorted(s.k), "latents per feature": s.expansion,
            "normalisation": s.normalise, "fitted": s.train_images or "all training images",
            "training": f"{s.steps} updates of {s.update} features, Adam {s.lr:g}, "
            f"average {s.average:g}, AuxK {s.aux:g} on {s.aux_k}, dead after {s.dead_after}",
            "fvu": "sum |a^-a|^2 / sum |a-mean|^2", "relative": "mean |a^-a|^2 / |a|^2",
        }  # fmt: skip

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Errors by name."""
        train = self.images.training(evaluation, self.settings.train_images)
        scored = self.images.scored(evaluation)
        if not self.images.given:
            train, scored = train.cut(self.settings.holdout)
        fitted, wanted = (self.reader.features(evaluation, one) for one in (train, scored))
        normaliser = Normaliser.of(self.settings.normalise, fitted)
        numbers: dict[str, float] = {}
        for k in sorted(self.settings.k):
            numbers |= self._errors(normaliser(fitted), normaliser(wanted), k)
        self._write(evaluation, numbers)
        evaluation.note(f"fitted on {len(train):,} images, scored on {len(scored):,}")
        return {self.images.name(name): value for name, value in numbers.items()}

    def _errors(self, fitted: Tensor, wanted: Tensor, k: int) -> dict[str, float]:
        s = self.settings
        plan = Plan(
            latents=max(1, round(s.expansion * fitted.shape[1])), k=k, steps=s.steps,
            batch=s.update, lr=s.lr, aux=s.aux, aux_k=s.aux_k, dead_after=s.dead_after,
            ema=s.average,
        )  # fmt: skip
        sae = fit_sae(fitted, plan, key=(s.seed, "dra sae", k))
        with torch.no_grad():
            codes = sae.encode(wanted)
            found, exact = sae.decode(codes).double(), wanted.double()
        numbers = {
            f"sae_fvu_k{k}": float(fvu(found, exact)),
            f"sae_relative_k{k}": float(relative_error(found, exact)),
            f"sae_dead_k{k}": float((codes <= 0).all(0).double().mean()),
        }
        if not all(torch.tensor(list(numbers.values())).isfinite()):
            message = f"the autoencoder of k = {k} has no finite error"
            fix = "lower lr; features that are all the same cannot be explained"
            raise NumericsError(message, code="E22", where=self.build.path, fix=fix)
        return numbers

    def _write(self, evaluation: Evaluation, numbers: Mapping[str, float]) -> None:
        curves = {
            kind: [(float(k), numbers[f"sae_{kind}_k{k}"]) for k in sorted(self.settings.k)]
            for kind in ("fvu", "relative", "dead")
        }
        path = evaluation.folder / stem("topk-sae", self.settings.role, self.settings.tap)
        write_curves(path, "k", curves, title="TopK sparse autoencoders")
