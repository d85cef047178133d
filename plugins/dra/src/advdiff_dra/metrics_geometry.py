"""Uniformity and alignment of representations, and how alike two of them are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from attrs import evolve, frozen
from torch import Tensor

from advdiff_core import Build, Evaluation, Metric, NumericsError
from advdiff_core.settings import setting, settings
from advdiff_dra.geometry import alignment, uniformity
from advdiff_dra.images import Images, ImageSource, refusal
from advdiff_dra.judged import Attacker, AttackSettings, Judged
from advdiff_dra.kernel_alignment import cknna, clipped
from advdiff_dra.reading import Reader, ReadSettings

__all__ = ["CKNNA", "FeatureVictim", "UniformityAlignment"]


@frozen(kw_only=True, eq=False)
class FeatureVictim:
    """Features that are to move far on the unit sphere; see `Victim`.

    Attributes:
        function: From inputs, and the samples they belong to, to features [B, D].
        clean: Unit features of the clean inputs [B, D].
        chosen: The samples of the batch that are left [B].
    """

    function: Any
    clean: Tensor
    chosen: Tensor
    labels: Tensor | None = None

    def outputs(self, x: Tensor) -> Tensor:
        """Unit features [B, D] at `x` [B, ...]."""
        return F.normalize(self.function(x, self.chosen), dim=1)

    def loss(self, outputs: Tensor) -> Tensor:
        """Squared distance [B] of `outputs` [B, D] from the clean features."""
        return (outputs - self.clean).square().sum(1)

    def broken(self, outputs: Tensor) -> None:
        """There is no verdict on `outputs` [B, D]."""
        del outputs

    def rows(self, rows: Tensor) -> FeatureVictim:
        """The same for the samples `rows` [N]."""
        return evolve(self, clean=self.clean[rows], chosen=self.chosen[rows])


class UniformityAlignment(Metric):
    """How evenly features fill the sphere, and how near attacked images stay; lower is better.

    `uniformity`: log of the mean over all pairs of `exp(-t |z_i - z_j|^2)`, in [-4 t, 0];
    `alignment`, with an attack: mean of `|z(x) - z(x_adv)|^alpha` (Wang and Isola 2020, section
    4.1). Positive pairs are an image and its adversarial example (FOUND, section 4.1 of arXiv
    2602.19931). UNKNOWN there: the attack and what it climbs. By default it moves the features
    themselves, which needs no labels and treats denoisers and classifiers alike; an attack that
    begins at the image itself finds no slope there. O(N^2 D) operations, memory for a strip of
    pairs. On the training data, if `data` is left out, names begin with `train_`.
    """

    needs_samples: ClassVar[bool] = False
    decoded: ClassVar[bool] = False
    source: ClassVar[str] = "Wang and Isola (2020, section 4.1); arXiv 2602.19931, Figure 4"

    @settings
    class Settings(AttackSettings):
        """Keys of `use = "uniformity-alignment"`."""

        eps: float = setting(8 / 255, ge=0, help="radius, on the [0, 1] scale of the data")
        climb: Literal["features", "logits"] = setting(
            "features", help='what the attack climbs: distance of features, or loss of the "head"'
        )
        temperature: float = setting(2.0, gt=0, help="t of the uniformity")
        alpha: float = setting(2.0, gt=0, help="exponent of the alignment")

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.attacker = Attacker(settings, build)
        self.judged: Judged | None = None
        if settings.climb == "logits":
            self.judged = Judged(settings, build)
            self.images, self.reader = self.judged.source, self.judged.reader
        else:
            self.images = ImageSource(settings, build, labelled=False)
            self.reader = Reader(settings, build)

    def protocol(self) -> Mapping[str, object]:
        """Data, features, attack, constants."""
        s = self.settings
        told = {**self.images.protocol(), **self.reader.protocol()}
        told = self.judged.protocol() if self.judged else told
        return {
            **told, **self.attacker.protocol(s.eps), "climbs": s.climb,
            "t": s.temperature, "alpha": s.alpha, "pairs": "all",
        }  # fmt: skip

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Numbers by name; lower is better."""
        scored = self.images.scored(evaluation)
        victims = self._victims(evaluation)
        if self.judged is not None:
            bound = self.judged.bind(evaluation)
            scored, victims = bound.scored, bound.victim
        clean = self.reader.features(evaluation, scored)
        numbers = {"uniformity": uniformity(clean, t=self.settings.temperature)}
        if self.attacker.attack is not None:
            moved = self._moved(evaluation, scored, victims)
            numbers["alignment"] = alignment(clean, moved, alpha=self.settings.alpha)
        return {self.images.name(name): value for name, value in numbers.items()}

    def _moved(self, evaluation: Evaluation, scored: Images, victims: Any) -> Tensor:
        """Features of the attacked images [N, D]."""
        parts = []
        for images in scored.batches(self.settings.batch):
            moved = self.attacker.run(victims(images), images, self.settings.eps, evaluation)
            eps = self.reader.noise(images, evaluation)
            with torch.no_grad():
                parts.append(self.reader.read(evaluation, moved, images.y, eps).cpu())
        return torch.cat(parts)

    def _victims(self, evaluation: Evaluation) -> Any:
        def make(images: Images) -> FeatureVictim:
            eps, y = self.reader.noise(images, evaluation), images.y

            def function(x: Tensor, rows: Tensor) -> Tensor:
                labels = None if y is None else y[rows.cpu()]
                noise = eps[rows] if len(eps) else eps
                return self.reader.read(evaluation, x, labels, noise)

            rows = torch.arange(len(images), device=evaluation.device)
            with torch.no_grad():
                clean = F.normalize(function(images.x, rows), dim=1)
            return FeatureVictim(function=function, clean=clean, chosen=rows)

        return make


