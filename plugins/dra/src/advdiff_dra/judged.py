"""Classifiers that analyses attack: a network's own head, or a linear probe on its features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from attrs import evolve, frozen
from torch import Tensor

from advdiff_core import Attack, Budget, Build, Evaluation, NumericsError, SampleDraws, Spec
from advdiff_core.settings import setting, settings
from advdiff_dra.images import Images, ImageSource, refusal
from advdiff_dra.probes import Probe, fit_probe
from advdiff_dra.reading import Reader, ReadSettings, check_finite

__all__ = ["AttackSettings", "Attacker", "Classifier", "HeadSettings", "HeadVictim", "Judged"]

#: From inputs [B, ...], and which samples of the batch they are [B], to logits [B, K].
Logits = Callable[[Tensor, Tensor], Tensor]


@settings
class HeadSettings(ReadSettings):
    """Which classifier is analysed."""

    head: Literal["auto", "own", "probe"] = setting(
        "auto",
        help='"own": the classifier\'s; "probe": a linear one; "auto": its own if it has one',
    )
    c: float = setting(1.0, gt=0, help="probe: inverse strength of the penalty on its weights")
    iterations: int = setting(1000, ge=1, help="probe: most iterations of the solver")
    standardise: bool = setting(
        True, help="probe: features of mean 0 and deviation 1 over the training images"
    )
    train_images: int = setting(
        0, ge=0, unit="images", help="probe: the first so many training images; 0: all"
    )
    holdout: float = setting(
        0.2, gt=0, lt=1, help="probe: share of training images scored, not fitted, without `data`"
    )


@settings
class AttackSettings(HeadSettings):
    """What attacks it. UNKNOWN in the paper: attack and radius of the analyses."""

    attack: Spec | None = setting(None, kind="attack", help="attack; none if left out")
    norm: Literal["linf", "l2", "l1"] = setting("linf", help="norm of the ball")


@frozen(kw_only=True, eq=False)
class HeadVictim:
    """A classifier of a batch; see `advdiff_core.interfaces.attack.Victim`.

    Attributes:
        function: From inputs, and the samples they belong to, to logits.
        labels: True classes [B].
        chosen: The samples of the batch that are left [B].
    """

    function: Logits
    labels: Tensor
    chosen: Tensor

    def outputs(self, x: Tensor) -> Tensor:
        """Logits [B, K] at `x` [B, ...]."""
        return self.function(x, self.chosen)

    def loss(self, outputs: Tensor) -> Tensor:
        """Cross-entropy [B] of `outputs` [B, K]."""
        return F.cross_entropy(outputs, self.labels, reduction="none")

    def broken(self, outputs: Tensor) -> Tensor:
        """Samples whose `outputs` [B, K] name another class [B]."""
        return outputs.argmax(1).ne(self.labels)

    def rows(self, rows: Tensor) -> HeadVictim:
        """The same for the samples `rows` [N]."""
        return evolve(self, labels=self.labels[rows], chosen=self.chosen[rows])


@frozen(kw_only=True, eq=False)
class Classifier:
    """A classifier of an evaluation, with the images it is scored on.

    Attributes:
        evaluation: Of the run.
        reader: Reads the features.
        scored: Images that nothing was fitted on.
        labels: Their classes [N].
        fitted: Images that the probe was fitted on; None for a network's own head.
        probe: The probe; None for a network's own head.
    """

    evaluation: Evaluation
    reader: Reader
    scored: Images
    labels: Tensor
    fitted: Images | None = None
    probe: Probe | None = None

    def logits(self, x: Tensor, eps: Tensor) -> Tensor:
        """Logits [B, K] at inputs [B, ...] with noise [B, ...] for a denoiser."""
        if self.probe is None:
            return self.reader.logits(self.evaluation, x)
        return self.probe.logits(self.reader.read(self.evaluation, x, eps=eps))

    def victim(self, images: Images) -> HeadVictim:
        """The victim of some of the images, with the noise that belongs to each."""
        eps, device = self.reader.noise(images, self.evaluation), self.evaluation.device
        assert images.y is not None, "checked when they were read"
        return HeadVictim(
            function=lambda x, rows: self.logits(x, eps[rows] if len(eps) else eps),
            labels=images.y.to(device), chosen=torch.arange(len(images), device=device),
        )  # fmt: skip

    @torch.no_grad()
    def right(self, victim: HeadVictim, x: Tensor) -> Tensor:
        """Which inputs [B, ...] are named right [B], on the CPU, by a fresh forward.

        Raises:
            NumericsError: E22 if logits are not finite.
        """
        found = victim.outputs(x.to(self.evaluation.device))
        if not bool(found.isfinite().all()):
            where = self.reader.build.path
            message = "logits are not finite"
            raise NumericsError(message, code="E22", where=where, fix="look at the training")
        return ~victim.broken(found).cpu()


class Judged:
    """Makes the classifier that a metric's settings name.

    Args:
        settings: Of the metric.
        build: What it was told.
        probe: Whether a probe is wanted whatever the settings say.

    Raises:
        RecipeError: R10 if the settings do not fit the recipe.
    """

    def __init__(self, settings: HeadSettings, build: Build, *, probe: bool = False) -> None:
        self.settings, self.build = settings, build
        self.source = ImageSource(settings, build, labelled=True)
        self.reader = Reader(settings, build)
        if settings.head == "own" and self.reader.denoiser:
            message = f"{settings.role!r} is a denoiser and has no head"
            raise refusal(build, "head", message, 'write head = "probe"')
        self.probed = probe or settings.head == "probe" or self.reader.denoiser
        if self.probed and settings.condition == "label":
            message = "a probe on features that were told the class knows the class"
            raise refusal(build, "condition", message, 'write condition = "none"')

    def protocol(self) -> dict[str, object]:
        """Data, features, head."""
        s = self.settings
        told = {**self.source.protocol(), **self.reader.protocol(), "head": "the network's own"}
        if not self.probed:
            return told
        if not self.source.given:
            told["scored"] = f"{s.holdout:g} of the training images, chosen by content, not fitted"
        return {
            **told,
            "head": "multinomial logistic regression, L-BFGS to its optimum, no augmentation",
            "c": s.c, "fitted": s.train_images or "all training images",
            "features": "mean 0, deviation 1 over those" if s.standardise else "as they are",
        }  # fmt: skip

    def name(self, name: str) -> str:
        """A number's name; see `ImageSource.name`."""
        return self.source.name(name)

    def bind(self, evaluation: Evaluation) -> Classifier:
        """The classifier, its probe fitted."""
        if not self.probed:
            scored = self.source.scored(evaluation)
            labels = self.source.labels(scored)
            return Classifier(
                evaluation=evaluation, reader=self.reader, scored=scored, labels=labels
            )
        train = self.source.training(evaluation, self.settings.train_images)
        scored = self.source.scored(evaluation)
        if not self.source.given:
            train, scored = train.cut(self.settings.holdout)
        return Classifier(
            evaluation=evaluation, reader=self.reader, scored=scored,
            labels=self.source.labels(scored), fitted=train, probe=self.fit(evaluation, train),
        )  # fmt: skip

    def fit(self, evaluation: Evaluation, images: Images, reader: Reader | None = None) -> Probe:
        """A probe on features of images, fitted once per evaluation."""
        s, read = self.settings, reader or self.reader
        features = read.features(evaluation, images)
        told = (str(read.protocol()), s.seed, s.c, s.iterations, s.standardise)

        def make() -> Probe:
            return fit_probe(
                features, self.source.labels(images), classes=self.source.classes, c=s.c,
                iterations=s.iterations, standardise=s.standardise,
            )  # fmt: skip

        probe = evaluation.remember(("dra", "probe", *told, hash(images.ids)), make)
        if not probe.converged:
            evaluation.note(f"the probe did not converge in {s.iterations} iterations")
        return probe


