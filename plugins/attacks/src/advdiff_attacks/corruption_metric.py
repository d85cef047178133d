"""Accuracy of a classifier under common corruptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from advdiff_attacks.common_corruptions import CORRUPTIONS
from advdiff_attacks.corruptions import damaged
from advdiff_attacks.faults import refusal
from advdiff_attacks.labelled import LabelledImages, labels_of, require_classifier
from advdiff_core import Build, Evaluation, Metric, NumericsError, Spec
from advdiff_core.draws import content_ids
from advdiff_core.interfaces.classifier import Logits
from advdiff_core.settings import setting, settings

__all__ = ["CorruptionAccuracy"]


class CorruptionAccuracy(Metric):
    """Share of images named right under common corruptions of each severity; higher is better.

    Hendrycks and Dietterich (2019), computed here instead of read from the files of CIFAR-10-C.
    `corrupted_accuracy` is the mean over kinds and severities, `corrupted_accuracy_s3` that of a
    severity, `corrupted_accuracy_fog` that of a kind; `corrupted_worst` is the share named right
    under every one of them, and `uncorrupted_accuracy` that of the images as they are. On the
    training data, if `data` is left out, all names begin with `train_`.
    """

    needs_samples: ClassVar[bool] = False
    decoded: ClassVar[bool] = False

    @settings
    class Settings:
        """Keys of `use = "corruption-accuracy"`."""

        role: str = setting("student", ref="role", help="the classifier")
        data: Spec | None = setting(
            None, kind="dataset", help="labelled images; the training data if left out"
        )
        kinds: tuple[str, ...] = setting((), help="kinds of damage; empty: all that fit the images")
        severities: tuple[int, ...] = setting((1, 2, 3, 4, 5), ge=1, le=5, help="of 1 to 5")
        images: int = setting(0, ge=0, unit="images", help="the first so many of them; 0: all")
        seed: int = setting(0, ge=0, help="chooses the damage; the run's seed does not")
        batch: int = setting(256, ge=1, unit="images", help="images per forward")

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        require_classifier(build, settings.role)
        s = settings
        self.images = LabelledImages(s.data, build, images=s.images, batch=s.batch)
        self._check()
        self.kinds = settings.kinds or self._fitting()

    def _fitting(self) -> tuple[str, ...]:
        channels = self.images.info.shape[0]
        return tuple(n for n, k in CORRUPTIONS.items() if not k.channels or channels in k.channels)

    def _check(self) -> None:
        info, s = self.images.info, self.settings
        if info is None or not info.classes or not info.is_image or info.domain is None:
            message = "the data are no labelled images with a range of values"
            raise refusal(self.build, "data", message, "name a dataset of images with classes")
        self.images.require_shape()
        unknown = [name for name in s.kinds if name not in self._fitting()]
        if unknown:
            message = f"{unknown[0]!r} is no corruption of images with {info.shape[0]} channels"
            raise refusal(self.build, "kinds", message, f"take of {', '.join(self._fitting())}")
        if not s.severities:
            raise refusal(self.build, "severities", "there are none", "write severities = [3]")

    def protocol(self) -> Mapping[str, object]:
        """Data, kinds, severities, seed, and whose constants they are."""
        s = self.settings
        return {
            **self.images.told(),
            "images": s.images or "all",
            "role": s.role,
            "kinds": list(self.kinds),
            "severities": list(s.severities),
            "seed": s.seed,
            "constants": "CIFAR-10-C (Hendrycks and Dietterich 2019), computed by advdiff-attacks",
        }

    @torch.no_grad()
    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Shares in [0, 1] by name."""
        module, s = evaluation.module(self.settings.role), self.settings
        right: dict[tuple[str, int], list[Tensor]] = {}
        clean: list[Tensor] = []
        for batch in self.images.batches(evaluation):
            unit, y = self._unit(batch.x), labels_of(batch, self.build.path).cpu()
            # Keyed by content: the same image meets the same damage, wherever it stands.
            ids = content_ids(unit)
            clean.append(self._named_right(module, unit, y, evaluation.device))
            for name in self.kinds:
                for severity in s.severities:
                    made = damaged(unit, name, severity, ids=ids, seed=s.seed)
                    verdicts = self._named_right(module, made, y, evaluation.device)
                    right.setdefault((name, severity), []).append(verdicts)
        found = self._numbers({key: torch.cat(v) for key, v in right.items()}, torch.cat(clean))
        return self.images.named(found)

    def _numbers(self, right: Mapping[tuple[str, int], Tensor], clean: Tensor) -> dict[str, float]:
        every = torch.stack(list(right.values())).double()
        found = {
            "corrupted_accuracy": float(every.mean()),
            "corrupted_worst": float(every.amin(0).mean()),
            "uncorrupted_accuracy": float(clean.double().mean()),
        }
        for at in self.settings.severities:
            share = torch.stack([v for (_, s), v in right.items() if s == at]).double().mean()
            found[f"corrupted_accuracy_s{at}"] = float(share)
        for kind in self.kinds:
            share = torch.stack([v for (n, _), v in right.items() if n == kind]).double().mean()
            found[f"corrupted_accuracy_{kind.replace('-', '_')}"] = float(share)
        return found

    def _unit(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1]: the data's own domain, or the run's."""
        domain = self.images.info.domain
        return (x.float() - domain.low) / domain.span

    def _named_right(
        self, module: nn.Module, unit: Tensor, y: Tensor, device: torch.device
    ) -> Tensor:
        domain = self.build.data.domain if self.build.data is not None else None
        low, span = (domain.low, domain.span) if domain is not None else (0.0, 1.0)
        logits = Logits(module, self.build.path)((low + span * unit).to(device))
        if not bool(logits.isfinite().all()):
            message = "logits under a corruption are not finite"
            raise NumericsError(
                message, code="E22", where=self.build.path, fix="look at the training"
            )
        return logits.argmax(1).cpu().eq(y)
