"""How far a trained denoiser is from equivariance, with the worst witness that a search finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from advdiff_core import (
    Build,
    Denoise,
    Evaluation,
    Fault,
    Metric,
    Prediction,
    RecipeError,
    SampleDraws,
    expand,
)
from advdiff_core.draws import content_ids
from advdiff_core.hooks.curves import slug, write_curves
from advdiff_core.hooks.files import write_file
from advdiff_core.hooks.pictures import rows_png
from advdiff_core.settings import setting, settings
from advdiff_robustadv.rays import SOURCE
from advdiff_robustadv.reach import ReachSettings, ascend, reach, uniform_start

__all__ = ["EquivarianceError", "relative_residual"]

QUANTILES = (0.5, 0.95, 1.0)


class _Found(NamedTuple):
    """The samples of one batch at one noise level.

    Attributes:
        x_t: Noised samples [B, ...].
        delta: The worst perturbation found of each [B, ...], in units of `x_t`.
        random: Error at the random start [B].
        attacked: Error at `delta` [B].
        radius: Radius [B], in units of `x_t`.
    """

    x_t: Tensor
    delta: Tensor
    random: Tensor
    attacked: Tensor
    radius: Tensor


class _Witness(NamedTuple):
    error: float
    level: float
    sample: int
    found: _Found


class EquivarianceError(Metric):
    """Relative equivariance error of a denoiser near noised data: at random, and attacked.

    `|eps_hat(x_t + delta) - eps_hat(x_t) - delta / sigma| / |delta / sigma|`: 0 if x0_hat stays
    where the input moves (equivariance), 1 if the prediction does (invariance). `..._random`: delta
    drawn in the ball; `..._attacked`: the worst of a projected gradient ascent from there. Each as
    mean over samples and levels (`equivariance_error_attacked`), as `_q50`, `_q95`, `_q100` and, by
    `_t<level>`, as mean per noise level; lower is better.

    `equivariance-witness.safetensors` holds the worst sample of all (x0, x_t, delta, both
    predictions, time), `.png` shows it, `equivariance-error.csv` and `.png` have the curves over
    levels; names end in `-<role>` where one is given. Draws belong to the sample's own content:
    neither order nor batch changes a number.
    """

    needs_samples: ClassVar[bool] = False
    decoded: ClassVar[bool] = False
    source: ClassVar[str] = SOURCE

    @settings
    class Settings(ReachSettings):
        """Keys of `use = "equivariance-error"`."""

        unit: Literal["image", "noise"] = setting(
            "image", help="unit of the radius: add delta to x_t as it is, or to eps"
        )
        role: str | None = setting(None, ref="role", help="denoiser; the sampled one if left out")
        levels: tuple[float, ...] = setting(
            (0.1, 0.3, 0.5, 0.7, 0.9), ge=0, le=1,
            help="noise levels, as shares of the way from t_min to t_max",
        )  # fmt: skip
        num: int = setting(64, ge=1, help="clean samples that are noised", unit="samples")
        steps: int = setting(10, ge=1, le=10_000, help="ascent steps of the attack")
        step_scale: float = setting(0.25, gt=0, help="length of a step as a share of the radius")
        batch: int = setting(64, ge=1, help="samples per forward", unit="samples")
        seed: int = setting(0, ge=0, help="of noise and starts")

        def __attrs_post_init__(self) -> None:
            """Refuse a ball without points, and levels that are none.

            Raises:
                ValueError: If the radius is 0, or there are no levels.
            """
            if not self.radius > 0:
                message = "radius: 0 moves nothing, so nothing can be measured"
                raise ValueError(message)
            if not self.levels or len(set(self.levels)) < len(self.levels):
                message = f"levels: found {list(self.levels)}, wanted one or more, each once"
                raise ValueError(message)

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        role = settings.role
        self._end = f"-{slug(role)}" if role else ""
        if build.schedule is None:
            self._refuse("use", "a denoiser needs a noise schedule, the recipe has none")
        if role and (role not in build.models or build.models[role].parametrization == "none"):
            self._refuse("role", f"{role!r} is no denoiser of this recipe")

    def _refuse(self, key: str, message: str) -> None:
        fault = Fault(code="R10", key=f"{self.build.path}.{key}", message=message)
        raise RecipeError([fault])

    def protocol(self) -> Mapping[str, object]:
        """Ball, search, levels, samples."""
        made = self.settings
        ray = {"omega": made.omega, "gamma": made.gamma} if made.law == "ray" else {}
        return {
            "error": "|eps(x+d) - eps(x) - d/sigma| / |d/sigma|, Euclidean, per sample",
            "radius": made.radius, "law": made.law, **ray, "norm": made.norm, "unit": made.unit,
            "attack": f"{made.steps} ascent steps of {made.step_scale} radius, best kept",
            "levels": list(made.levels), "samples": made.num, "seed": made.seed,
        }  # fmt: skip

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Errors by name; lower is better."""
        levels = {level: self._at(evaluation, level) for level in self.settings.levels}
        numbers, curves = {}, {}
        for kind in ("random", "attacked"):
            name = f"equivariance_error_{kind}"
            errors = [getattr(found, kind) for found in levels.values()]
            numbers[name] = float(torch.cat(errors).mean())
            for q in QUANTILES:
                numbers[f"{name}_q{100 * q:g}"] = float(torch.quantile(torch.cat(errors), q))
            means = {level: float(e.mean()) for level, e in zip(levels, errors, strict=True)}
            numbers |= {f"{name}_t{level:g}": value for level, value in means.items()}
            curves[kind] = list(means.items())
        path = evaluation.folder / f"equivariance-error{self._end}"
        write_curves(path, "level", curves, title="equivariance error")
        self._keep_worst(evaluation, levels)
        return numbers

    def _at(self, evaluation: Evaluation, level: float) -> _Found:
        """Errors of all samples at a noise level."""
        made, parts = self.settings, []
        x0 = evaluation.clean[: made.num]
        for start in range(0, len(x0), made.batch):
            rows = slice(start, start + made.batch)
            labels = None if evaluation.labels is None else evaluation.labels[: made.num][rows]
            denoise = evaluation.denoiser(made.role, labels)
            parts.append(self._search(evaluation, denoise, x0[rows], level))
        return _Found(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _search(self, evaluation: Evaluation, denoise: Denoise, x0: Tensor, level: float) -> _Found:
        made, device = self.settings, evaluation.device
        rng = SampleDraws((made.seed, "equivariance", level), content_ids(x0))
        eps, normal = rng.normal(x0.shape).to(device), rng.normal(x0.shape).to(device)
        t, alpha, sigma = self._level(level, len(x0), device)
        x_t = expand(alpha, x0) * x0.to(device) + expand(sigma, x0) * eps
        radius = reach(made, alpha, sigma, x0[0].numel())
        with torch.no_grad():
            clean = denoise(x_t, t)

        def error(delta: Tensor) -> Tensor:
            return relative_residual(clean, denoise(x_t + delta, t), delta)

        start = uniform_start(normal, radius, made.norm)
        worst = ascend(
            error, start, radius, norm=made.norm, steps=made.steps, step_scale=made.step_scale
        )
        with torch.no_grad():
            found = x_t, worst, error(start), error(worst), radius
        return _Found(*(value.detach().cpu() for value in found))

    def _level(self, level: float, size: int, device: torch.device) -> tuple[Tensor, ...]:
        """Time, signal and noise scale [B] at a share of the way from t_min to t_max."""
        schedule = self.build.schedule
        assert schedule is not None, "checked when built"
        t = torch.tensor(schedule.t_min + level * (schedule.t_max - schedule.t_min))
        scales = (t.double(), schedule.alpha(t.double()), schedule.sigma(t.double()))
        return tuple(scale.float().expand(size).to(device) for scale in scales)

    def _keep_worst(self, evaluation: Evaluation, levels: Mapping[float, _Found]) -> None:
        """Write the sample of the largest error with its perturbation."""
        worst = max(
            (_worst(level, found) for level, found in levels.items()), key=lambda one: one.error
        )
        row, found = worst.sample, worst.found
        labels = evaluation.labels
        denoise = evaluation.denoiser(
            self.settings.role, None if labels is None else labels[row : row + 1]
        )
        t, _, sigma = self._level(worst.level, 1, evaluation.device)
        x_t, delta = found.x_t[row : row + 1], found.delta[row : row + 1]
        with torch.no_grad():
            clean, moved = (denoise(x, t) for x in (x_t, x_t + delta))
        tensors = {
            "x0": evaluation.clean[row : row + 1], "x_t": x_t, "delta": delta, "t": t,
            "eps_hat": clean.eps, "eps_hat_moved": moved.eps, "sigma": sigma,
            "x0_hat": clean.x0, "x0_hat_moved": moved.x0,
        }  # fmt: skip
        kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        told = {
            "sample": str(row), "level": f"{worst.level:g}", "error": repr(worst.error),
            "radius": repr(float(found.radius[row])), "norm": self.settings.norm,
        }  # fmt: skip
        path = evaluation.folder / f"equivariance-witness{self._end}.safetensors"
        write_file(path, save(kept, metadata=told))
        if evaluation.info.is_image:
            shown = ("x0", "x_t", "x0_hat", "x0_hat_moved")
            rows = [(name, kept[name]) for name in shown]
            scaled = kept["delta"] / kept["delta"].abs().max().clamp_min(1e-12)
            picture = rows_png([*rows, ("delta, scaled", scaled)], evaluation.info.domain)
            write_file(path.with_suffix(".png"), picture)


def relative_residual(clean: Prediction, moved: Prediction, delta: Tensor) -> Tensor:
    """Equivariance error of each sample [B], relative to the move that was to be followed.

    Args:
        clean: Prediction at `x_t`.
        moved: Prediction at `x_t + delta`.
        delta: Perturbation [B, ...] in units of `x_t`.
    """
    assert clean.sigma is not None, "a denoiser's prediction has a noise level"
    shift = (delta / clean.sigma).flatten(1)
    residual = (moved.eps - clean.eps).flatten(1) - shift
    error: Tensor = residual.norm(dim=1) / shift.norm(dim=1).clamp_min(1e-30)
    return error


def _worst(level: float, found: _Found) -> _Witness:
    row = int(found.attacked.argmax())
    return _Witness(float(found.attacked[row]), level, row, found)
