"""How well the discriminator tells samples from data, and whether the generator fools it alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from advdiff_adt.instruments import Paths, PathSettings
from advdiff_core import Build, Evaluation, Metric, Sampler, Spec
from advdiff_core.interfaces.quality import judged, quality_of
from advdiff_core.settings import setting, settings

__all__ = ["DiscriminatorAccuracy", "DiscriminatorHacking", "auc"]


class DiscriminatorAccuracy(Metric):
    """How well a discriminator tells data from what the denoiser makes of them, noised.

    Clean samples are noised to a place of the path and sampled from there; the discriminator sees
    both, with the clean sample as reference (arXiv 2504.11423: the fake pair of the siamese kind).
    Augmentation is off, as in any evaluation.

    - `discriminator_accuracy`: mean of the shares of data above `threshold` and samples below, 0.5
      for one that cannot tell;
    - `discriminator_auc`: share of pairs of a datum and a sample that are scored in this order,
      whatever the threshold; 0.5 for one that cannot tell;
    - `discriminator_real`, `discriminator_fake`: mean scores.

    Means over `starts`, and each of the first two by `_s<share>`. Neither end is best: near 0.5 the
    generator learns nothing, near 1 of everything it may be told nothing useful either.
    """

    needs_samples: ClassVar[bool] = False
    decoded: ClassVar[bool] = False
    source: ClassVar[str] = "arXiv 2504.11423 (FOUND: the pairs); numbers: ours"

    @settings
    class Settings(PathSettings):
        """Keys of `use = "discriminator-accuracy"`."""

        judge: str = setting("discriminator", ref="role", help="discriminator")
        starts: tuple[float, ...] = setting(
            (1.0, 0.5, 0.1), gt=0, le=1, help="shares of the path that are run; 1 begins at t = T"
        )
        threshold: float = setting(0.0, help="score from which a sample counts as real")

        def __attrs_post_init__(self) -> None:
            """Refuse no starts, and starts twice.

            Raises:
                ValueError: If there are none, or one twice.
            """
            if not self.starts or len(set(self.starts)) < len(self.starts):
                found = list(self.starts)
                raise ValueError(f"starts: found {found}, wanted one or more, each once")

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.paths = Paths(settings, build)

    def protocol(self) -> Mapping[str, object]:
        """Paths, starts, threshold."""
        made = self.settings
        return {
            **self.paths.protocol(), "starts": list(made.starts), "threshold": made.threshold,
            "augmentation": "none", "reference": "the clean sample",
        }  # fmt: skip

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Numbers by name; see the class."""
        sampler = self.paths.sampler(evaluation)
        found = {share: self._at(evaluation, sampler, share) for share in self.settings.starts}
        numbers = {
            f"discriminator_{name}": sum(one[name] for one in found.values()) / len(found)
            for name in next(iter(found.values()))
        }
        for share, one in found.items():
            for name in ("accuracy", "auc"):
                numbers[f"discriminator_{name}_s{share:g}"] = one[name]
        return numbers

    def _at(self, evaluation: Evaluation, sampler: Sampler, share: float) -> dict[str, float]:
        steps = len(sampler.grid()) - 1
        first = min(steps - 1, round((1 - share) * steps))
        judge, sides = self.paths.judge(evaluation), []
        for begun in self.paths.begin(evaluation, sampler, first):
            fake = self.paths.sampled(evaluation, sampler, begun)
            with torch.no_grad():
                sides.append(torch.stack([judge(begun.x0, begun), judge(fake, begun)]).cpu())
        real, fake = torch.cat(sides, dim=1).double()
        threshold = self.settings.threshold
        above = float((real > threshold).double().mean())
        below = float((fake <= threshold).double().mean())
        return {
            "accuracy": (above + below) / 2, "auc": auc(real, fake),
            "real": float(real.mean()), "fake": float(fake.mean()),
        }  # fmt: skip