@settings
class OtherSettings(ReadSettings):
    """The second representation; `data`, `images`, `batch` and `seed` are the first one's."""


class CKNNA(Metric):
    """How alike the neighbourhoods of two representations are; 1 for the same, 0 for unrelated.

    Centred kernel nearest-neighbour alignment (Huh et al. 2024, appendix A) of the features of
    `role` and of `other` over the same images: `cknna`, up to 1. Figure 1 of arXiv 2602.19931
    compares diffusion features with robust classifiers; UNKNOWN there: k, the images, the layers
    and whether outliers are clipped. O(N^2 D) operations, memory for a strip of pairs: the kernels
    are kept as lists of neighbours. On the training data, if `data` is left out: `train_cknna`.
    """

    needs_samples: ClassVar[bool] = False
    decoded: ClassVar[bool] = False
    source: ClassVar[str] = "Huh et al. (2024, appendix A); arXiv 2602.19931, appendix A"

    @settings
    class Settings(ReadSettings):
        """Keys of `use = "cknna"`."""

        other: OtherSettings = setting(OtherSettings(), help="the second representation")
        k: int = setting(10, ge=1, help="neighbours")
        clip: float = setting(
            0.95, gt=0, le=1, help="quantile of magnitudes that features are cut to; 1: none"
        )

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.images = ImageSource(settings, build, labelled=False)
        shared = evolve(
            cast("Any", settings.other), data=settings.data, images=settings.images,
            batch=settings.batch, seed=settings.seed,
        )  # fmt: skip
        self.readers = (Reader(settings, build), Reader(shared, build, key="other.role"))

    def protocol(self) -> Mapping[str, object]:
        """Data, both features, k, clipping."""
        first, second = (reader.protocol() for reader in self.readers)
        s = self.settings
        return {
            **self.images.protocol(), **first, "other": second, "k": s.k,
            "clipped": f"to the {s.clip:g} quantile of |feature|" if s.clip < 1 else "no",
            "orders": "mean of HSIC(K, L) and HSIC(L, K)",
        }  # fmt: skip

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """The score by name."""
        images = self.images.scored(evaluation)
        if len(images) < max(4, self.settings.k + 1):
            message = f"{len(images)} images do not have {self.settings.k} neighbours each"
            raise refusal(self.build, "k", message, "take more images or fewer neighbours")
        first, second = (
            clipped(reader.features(evaluation, images), self.settings.clip)
            for reader in self.readers
        )
        found = cknna(first, second, k=self.settings.k)
        if math.isnan(found):
            message = "a representation has no structure: its kernel's HSIC is not positive"
            raise NumericsError(
                message, code="E22", where=self.build.path, fix="take more images, or look at it"
            )
        return {self.images.name("cknna"): found}
