"""What the instruments share: clean samples noised to a place of the path, run from there, judged.

All draws belong to a sample's own content: neither order nor batch changes a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from advdiff_core import Build, Denoise, Evaluation, ImageDraws, SampleDraws, Sampler, Spec
from advdiff_core.draws import content_ids
from advdiff_core.interfaces.quality import sampler_of
from advdiff_core.interfaces.requirements import refuse
from advdiff_core.settings import setting, settings

__all__ = ["Begun", "Judge", "PathSettings", "Paths"]


@settings
class PathSettings:
    """Which paths an instrument looks at. Base of the Settings of all of them."""

    role: str | None = setting(None, ref="role", help="denoiser; the sampled one if left out")
    judge: str = setting("", ref="role", help="discriminator")
    decoder: str = setting("", ref="role", help="frozen network from latents to what it judges")
    sampler: Spec | None = setting(None, kind="sampler", help="sampler; the run's own if none")
    steps: int = setting(0, ge=0, help="steps of the sampler; 0: as it is set", unit="steps")
    num: int = setting(64, ge=1, help="clean samples that are noised", unit="samples")
    batch: int = setting(64, ge=1, help="samples per forward", unit="samples")
    seed: int = setting(0, ge=0, help="of the noise")


class Begun(NamedTuple):
    """Samples at the beginning of their paths.

    Attributes:
        x0: Clean samples [B, ...].
        y: Labels [B], or None.
        x_t: Noised samples [B, ...].
        grid: Times [n + 1] that are left.
        draws: Random numbers of the sampler.
    """

    x0: Tensor
    y: Tensor | None
    x_t: Tensor
    grid: Tensor
    draws: ImageDraws


#: From samples [B, ...], and where they began, to one score each [B].
Judge: TypeAlias = "Callable[[Tensor, Begun], Tensor]"


class Paths:
    """Begins paths at clean samples, and judges what comes out.

    Args:
        settings: Keys of the instrument.
        build: What it was told.
        judged: Whether it cannot do without a judge.

    Raises:
        RecipeError: R10 if the recipe has no schedule or a role is of another kind.
    """

    def __init__(self, settings: PathSettings, build: Build, *, judged: bool = True) -> None:
        self.settings, self.build = settings, build
        if build.schedule is None:
            message = "paths of sampling need a noise schedule, the recipe has none"
            refuse(build, "use", message, "measure a recipe of a denoiser")
        if judged or settings.judge:
            self.want(settings.judge, "judge", "discriminator")
        if settings.role:
            self.want(settings.role, "role", "denoiser")
        if settings.decoder:
            self.want(settings.decoder, "decoder", "network without parametrization")

    def want(self, name: str, key: str, kind: str) -> None:
        """Require a role of a kind: "discriminator", "denoiser", or a plain network.

        Raises:
            RecipeError: R10 naming the role.
        """
        info = self.build.models.get(name)
        found = "" if info is None else info.kind
        if found == "backbone" and info is not None:
            plain = info.parametrization == "none"
            found = "network without parametrization" if plain else "denoiser"
        if found != kind:
            message = f"{name!r} is {f'a {found}' if found else 'no role of this recipe'}"
            refuse(self.build, key, f"{message}, wanted a {kind}", f"name a role that is a {kind}")

    def protocol(self) -> dict[str, object]:
        """Roles, sampler, samples, noise."""
        made = self.settings
        roles = {"denoiser": made.role or "the sampled one", "judge": made.judge or "none"}
        return {
            **roles, **({"decoder": made.decoder} if made.decoder else {}),
            "path": made.sampler.use if made.sampler else "the run's sampler",
            "steps": made.steps or "of the sampler",
            "samples": f"{made.num} of the training data, chosen by their content",
            "seed": made.seed,
        }  # fmt: skip

    def sampler(self, evaluation: Evaluation) -> Sampler:
        """The sampler whose path it is."""
        return sampler_of(self.build, evaluation, self.settings.sampler, self.settings.steps)

    def begin(self, evaluation: Evaluation, sampler: Sampler, first: int = 0) -> Iterator[Begun]:
        """Batches of clean samples noised to the time at which step `first` of the path begins."""
        made, schedule = self.settings, self.build.schedule
        assert schedule is not None, "checked when built"
        grid = sampler.grid()[first:]
        alpha, sigma = float(schedule.alpha(grid[:1])), float(schedule.sigma(grid[:1]))
        for rows, ids in self._chosen(evaluation):
            x0 = evaluation.clean[rows].to(evaluation.device)
            y = None if evaluation.labels is None else evaluation.labels[rows]
            draws = SampleDraws((made.seed, "instruments", first), ids, device=evaluation.device)
            x_t = alpha * x0 + sigma * draws.normal(x0.shape).to(x0)
            yield Begun(x0, y, x_t, grid, draws.child("path"))

    def _chosen(self, evaluation: Evaluation) -> Iterator[tuple[Tensor, list[int]]]:
        """Rows [B] of the clean samples by batch, and their identities."""
        ids = evaluation.remember(
            "content of the clean samples", lambda: content_ids(evaluation.clean)
        )
        order = sorted(range(len(ids)), key=ids.__getitem__)[: self.settings.num]
        for start in range(0, len(order), self.settings.batch):
            rows = order[start : start + self.settings.batch]
            yield torch.tensor(rows), [ids[row] for row in rows]

    def seen(self, evaluation: Evaluation, x: Tensor) -> Tensor:
        """What the judge sees of samples `x` [B, ...]: images [B, C, H, W]."""
        if not self.settings.decoder:
            return x
        decoded: Tensor = evaluation.module(self.settings.decoder)(x).output
        return decoded

    def judge(self, evaluation: Evaluation) -> Judge:
        """The judge, with a graph to the samples."""
        module = evaluation.module(self.settings.judge)

        def score(x: Tensor, begun: Begun) -> Tensor:
            with torch.no_grad():
                reference = self.seen(evaluation, begun.x0)
            labels = None if begun.y is None else begun.y.to(x.device)
            scores = module(self.seen(evaluation, x), reference=reference, labels=labels)
            mean: Tensor = scores.flatten(1).mean(1) if scores.dim() > 1 else scores
            return mean

        return score

    @torch.no_grad()
    def sampled(
        self, evaluation: Evaluation, sampler: Sampler, begun: Begun, role: str | None = None
    ) -> Tensor:
        """Where the paths of a denoiser end [B, ...]; the settings' own role if none is given."""
        denoise: Denoise = evaluation.denoiser(role or self.settings.role, begun.y)
        return sampler.sample(denoise, begun.x_t, begun.draws, grid=begun.grid).x0