class DiscriminatorHacking(Metric):
    """The alarm: the generator's score has risen while an independent distance got worse.

    Both denoisers, `role` and the one tuning began with (`before`, frozen: `init` names the same
    weights), make samples from the same noised data at t = T. Distance: any metric of samples, in
    features that the discriminator does not use.

    - `hacking_score_rise`: rise of the mean score from `before` to `role`;
    - `hacking_distance_rise`: rise of the distance, above 0 if it got worse;
    - `hacking_alarm`: 1 if the score has risen by more than `score_margin` and the distance has got
      worse by more than `distance_margin` of what it was; else 0, the best.

    FOUND (arXiv 2504.11423): quality that falls is the sign of a hacked discriminator; how it is
    noticed is ours. Of latents it judges latents: take a metric that does.
    """

    needs_samples: ClassVar[bool] = False
    decoded: ClassVar[bool] = False
    source: ClassVar[str] = "arXiv 2504.11423 (FOUND: the sign); alarm: ours"

    @settings
    class Settings(PathSettings):
        """Keys of `use = "discriminator-hacking"`."""

        judge: str = setting("discriminator", ref="role", help="discriminator")
        before: str = setting(ref="role", help="frozen denoiser that tuning began with")
        metric: Spec = setting(kind="metric", help="independent distance of samples")
        number: str = setting("", help="number of it that is read; the first if empty")
        higher_is_better: bool = setting(
            default=False, help="the metric measures quality, not a distance"
        )
        score_margin: float = setting(0.0, ge=0, help="rise of the score that counts as none")
        distance_margin: float = setting(
            0.0, ge=0, help="rise that counts as none, as a share of the distance before"
        )
        num: int = setting(256, ge=1, help="clean samples that are noised", unit="samples")

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.paths = Paths(settings, build)
        self.paths.want(settings.before, "before", "denoiser")
        self.quality = quality_of(build, settings.metric)

    def protocol(self) -> Mapping[str, object]:
        """Paths, both denoisers, distance, margins."""
        made = self.settings
        return {
            **self.paths.protocol(), "before": made.before, "start": "t = T",
            "distance": {"use": made.metric.use, **self.quality.protocol()},
            "number": made.number or "the first", "higher is better": made.higher_is_better,
            "margins": [made.score_margin, made.distance_margin],
        }  # fmt: skip

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Numbers by name; see the class."""
        made, sampler = self.settings, self.paths.sampler(evaluation)
        score, distance = self._of(evaluation, sampler, made.role, "after")
        score_before, distance_before = self._of(evaluation, sampler, made.before, "before")
        rise = (distance - distance_before) * (-1 if made.higher_is_better else 1)
        worse = rise > made.distance_margin * abs(distance_before)
        alarm = worse and score - score_before > made.score_margin
        return {
            "hacking_score_rise": score - score_before, "hacking_distance_rise": rise,
            "hacking_alarm": float(alarm),
        }  # fmt: skip

    def _of(
        self, evaluation: Evaluation, sampler: Sampler, role: str | None, name: str
    ) -> tuple[float, float]:
        """Mean score and distance of a denoiser's samples."""
        judge = self.paths.judge(evaluation)
        ends, scores = [], []
        for begun in self.paths.begin(evaluation, sampler):
            end = self.paths.sampled(evaluation, sampler, begun, role)
            with torch.no_grad():
                scores.append(judge(end, begun).cpu())
            ends.append(end.float().cpu())
        told = evaluation.with_samples(torch.cat(ends), f"discriminator-hacking/{name}")
        names = (self.settings.number,) if self.settings.number else ()
        (distance,) = judged(self.quality, told, names, self.build.path).values()
        return float(torch.cat(scores).double().mean()), distance


def auc(real: Tensor, fake: Tensor) -> float:
    """Share of pairs of `real` [N] above `fake` [M]; ties count half (Mann and Whitney 1947)."""
    order = fake.sort().values
    below = torch.searchsorted(order, real, right=False)
    through = torch.searchsorted(order, real, right=True)
    return float((below + through).double().mean()) / 2 / len(fake)
