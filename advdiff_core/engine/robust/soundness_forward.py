"""Flags raised by the forward of a classifier alone: its logits, its state, its inputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advdiff_core.engine.robust import soundness_limits as limits
from advdiff_core.engine.robust.evidence import Evidence, Flag
from advdiff_core.engine.robust.soundness_model import Inside, Inspected

__all__ = ["forward_flags", "ranges"]


def forward_flags(model: Inspected, evidence: Evidence) -> list[Flag]:
    """What is wrong with the classifier as a function, before any attack.

    Args:
        model: The classifier; runs about 10 forwards of `evidence.x`.
        evidence: What the evaluation knows.
    """
    training = _training(model)
    moved = _moved(model, evidence.x)
    logits = model.logits(evidence.x)
    found = [training, moved, _not_finite(logits), *_inside(model, evidence.x)]
    random = _randomised(model, evidence, logits)
    found += [random, None if random else _by_batch(model, evidence.x, logits)]
    found += [_probabilities(logits), _outside(evidence)]
    if random is None:
        found += [_other_range(model, evidence, logits), _other_labels(evidence, logits)]
    return [flag for flag in found if flag is not None]


def _training(model: Inspected) -> Flag | None:
    names = [
        name or type(part).__name__
        for name, part in model.module.named_modules()
        if part.training and not list(part.children())
    ]
    if not names:
        return None
    message = (
        f"{len(names)} layers are in train mode during the evaluation, the first is {names[0]}"
    )
    return Flag(code="train-mode", message=message, fix="call eval() on the model before")


def _moved(model: Inspected, x: Tensor) -> Flag | None:
    """A forward that changes buffers; they are put back."""
    before = {name: buffer.clone() for name, buffer in model.module.named_buffers()}
    model.logits(x)
    moved = []
    for name, buffer in model.module.named_buffers():
        if name in before and not torch.equal(buffer, before[name]):
            moved.append(name)
            buffer.copy_(before[name])
    if not moved:
        return None
    message = f"a forward changes {len(moved)} buffers, the first is {moved[0]}"
    fix = "put the model in eval mode: its answers depend on what it was asked before"
    return Flag(code="moving-statistics", message=message, fix=fix)


def _not_finite(logits: Tensor) -> Flag | None:
    bad = int((~logits.isfinite()).any(1).sum())
    if bad == 0:
        return None
    message = f"logits of {bad} of {len(logits)} clean inputs are not finite"
    fix = "such inputs count as broken; mend the overflow, or the abstention, in the model"
    return Flag(code="not-finite", message=message, fix=fix)


def _inside(model: Inspected, x: Tensor) -> list[Flag | None]:
    inside = Inside()
    inside.run(lambda: model.logits(x[: limits.ROWS]))
    return [_optimises(inside.gradients), _samples(inside.draws)]


def _optimises(requests: int) -> Flag | None:
    if requests == 0:
        return None
    message = f"the model asks for gradients {requests} times inside one forward"
    fix = "attack through the unrolled optimisation, and adapt the attack to it"
    return Flag(code="inner-optimisation", message=message, fix=fix)


def _samples(draws: int) -> Flag | None:
    if draws == 0:
        return None
    message = f"the model draws random numbers {draws} times inside one forward"
    fix = "average gradients over fresh draws (attack eot); a fixed seed hides the draws alone"
    return Flag(code="inner-sampling", message=message, fix=fix, severity="doubtful")


def _randomised(model: Inspected, evidence: Evidence, logits: Tensor) -> Flag | None:
    """Answers at random; graver if no attack averaged over its draws."""
    x = evidence.x
    again = [model.logits(x) for _ in range(2)]
    gap = max(_gap(logits, other) for other in again)
    if gap <= limits.REPEAT_TOLERANCE:
        return None
    flips = max(int((logits.argmax(1) != other.argmax(1)).sum()) for other in again)
    message = (
        f"the same {len(x)} inputs get other logits when asked again: up to {gap:.1%} of their"
        f" spread, {flips} of them another class"
    )
    fix = "read the accuracy at one draw and at the worst of several"
    if any(one.use == "eot" for one in evidence.outcomes):
        return Flag(code="randomised", message=message, fix=fix, severity="doubtful")
    return Flag(code="randomised", message=message, fix=f"attack with eot, and {fix}")


def _by_batch(model: Inspected, x: Tensor, logits: Tensor) -> Flag | None:
    gap = max(
        _gap(logits, model.logits(x.flip(0)).flip(0)),
        _gap(logits[:3], model.logits(x[:3]), logits),
    )
    if gap <= limits.ROWS_TOLERANCE:
        return None
    message = f"logits of an input change by {gap:.1%} of their spread with the rest of its batch"
    fix = "use running statistics, and a seed for each input, instead of those of the batch"
    return Flag(code="batch-dependent", message=message, fix=fix)


def _gap(one: Tensor, other: Tensor, whole: Tensor | None = None) -> float:
    """Largest difference as a share of the spread of all logits."""
    one, other = (logits.double().nan_to_num(0.0, 0.0, 0.0) for logits in (one, other))
    spread = (one if whole is None else whole.double().nan_to_num(0.0, 0.0, 0.0)).std()
    return float((one - other).abs().max() / spread.clamp_min(1e-30))


def _probabilities(logits: Tensor) -> Flag | None:
    sums = (logits.sum(1) - 1).abs() <= limits.PROBABILITY_SUM
    if logits.shape[1] < 2 or not bool((sums & (logits >= 0).all(1)).all()):
        return None
    message = f"the outputs of all {len(logits)} inputs lie in [0, 1] and sum to 1"
    fix = "take out the softmax at the end: a saturated one has no gradient"
    return Flag(code="probabilities", message=message, fix=fix)


def _outside(evidence: Evidence) -> Flag | None:
    """Inputs outside of their domain, or in a corner of it."""
    domain, x = evidence.domain, evidence.x
    if domain is None or not math.isfinite(domain.span):
        return None
    low, high = float(x.min()), float(x.max())
    slack = 1e-6 * domain.span
    outside = low < domain.low - slack or high > domain.high + slack
    if not outside and high - low >= 0.02 * domain.span:
        return None
    message = (
        f"inputs lie in [{low:.4g}, {high:.4g}], their domain is [{domain.low}, {domain.high}]"
    )
    fix = (
        "give inputs that are not normalised, with the range they have; normalise inside the model"
    )
    return Flag(code="input-scale", message=message, fix=fix)


def ranges(x: Tensor) -> dict[str, Tensor]:
    """Inputs [B, ...] as other usual ranges have them, by name."""
    unit = (x - x.min()) / (x.max() - x.min()).clamp_min(1e-12)
    dims = [d for d in range(x.dim()) if d != 1]
    mean, std = unit.mean(dims, keepdim=True), unit.std(dims, keepdim=True).clamp_min(1e-12)
    return {
        "[0, 1]": unit, "[-1, 1]": 2 * unit - 1, "[0, 255]": 255 * unit,
        "mean 0 and deviation 1": (unit - mean) / std,
    }  # fmt: skip


def _other_range(model: Inspected, evidence: Evidence, logits: Tensor) -> Flag | None:
    if evidence.domain is None:
        return None
    given = int((logits.argmax(1) == evidence.y).sum())
    best, name = max(
        (int((model.logits(moved).argmax(1) == evidence.y).sum()), name)
        for name, moved in ranges(evidence.x).items()
    )
    count = len(evidence.y)
    if limits.points(best - given, count) <= limits.SCALE_POINTS or best - given < limits.LEAST:
        return None
    message = (
        f"the model is right on {given} of {count} clean inputs as they are, and on {best} in the"
        f" range {name}: it was made for other inputs"
    )
    fix = (
        "put the change of range inside the model, or set the data's domain to what it was made for"
    )
    return Flag(code="input-scale", message=message, fix=fix)


def _other_labels(evidence: Evidence, logits: Tensor) -> Flag | None:
    """Another naming of the classes makes it right; asked where there are samples enough."""
    classes, count = logits.shape[1], len(logits)
    if count < 5 * classes:
        return None
    table = torch.zeros(classes, classes, dtype=torch.int64)
    pairs = torch.stack([logits.argmax(1).cpu(), evidence.y.cpu()])
    table.index_put_((pairs[0], pairs[1]), torch.ones((), dtype=torch.int64), accumulate=True)
    given, renamed = int(table.diagonal().sum()), int(table.amax(1).sum())
    if limits.points(renamed - given, count) <= 3 * limits.SCALE_POINTS:
        return None
    message = f"{given} of {count} clean inputs are right, {renamed} if the classes are renamed"
    fix = "compare the order of the data's classes with that of the model"
    return Flag(code="label-map", message=message, fix=fix)
