"""Metrics of a trained run, each stored with its protocol."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import torch
from attrs import define
from torch import Tensor, nn
from torch.func import functional_call

from advdiff_core.engine.assemble import Experiment
from advdiff_core.engine.generate import SampleSet, generate, weights_of
from advdiff_core.errors import NumericsError
from advdiff_core.interfaces.metric import Metric
from advdiff_core.types import DataInfo

__all__ = ["MAX_REFERENCE", "evaluate", "metrics"]

#: Most real samples that metrics compare with.
MAX_REFERENCE = 50_000


@define(kw_only=True, eq=False)
class _Evaluation:
    """See `advdiff_core.interfaces.metric.Evaluation`."""

    experiment: Experiment
    samples: Tensor
    clean: Tensor
    data: Tensor
    labels: Tensor | None
    info: DataInfo
    folder: Path
    ema: int | None = None

    def module(self, role: str) -> nn.Module:
        """The network with the weights being evaluated, in eval mode, as a copy of its own."""
        return _Frozen(self.experiment, role, self.ema)


class _Frozen(nn.Module):
    """A role's network with given weights that leaves the network itself untouched."""

    def __init__(self, experiment: Experiment, role: str, ema: int | None) -> None:
        super().__init__()
        self._role = experiment.scene.roles[role]
        self._weights = weights_of(experiment, role, ema) or {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network without gradient."""
        module = self._role.module
        device = next(module.parameters()).device
        args = tuple(a.to(device) if isinstance(a, Tensor) else a for a in args)
        flags = [(part, part.training) for part in module.modules()]
        module.eval()
        try:
            with torch.no_grad():
                return functional_call(module, self._weights, args, kwargs)
        finally:
            for part, training in flags:
                part.training = training


def evaluate(experiment: Experiment, folder: Path, nimg: int) -> dict[str, Any]:
    """Sample and compute every metric of the recipe.

    Args:
        experiment: The run.
        folder: Where metrics may write files.
        nimg: Images seen by the weights.

    Returns:
        `metrics` (name -> number), `owners` (name -> metric), `protocols` (metric -> protocol with
        how the samples were made) and `nimg`.

    Raises:
        NumericsError: If a sample is not finite.
    """
    settings = experiment.recipe.evaluate
    if not settings.metrics:
        return {"metrics": {}, "owners": {}, "protocols": {}, "nimg": nimg}
    sampled = _samples(experiment)
    indices = torch.arange(min(experiment.source.info.count, MAX_REFERENCE))
    clean = experiment.source.clean(indices)
    seen = experiment.source.batch(indices).x if experiment.source.corruptions else clean.x
    evaluation = _Evaluation(
        experiment=experiment, samples=sampled.x0, clean=clean.x.float(), data=seen.float(),
        labels=clean.y, info=experiment.source.info, folder=folder,
    )  # fmt: skip
    numbers: dict[str, float] = {}
    protocols: dict[str, dict[str, object]] = {}
    owners: dict[str, str] = {}
    common = _protocol(experiment, sampled, len(indices))
    for name, metric in metrics(experiment).items():
        # Two metrics of one kind: the second one's numbers carry its place in the recipe.
        suffix = name.partition("#")[2]
        found = {
            f"{k}#{suffix}" if suffix else k: float(v)
            for k, v in metric.compute(evaluation).items()
        }
        numbers.update(found)
        owners.update(dict.fromkeys(found, name))
        protocols[name] = {**metric.protocol(), **common}
    return {"metrics": numbers, "owners": owners, "protocols": protocols, "nimg": nimg}


def metrics(experiment: Experiment) -> dict[str, Metric]:
    """The recipe's metrics, built: `use`, or `use#2` for the second one of that name.

    Raises:
        AdvdiffError: If one cannot be built; asked before the training, not after it.
    """
    found: dict[str, Metric] = {}
    for spec in experiment.recipe.evaluate.metrics:
        count = 1 + sum(name.partition("#")[0] == spec.use for name in found)
        name = spec.use if count == 1 else f"{spec.use}#{count}"
        found[name] = cast("Metric", experiment.make(spec))
    return found


def _samples(experiment: Experiment) -> SampleSet:
    settings = experiment.recipe.evaluate
    seeds = range(settings.seed, settings.seed + settings.num)
    sampled = generate(experiment, seeds, batch=settings.batch)
    bad = ~sampled.x0.flatten(1).isfinite().all(1)
    if bool(bad.any()):
        first = seeds[int(bad.nonzero()[0])]
        message = f"{int(bad.sum())} of {len(bad)} samples are not finite, first seed {first}"
        raise NumericsError(
            message, code="E22", where="evaluate", fix="train longer or with a lower rate"
        )
    return sampled


def _protocol(experiment: Experiment, sampled: SampleSet, reference: int) -> dict[str, object]:
    settings = experiment.recipe.evaluate
    return {
        "samples": len(sampled.seeds),
        "reference": reference,
        "seeds": f"{settings.seed}-{settings.seed + settings.num - 1}",
        "sampler": sampled.sampler["use"],
        "nfe": sampled.nfe,
        "domain": _domain(experiment),
    }


def _domain(experiment: Experiment) -> object:
    domain = experiment.source.info.domain
    return None if domain is None or math.isinf(domain.low) else [domain.low, domain.high]
