"""Frechet distance, in pixels or in the features of a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advdiff_core.errors import Fault, RecipeError, nearest
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.metric import Evaluation, Metric
from advdiff_core.math.statistics import Moments, batches, frechet_distance
from advdiff_core.settings import setting, settings

__all__ = ["Frechet"]

FEW = "the covariance has not its full rank, the distance is far too large"


class Frechet(Metric):
    """Squared Frechet distance of samples and real data, 0 at best; in pixels or features.

    The formula of FID (Heusel et al. 2017) with features of your choice; numbers are comparable
    only within one protocol. `frechet`: samples to the reference. `frechet_data`: the data as the
    model saw them to the clean ones, what samples have to beat. With a tap, names end in
    `_<role>_<tap>`.

    Features of a trained network come from a role, `[models.judge]` with `init = "runs/..."` and
    `frozen = true` if it is not the run's own.
    """

    decoded: ClassVar[bool] = False

    @settings
    class Settings:
        """Keys of `use = "frechet"`."""

        features: str = setting(
            "pixels",
            help="pixels: values as they are; tap: a tap of a role, averaged over positions",
            choices=("pixels", "tap"),
        )
        role: str | None = setting(None, help="role whose features are used", ref="role")
        tap: str = setting("", help="tap of that role")
        resize: int = setting(
            0, ge=0, le=4096, unit="pixels", applies=("features", ("tap",)),
            help="images are resized to this for the role (bicubic, antialias); 0: as they are",
        )  # fmt: skip
        against: str = setting(
            "clean", help="clean: data without corruption; data: as seen", choices=("clean", "data")
        )
        images: int = setting(
            50_000, ge=2, unit="images", help="the first so many real samples are compared with"
        )
        batch: int = setting(256, help="samples per forward of the role", ge=1)

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self._c_noise: float | None = None
        if settings.features == "tap":
            self._check_tap()
            self._check_resize()
            info = build.models[settings.role]
            self._c_noise = None if info.parametrization == "none" else build.c_noise[0]

    def _check_tap(self) -> None:
        role, tap, models = self.settings.role, self.settings.tap, self.build.models
        key, known = "role", tuple(models)
        if role in models:
            key, known = "tap", tuple(models[role].taps)
        wanted = role if key == "role" else tap
        if wanted in known:
            return
        near = nearest(wanted or "", known)
        fault = Fault(
            code="R10",
            key=f"{self.build.path}.{key}",
            message=f'features = "tap", but there is no {key} {wanted!r}; '
            f"there are {', '.join(known) or 'none'}",
            fix=f"write {key} = {(near or (known[0] if known else '...'))!r}".replace("'", '"'),
        )
        raise RecipeError([fault])

    def _check_resize(self) -> None:
        data = self.build.data
        if self.settings.resize and (data is None or not data.is_image):
            found = None if data is None else list(data.shape)
            fault = Fault(
                code="R10", key=f"{self.build.path}.resize", fix="leave resize out",
                message=f"the data have shape {found}, only images [C, H, W] can be resized",
            )  # fmt: skip
            raise RecipeError([fault])

    def protocol(self) -> Mapping[str, object]:
        """Features, reference and how the distance is computed."""
        tap = {
            "role": self.settings.role,
            "tap": self.settings.tap,
            "pooling": "mean over positions",
        }
        tap["c_noise"] = self._c_noise
        tap["resize"] = self._resize_rule()
        return {
            "distance": "squared Frechet distance of Gaussians, float64, covariance over N - 1",
            "features": self.settings.features,
            **(tap if self.settings.features == "tap" else {"resize": "none"}),
            "against": self.settings.against,
            **self._reference(),
            "bias": "too large for few samples; compare equal counts only",
        }

    def _reference(self) -> dict[str, object]:
        """How many real samples are compared with, where that is not all that there are."""
        data = self.build.data
        part = data is not None and data.count > self.settings.images
        return {"reference": self.settings.images} if part else {}

    def _resize_rule(self) -> str:
        size, data = self.settings.resize, self.build.data
        if not size:
            return "none"
        end = "" if data is None or data.domain is None else ", clipped to the domain"
        return f"bicubic, antialias, {size} x {size}{end}"

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Distances by name; lower is better."""
        end = ""
        if self.settings.features == "tap":
            end = f"_{self.settings.role}_{self.settings.tap}"
        samples = self._moments(evaluation, evaluation.samples)
        if samples.is_deficient:
            evaluation.note(f"{samples.count} samples for {len(samples.mean)} features: {FEW}")
        data = self._known(evaluation, evaluation.data)
        if self.settings.against == "data":
            return {f"frechet_to_data{end}": frechet_distance(samples, data)}
        clean = self._known(evaluation, evaluation.clean)
        return {
            f"frechet{end}": frechet_distance(samples, clean),
            f"frechet_data{end}": 0.0 if data is clean else frechet_distance(data, clean),
        }

    def _known(self, evaluation: Evaluation, x: Tensor) -> Moments:
        """Moments of real data, taken once."""
        made = self.settings
        key = ("frechet", made.features, made.role, made.tap, made.resize, made.images, id(x))
        return evaluation.remember(key, lambda: self._moments(evaluation, x[: made.images]))

    def _moments(self, evaluation: Evaluation, x: Tensor) -> Moments:
        if self.settings.features == "pixels":
            return Moments.of(x)
        moments: Moments | None = None
        for part in self._features(evaluation.module(self.settings.role), x):
            moments = moments or Moments(part.shape[1])
            moments.update(part)
        assert moments is not None, "there are samples"
        return moments

    @torch.no_grad()
    def _features(self, module: nn.Module, x: Tensor) -> Iterator[Tensor]:
        """Features [B, D] of the tap, on the CPU, batch by batch."""
        tap = self.settings.tap
        device = next((parameter.device for parameter in module.parameters()), x.device)
        for part in batches(x, self.settings.batch):
            part = self._resized(part.to(device))
            level = None
            if self._c_noise is not None:
                level = part.new_full((len(part),), self._c_noise)
            out = module(part, level, None, taps=(tap,), stop_at=tap)
            yield pooled_features(out.features[tap]).cpu()

    def _resized(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] at the size the role was trained at, inside the data's domain."""
        size, data = self.settings.resize, self.build.data
        if not size or x.shape[-2:] == (size, size):
            return x
        x = F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False)
        assert data is not None, "checked when built"
        return x if data.domain is None else x.clamp(data.domain.low, data.domain.high)


def pooled_features(feature: Tensor) -> Tensor:
    """A tap's tensor [B, C, H, W], [B, N, D] or [B, D], averaged over positions to [B, D]."""
    if feature.dim() == 4:
        return feature.mean(dim=(2, 3))
    return feature.mean(dim=1) if feature.dim() == 3 else feature
