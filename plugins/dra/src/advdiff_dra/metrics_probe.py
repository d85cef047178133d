"""Linear probes of representations: accuracy, robustness, and the noise level that reads best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from attrs import evolve
from torch import Tensor

from advdiff_core import Build, Evaluation, Metric
from advdiff_core.hooks.curves import slug, write_curves
from advdiff_core.math.statistics import wilson
from advdiff_core.settings import setting, settings
from advdiff_dra.images import Images, refusal
from advdiff_dra.judged import Attacker, AttackSettings, Classifier, HeadSettings, Judged
from advdiff_dra.reading import Reader

__all__ = ["LinearProbe", "ProbeSweep", "stem"]


def stem(name: str, role: str, tap: str) -> str:
    """Name of a metric's files; without dots, behind which a suffix would be cut."""
    return slug("-".join([name, role, *([tap] if tap else [])])).replace(".", "-")


class LinearProbe(Metric):
    """Accuracy of a linear classifier on frozen features, also under attack; higher is better.

    The protocol of section 4.1 and Figure 3(b) of the paper (arXiv 2602.19931): noise that belongs
    to the image, so that attacks see a deterministic function (FOUND). `probe_accuracy` with its
    Wilson interval (`_low`, `_high`), `probe_fit_accuracy` on the images it was fitted on and, for
    each radius, `probe_robust_accuracy_<255 eps>`: named right as it is and under attack. Fitted on
    training images, scored on `data`; without `data` on training images that the probe did not see,
    and the names begin with `train_`. `linear-probe-<role>.csv` and `.png` hold the curve over eps.

    DERIVED: the probe is solved to its optimum instead of trained for 15 epochs with flips and
    crops (Xiang et al. 2023). UNKNOWN: the attack of the figure.
    """

    needs_samples: ClassVar[bool] = False
    decoded: ClassVar[bool] = False
    source: ClassVar[str] = "arXiv 2602.19931, section 4.1; Xiang et al. (2023)"

    @settings
    class Settings(AttackSettings):
        """Keys of `use = "linear-probe"`."""

        eps: tuple[float, ...] = setting(
            (2 / 255, 4 / 255, 8 / 255), ge=0, help="radii, on the [0, 1] scale of the data"
        )
        confidence: float = setting(0.95, gt=0, lt=1, help="coverage of the interval")

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.judged = Judged(settings, build, probe=True)
        self.attacker = Attacker(settings, build)

    def protocol(self) -> Mapping[str, object]:
        """Data, features, probe, attack."""
        s = self.settings
        return {
            **self.judged.protocol(), **self.attacker.protocol(list(s.eps)),
            "interval": f"Wilson, {100 * s.confidence:g} %",
        }  # fmt: skip

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Shares in [0, 1] by name."""
        found = self.judged.bind(evaluation)
        assert found.probe is not None, "asked for"
        assert found.fitted is not None, "with the probe"
        clean = _right(self.judged, found, found.scored)
        fitted = _right(self.judged, found, found.fitted)
        low, high = wilson(int(clean.sum()), len(clean), self.settings.confidence)
        numbers = {
            "probe_accuracy": _share(clean), "probe_accuracy_low": low, "probe_accuracy_high": high,
            "probe_fit_accuracy": _share(fitted),
        }  # fmt: skip
        if self.attacker.attack is not None:
            numbers |= self._robust(found, evaluation, numbers["probe_accuracy"])
        evaluation.note(f"fitted on {len(fitted):,} images, scored on {len(clean):,}")
        return {self.judged.name(name): value for name, value in numbers.items()}

    def _robust(self, found: Classifier, evaluation: Evaluation, clean: float) -> dict[str, float]:
        numbers, curve = {}, [(0.0, clean)]
        for eps in self.settings.eps:
            parts = []
            for images in found.scored.batches(self.settings.batch):
                victim = found.victim(images)
                as_is = found.right(victim, images.x)
                moved = self.attacker.run(victim, images, eps, evaluation)
                parts.append(as_is & found.right(victim, moved))
            share = _share(torch.cat(parts))
            numbers[f"probe_robust_accuracy_{255 * eps:g}"] = share
            curve.append((255 * eps, share))
        path = evaluation.folder / stem("linear-probe", self.settings.role, self.settings.tap)
        write_curves(path, "255 eps", {"accuracy": sorted(curve)}, title="linear probe")
        return numbers


class ProbeSweep(Metric):
    """Accuracy of linear probes over noise levels and taps of a denoiser; higher is better.

    What the paper's teacher needs: "a fixed timestep around the optimal linearly probed timestep"
    (section 4.2, after Xiang et al. 2023), whose value is UNKNOWN. The level and tap are chosen
    by `probe_<tap>_<sigma>`, accuracy on a part of the training images that the probes did not see;
    `probe_best_accuracy` is that of the chosen pair on `data`, fitted on the other training images:
    choice and score never share an image. Without `data` the part is halved for the two, and the
    names begin with `train_`. `probe_best_sigma` and `probe_best_tap` (its place in the list) say
    which it is. `probe-sweep-<role>.csv` and `.png` hold a curve over sigma per tap. Of equal ones
    the smallest sigma is taken. One forward of all images and one fit per pair.
    """

    needs_samples: ClassVar[bool] = False
    decoded: ClassVar[bool] = False
    source: ClassVar[str] = "arXiv 2602.19931, section 4.2; Xiang et al. (2023)"

    @settings
    class Settings(HeadSettings):
        """Keys of `use = "probe-sweep"`; `tap`, `sigma` and `t` are not used."""

        head: Literal["probe"] = setting("probe", help="always a probe")
        sigmas: tuple[float, ...] = setting(
            (0.01, 0.023, 0.06, 0.14, 0.3, 0.6, 1.2), gt=0,
            help="noise levels, sigma / alpha",
        )  # fmt: skip
        taps: tuple[str, ...] = setting((), help="places in the network; empty: all")

        def __attrs_post_init__(self) -> None:
            """Refuse a sweep without levels.

            Raises:
                ValueError: If there are none, or one comes twice.
            """
            if not self.sigmas or len(set(self.sigmas)) < len(self.sigmas):
                message = f"sigmas: found {list(self.sigmas)}, wanted one or more, each once"
                raise ValueError(message)

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        model = build.models.get(settings.role)
        if model is None or model.kind != "backbone" or model.parametrization == "none":
            message = f"{settings.role!r} is no denoiser of this recipe"
            raise refusal(build, "role", message, "name a denoiser; a classifier gets no noise")
        self.taps = settings.taps or tuple(model.taps)
        first = _at(settings, self.taps[0], settings.sigmas[0])
        self.judged = Judged(first, build, probe=True)
        self.readers = {
            (tap, sigma): self.judged.reader.at(tap=tap, sigma=sigma)
            for tap in self.taps
            for sigma in sorted(settings.sigmas)
        }

    def protocol(self) -> Mapping[str, object]:
        """Data, levels, taps, probe."""
        told = self.judged.protocol()
        return {
            **{k: v for k, v in told.items() if k not in ("t", "alpha", "sigma", "tap", "scored")},
            "sigmas": sorted(self.settings.sigmas), "taps": list(self.taps),
            "chosen": f"by {self.settings.holdout:g} of the training images, not fitted",
        }  # fmt: skip

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Shares in [0, 1] by name, and the chosen level and tap."""
        train = self.judged.source.training(evaluation, self.settings.train_images)
        fitted, held = train.cut(self.settings.holdout)
        if self.judged.source.given:
            scored = self.judged.source.scored(evaluation)
        else:
            held, scored = held.cut(0.5)
        accuracy = {
            pair: self._accuracy(evaluation, reader, fitted, held)
            for pair, reader in self.readers.items()
        }
        (tap, sigma), _ = max(accuracy.items(), key=lambda one: (one[1], -one[0][1]))
        best = self._accuracy(evaluation, self.readers[tap, sigma], fitted, scored)
        self._write(evaluation, accuracy)
        numbers = {f"probe_{tap}_{sigma:g}": value for (tap, sigma), value in accuracy.items()}
        numbers |= {"probe_best_accuracy": best, "probe_best_sigma": sigma}
        numbers["probe_best_tap"] = float(self.taps.index(tap))
        evaluation.note(f"fitted on {len(fitted):,} images, chosen by {len(held):,}, scored on "
                        f"{len(scored):,}; chosen: {tap}, sigma {sigma:g}")  # fmt: skip
        return {self.judged.name(name): value for name, value in numbers.items()}

    def _accuracy(
        self, evaluation: Evaluation, reader: Reader, fitted: Images, held: Images
    ) -> float:
        probe = self.judged.fit(evaluation, fitted, reader)
        logits = probe.logits(reader.features(evaluation, held).double())
        return _share(logits.argmax(1) == self.judged.source.labels(held))

    def _write(self, evaluation: Evaluation, accuracy: Mapping[tuple[str, float], float]) -> None:
        curves: dict[str, list[tuple[float, float]]] = {}
        for (tap, sigma), value in accuracy.items():
            curves.setdefault(tap, []).append((float(torch.tensor(sigma).log10()), value))
        path = evaluation.folder / stem("probe-sweep", self.settings.role, "")
        write_curves(path, "log10 sigma", curves, title="accuracy of linear probes")


def _at(settings: ProbeSweep.Settings, tap: str, sigma: float) -> HeadSettings:
    changed: HeadSettings = evolve(cast("Any", settings), tap=tap, sigma=sigma, t=None)
    return changed


def _right(judged: Judged, found: Classifier, images: Images) -> Tensor:
    """Which images are named right [N]."""
    assert found.probe is not None, "asked of a probe"
    logits = found.probe.logits(found.reader.features(found.evaluation, images).double())
    return logits.argmax(1) == judged.source.labels(images)


def _share(right: Tensor) -> float:
    return float(right.double().mean())
