"""Features and logits of a run's networks, as the analyses read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import torch
from attrs import evolve, frozen
from torch import Tensor

from advdiff_core import Build, DataError, Evaluation, NumericsError, SampleDraws
from advdiff_core.settings import setting, settings
from advdiff_dra.dimension import AffineHead
from advdiff_dra.images import DataSettings, Images, refusal

__all__ = ["Level", "ReadSettings", "Reader", "affine_head", "pooled"]


@settings
class ReadSettings(DataSettings):
    """Which features an analysis reads. UNKNOWN in the paper: sigma; 0.06 is our default."""

    role: str = setting("student", ref="role", help="network whose features are read")
    tap: str = setting(
        "", help="place in the network; empty: the last one of a classifier. A denoiser needs it"
    )
    sigma: float = setting(
        0.06, gt=0, help="noise a denoiser gets, relative to the signal (sigma / alpha)"
    )
    t: float | None = setting(
        None, help="the noise as a time of the schedule instead, for a denoiser"
    )
    condition: Literal["label", "none"] = setting(
        "none", help="whether a denoiser is told the class of an image"
    )


@frozen(kw_only=True)
class Level:
    """Noise that a denoiser gets.

    Attributes:
        t: Time in the schedule's own range.
        alpha: Scale of the signal there.
        sigma: Scale of the noise there.
    """

    t: float
    alpha: float
    sigma: float


def pooled(feature: Tensor) -> Tensor:
    """A tapped tensor as vectors [B, D]: mean over places of [B, C, H, W], tokens of [B, N, D]."""
    if feature.dim() == 4:
        return feature.mean((2, 3))
    return feature.mean(1) if feature.dim() == 3 else feature.flatten(1)


class Reader:
    """Reads pooled features at a tap of a classifier, or of a denoiser at one noise level.

    Noise belongs to the content of an image and to the seed: it is the same in every forward, so
    that what attacks see is a deterministic function (as FOUND for the paper's linear probe).

    Args:
        settings: Of the metric.
        build: What it was told.
        key: Key of the role, for messages.

    Raises:
        RecipeError: R10 if role, tap or noise level do not fit the recipe.
    """

    def __init__(self, settings: ReadSettings, build: Build, *, key: str = "role") -> None:
        self.settings, self.build = settings, build
        model = build.models.get(settings.role)
        if model is None or model.kind != "backbone":
            message = f"{settings.role!r} is no network of this recipe with features"
            raise refusal(build, key, message, "name a role of kind backbone")
        self.denoiser = model.parametrization != "none"
        if self.denoiser and build.schedule is None:
            message = f"{settings.role!r} is a denoiser, and the recipe has no noise schedule"
            raise refusal(build, key, message, "give it a schedule")
        self.tap = self._tap(tuple(model.taps), key.replace("role", "tap"))
        self.level = self._level() if self.denoiser else None

    def _tap(self, taps: tuple[str, ...], key: str) -> str:
        wanted, listed = self.settings.tap, ", ".join(taps)
        if not wanted and taps and not self.denoiser:
            return taps[-1]
        if not wanted:
            message = f"a tap of {self.settings.role!r} has to be named"
            raise refusal(self.build, key, message, f"choose one of {listed}")
        if wanted not in taps:
            message = f"{self.settings.role!r} has no tap {wanted!r}; there are {listed}"
            raise refusal(self.build, key, message, "choose one of these")
        return wanted

    def _level(self) -> Level:
        schedule, s = self.build.schedule, self.settings
        assert schedule is not None, "checked before"
        sigma = torch.tensor(s.sigma, dtype=torch.float64)
        t = schedule.time_of_log_snr(-2 * sigma.log())
        if s.t is not None:
            if not schedule.t_min <= s.t <= schedule.t_max:
                message = f"found {s.t:g}, the schedule's time goes from {schedule.t_min:g} to "
                message += f"{schedule.t_max:g}"
                raise refusal(self.build, "t", message, "choose a time between them")
            t = torch.tensor(s.t, dtype=torch.float64)
        return Level(t=float(t), alpha=float(schedule.alpha(t)), sigma=float(schedule.sigma(t)))

    def at(self, *, tap: str, sigma: float) -> Reader:
        """The same reader at another place and noise level."""
        # mypy knows no attrs class behind `settings`.
        changed = evolve(cast("Any", self.settings), tap=tap, sigma=sigma, t=None)
        return Reader(changed, self.build)

    def protocol(self) -> dict[str, object]:
        """Network, tap, pooling, noise."""
        told: dict[str, object] = {
            "role": self.settings.role, "tap": self.tap, "pooling": "mean over places or tokens",
        }  # fmt: skip
        if self.level is None:
            return told
        return {
            **told,
            "t": self.level.t, "alpha": self.level.alpha, "sigma": self.level.sigma,
            "noise": "one draw per image, by content and seed",
            "condition": self.settings.condition,
        }  # fmt: skip

    def noise(self, images: Images, evaluation: Evaluation, *words: object) -> Tensor:
        """The noise of each image [N, ...]; nothing [0] for a classifier, which gets none."""
        if self.level is None:
            return torch.empty(0)
        draws = SampleDraws((self.settings.seed, "dra noise", *words), images.ids)
        return draws.normal(images.x.shape).to(evaluation.device)

    def read(
        self, evaluation: Evaluation, x: Tensor, y: Tensor | None = None, eps: Tensor | None = None
    ) -> Tensor:
        """Features [B, D] of images `x` [B, ...], with a graph to them if they want one.

        Args:
            evaluation: Of the run.
            x: Images in the run's domain.
            y: Their classes [B], for a denoiser that is told.
            eps: Noise [B, ...] for a denoiser.
        """
        x = x.to(evaluation.device)
        if self.level is None:
            out = evaluation.module(self.settings.role)(
                x, None, None, taps=(self.tap,), stop_at=self.tap
            )
            return pooled(out.features[self.tap]).float()
        assert eps is not None, "a denoiser reads noised images"
        labels = y if self.settings.condition == "label" else None
        denoise = evaluation.denoiser(
            self.settings.role, labels, taps=(self.tap,), stop_at=self.tap
        )
        t = torch.full((len(x),), self.level.t, device=x.device)
        x_t = self.level.alpha * x + self.level.sigma * eps
        return pooled(denoise(x_t, t).features[self.tap]).float()

    def features(self, evaluation: Evaluation, images: Images) -> Tensor:
        """Features [N, D] of images, float32 on the CPU, read once per evaluation.

        Raises:
            NumericsError: E22 if one is not finite.
        """
        told = (str(self.protocol()), self.settings.seed)
        key = ("dra", "features", *told, hash(images.ids), len(images))
        return evaluation.remember(key, lambda: self._features(evaluation, images))

    @torch.no_grad()
    def _features(self, evaluation: Evaluation, images: Images) -> Tensor:
        parts = [
            self.read(evaluation, part.x, part.y, self.noise(part, evaluation)).cpu()
            for part in images.batches(self.settings.batch)
        ]
        found = torch.cat(parts)
        check_finite(found, self.build.path)
        return found

    def logits(self, evaluation: Evaluation, x: Tensor) -> Tensor:
        """A classifier's own logits [B, K] at images `x` [B, ...].

        Raises:
            DataError: R10 if it returns none.
        """
        out = evaluation.module(self.settings.role)(x.to(evaluation.device), None, None).output
        if out is None or out.dim() != 2:
            found = None if out is None else list(out.shape)
            message = f"the network returned {found}, wanted one logit per class [B, K]"
            raise DataError(message, code="R10", where=self.build.path, fix="name a classifier")
        return out.float()


def check_finite(found: Tensor, where: str) -> None:
    """Refuse features [N, D] that are not finite.

    Raises:
        NumericsError: E22.
    """
    bad = ~found.isfinite().all(1)
    if bool(bad.any()):
        message = f"features of {int(bad.sum())} of {len(bad)} images are not finite"
        raise NumericsError(message, code="E22", where=where, fix="look at the training")


def affine_head(
    forward: Callable[[Tensor], tuple[Tensor, Mapping[str, Tensor]]], x: Tensor, *, tap: str,
    where: str,
) -> AffineHead:  # fmt: skip
    """The affine map from pooled features at a tap to logits, read off by differentiation.

    Exact for every network whose last layer is linear, whatever the layer is called. That it is
    affine is checked: the slopes of the first image have to explain the logits of all.

    Args:
        forward: From images to logits [B, K] and tapped tensors.
        x: A few images [B, ...].
        tap: The tap.
        where: For messages.

    Raises:
        DataError: R10 if the logits do not depend on the tap, or not by an affine map.
    """
    logits, features = forward(x.detach().requires_grad_())
    feature, rows = features[tap], []
    for column in logits.unbind(1):
        slope = torch.autograd.grad(column.sum(), feature, retain_graph=True, allow_unused=True)
        found = cast("Tensor | None", slope[0])
        if found is None:
            message = f"the logits do not come from the tap {tap!r}"
            raise DataError(message, code="R10", where=where, fix="name the last tap")
        # Of a mean over P places each place has 1/P of the weight.
        rows.append(pooled(found) * (found[0].numel() // pooled(found)[0].numel()))
    slopes = torch.stack(rows, dim=1).double().cpu()
    vectors, logits = (one.detach().double().cpu() for one in (pooled(feature), logits))
    head = AffineHead(slopes[0], logits[0] - slopes[0] @ vectors[0])
    error = (head.logits(vectors) - logits).abs().max()
    if float(error) > 1e-4 * max(1.0, float(logits.abs().max())):
        message = f"the logits are no affine map of the features at {tap!r}"
        raise DataError(message, code="R10", where=where, fix="name the tap before the last layer")
    return head
