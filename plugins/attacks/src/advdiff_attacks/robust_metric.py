"""Accuracy of a classifier under one attack, as a metric: cheap enough for validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, cast

import attrs
import torch
import torch.nn.functional as F
from attrs import define, evolve, frozen
from torch import Tensor, nn

from advdiff_attacks.faults import refusal
from advdiff_core import (
    Attack,
    Batch,
    Budget,
    Build,
    DataError,
    Dataset,
    Evaluation,
    Metric,
    NumericsError,
    SampleDraws,
    Spec,
)
from advdiff_core.draws import content_ids
from advdiff_core.math.statistics import wilson
from advdiff_core.settings import setting, settings

__all__ = ["RobustAccuracy"]


@frozen(kw_only=True, eq=False)
class _Classifier:
    """A classifier of a batch; see `advdiff_core.interfaces.attack.Victim`."""

    network: Callable[[Tensor], Tensor]
    labels: Tensor

    def outputs(self, x: Tensor) -> Tensor:
        """Logits [B, K] at `x` [B, ...]."""
        return self.network(x)

    def loss(self, outputs: Tensor) -> Tensor:
        """Cross-entropy [B] of `outputs` [B, K]."""
        return F.cross_entropy(outputs, self.labels, reduction="none")

    def broken(self, outputs: Tensor) -> Tensor:
        """Samples whose `outputs` [B, K] name another class, or are not finite [B]."""
        return outputs.argmax(1).ne(self.labels) | ~outputs.isfinite().all(1)

    def rows(self, rows: Tensor) -> _Classifier:
        """The same for the samples `rows` [N]."""
        return evolve(self, labels=self.labels[rows])


@define
class _Tally:
    """Images seen, named right, and still named right under attack."""

    count: int = 0
    clean: int = 0
    robust: int = 0


class RobustAccuracy(Metric):
    """Share of images that a classifier names right under one attack; higher is better.

    `robust_accuracy` with the ends of its Wilson interval (`_low`, `_high`), and `clean_accuracy`
    of the same images without attack. A sample counts as robust if it is named right before the
    attack and by a fresh forward at what the attack returns. On the training data, if `data` is
    left out, all names begin with `train_`.

    It is for `[validate]`: one attack and no examination of whether gradients are masked. Numbers
    for a paper are those of `advdiff evaluate --attack`. The validation of DM-AT (Wang et al. 2023)
    is `pgd` of 40 steps with the loss `margin` on the first 1024 training images, held out; its
    code cuts that margin at 0, so that samples once broken stay where they are, which gives the
    verdicts of `keep = "best"`.
    """

    needs_samples: ClassVar[bool] = False
    decoded: ClassVar[bool] = False

    @settings
    class Settings:
        """Keys of `use = "robust-accuracy"`."""

        attack: Spec = setting(kind="attack", help="the attack")
        role: str = setting("student", ref="role", help="the classifier")
        data: Spec | None = setting(
            None, kind="dataset", help="labelled images; the training data if left out"
        )
        images: int = setting(0, ge=0, unit="images", help="the first so many of them; 0: all")
        norm: Literal["linf", "l2", "l1"] = setting("linf", help="norm of the ball")
        eps: float = setting(8 / 255, gt=0, help="its radius, on the [0, 1] scale of the data")
        seed: int = setting(0, ge=0, help="of the attack; the run's seed does not matter")
        confidence: float = setting(0.95, gt=0, lt=1, help="coverage of the interval")
        batch: int = setting(256, ge=1, unit="images", help="images attacked at once")

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        model = build.models.get(settings.role)
        if model is None or model.kind != "backbone" or model.parametrization != "none":
            fix = 'name a backbone with parametrization = "none"'
            raise refusal(build, "role", f"{settings.role!r} is no classifier", fix)
        self.attack = cast("Attack", build.nested(settings.attack))
        if settings.norm not in self.attack.norms:
            message = f"{settings.attack.use} does not search in {settings.norm}"
            raise refusal(build, "norm", message, f"choose of {', '.join(self.attack.norms)}")
        self._data: Dataset | None = None
        if settings.data is not None:
            self._data = cast("Dataset", build.nested(settings.data))
        self._check()

    @property
    def _info(self) -> Any:
        return self._data.info if self._data is not None else self.build.data

    def _check(self) -> None:
        info, mine = self._info, self.build.data
        if info is None or not info.classes:
            message = "the data have no labels"
            raise refusal(self.build, "data", message, "name a dataset with classes")
        if mine is not None and mine.shape != info.shape:
            message = f"the images are {list(info.shape)}, the classifier's are {list(mine.shape)}"
            raise refusal(self.build, "data", message, "name data of the same shape")

    def protocol(self) -> Mapping[str, object]:
        """Data, attack, radius, seed, interval, and what it is not."""
        s = self.settings
        told: dict[str, object] = {"data": "training data of the run, without corruption"}
        if self._data is not None and s.data is not None:
            told = {"data": s.data.use, "fingerprint": self._data.fingerprint()}
        return {
            **told, "images": s.images or "all", "role": s.role, "attack": _told(s.attack),
            "norm": s.norm, "eps": s.eps, "seed": s.seed,
            "interval": f"Wilson, {100 * s.confidence:g} %",
            "examined": "no: one attack, no look at masked gradients",
        }  # fmt: skip

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Shares in [0, 1] by name."""
        network, tally = _logits(evaluation.module(self.settings.role), self.build.path), _Tally()
        for batch in self._batches(evaluation):
            self._add(tally, network, batch, evaluation.device)
        low, high = wilson(tally.robust, tally.count, self.settings.confidence)
        found = {
            "robust_accuracy": tally.robust / tally.count,
            "robust_accuracy_low": low,
            "robust_accuracy_high": high,
            "clean_accuracy": tally.clean / tally.count,
        }
        return found if self._data is not None else {f"train_{n}": v for n, v in found.items()}

    def _add(
        self, tally: _Tally, network: Callable[[Tensor], Tensor], batch: Batch, device: torch.device
    ) -> None:
        """Judge a batch before and under attack; what is wrong already is not attacked."""
        x, y = batch.x.to(device), self._labels(batch).to(device)
        with torch.no_grad():
            logits = network(x)
        self._refuse_unfit(logits, y)
        right = logits.argmax(1).eq(y)
        tally.count += len(x)
        tally.clean += int(right.sum())
        if bool(right.any()):
            victim = _Classifier(network=network, labels=y[right])
            tally.robust += self._survivors(victim, x[right])

    def _survivors(self, victim: _Classifier, x: Tensor) -> int:
        """How many images [B, ...] are named right where the attack has moved them."""
        s, known = self.settings, self.build.data
        draws = SampleDraws((s.seed, "robust-accuracy"), content_ids(x), device=x.device)
        budget = Budget(s.norm, s.eps, "pixel")
        domain = known.domain if known is not None else None
        moved = self.attack.run(victim, x, budget, domain=domain, rng=draws)
        if not bool(moved.isfinite().all()):
            message = f"{s.attack.use} returned values that are not finite"
            raise NumericsError(
                message, code="E22", where=self.build.path, fix="look at the attack's settings"
            )
        with torch.no_grad():
            return int((~victim.broken(victim.outputs(moved))).sum())

    def _refuse_unfit(self, logits: Tensor, y: Tensor) -> None:
        if not bool(logits.isfinite().all()):
            message = "logits of clean images are not finite"
            raise NumericsError(
                message, code="E22", where=self.build.path, fix="look at the training"
            )
        wrong = (y < 0) | (y >= logits.shape[1])
        if bool(wrong.any()):
            message = f"an image has label {int(y[wrong][0])}, the classifier has "
            message += f"{logits.shape[1]} classes"
            raise DataError(
                message, code="D03", where=self.build.path, fix="name data of the same classes"
            )

    def _labels(self, batch: Batch) -> Tensor:
        if batch.y is None:
            message = "the images have no labels"
            raise DataError(message, code="D03", where=self.build.path, fix="name data with labels")
        return batch.y

    def _batches(self, evaluation: Evaluation) -> Iterator[Batch]:
        """The images in their order, in the run's domain."""
        data = self._data
        whole = len(evaluation.clean) if data is None else data.info.count
        count = min(whole, self.settings.images or whole)
        for start in range(0, count, self.settings.batch):
            stop = min(start + self.settings.batch, count)
            if data is not None:
                batch = data.batch(torch.arange(start, stop))
                yield batch._replace(x=self._moved(batch.x.float()))
            else:
                x, y = evaluation.clean, evaluation.labels
                yield Batch(x[start:stop], None if y is None else y[start:stop])

    def _moved(self, x: Tensor) -> Tensor:
        """Images [B, ...] of another dataset in the domain that the classifier knows."""
        native = self._info.domain
        wanted = self.build.data.domain if self.build.data is not None else None
        if native is None or wanted is None or native == wanted:
            return x
        return wanted.low + (x - native.low) / native.span * wanted.span


def _told(spec: Spec) -> dict[str, object]:
    """A component and its keys, for the protocol."""
    keys = attrs.asdict(spec.settings, recurse=False)
    return {"use": spec.use} | {n: _told(v) if isinstance(v, Spec) else v for n, v in keys.items()}


def _logits(module: nn.Module, where: str) -> Callable[[Tensor], Tensor]:
    """A network as a function from inputs [B, ...] to logits [B, K]."""

    def network(x: Tensor) -> Tensor:
        logits = module(x, None, None).output
        if logits is None or logits.dim() != 2:
            found = None if logits is None else list(logits.shape)
            message = f"the network returned {found}, wanted one logit per class [B, K]"
            raise DataError(message, code="R10", where=where, fix="name a classifier")
        return cast("Tensor", logits.float())

    return network