class Attacker:
    """Runs the attack that a metric's settings name.

    Args:
        settings: Of the metric.
        build: What it was told.

    Raises:
        RecipeError: R10 if the attack does not know the norm.
    """

    def __init__(self, settings: AttackSettings, build: Build) -> None:
        self.settings, self.build = settings, build
        self.attack: Attack | None = None
        if settings.attack is not None:
            self.attack = cast("Attack", build.nested(settings.attack))
            if settings.norm not in self.attack.norms:
                message = f"{settings.attack.use} does not search in {settings.norm}"
                known = ", ".join(self.attack.norms)
                raise refusal(build, "norm", message, f"choose one of {known}")

    def protocol(self, eps: object) -> dict[str, object]:
        """Attack, norm, radius on the [0, 1] scale of the data."""
        spec = self.settings.attack
        if spec is None:
            return {"attack": "none"}
        return {"attack": spec.use, "norm": self.settings.norm, "eps": eps}

    def run(self, victim: Any, images: Images, eps: float, evaluation: Evaluation) -> Tensor:
        """Adversarial inputs [B, ...] of images, on the network's device.

        Args:
            victim: What is attacked.
            images: Clean images.
            eps: Radius on the [0, 1] scale of the data.
            evaluation: Of the run.
        """
        assert self.attack is not None, "asked only where an attack is named"
        device = evaluation.device
        draws = SampleDraws((self.settings.seed, "dra attack", eps), images.ids, device=device)
        domain = self.build.data.domain if self.build.data is not None else None
        budget = Budget(self.settings.norm, eps, "pixel")
        found = self.attack.run(victim, images.x.to(device), budget, domain=domain, rng=draws)
        check_finite(found.flatten(1), self.build.path)
        return found
