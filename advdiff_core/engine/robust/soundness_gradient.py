"""Flags raised by the gradient towards the input: missing, zero, wrong, or of a rough function."""

from __future__ import annotations

import math

import torch
from attrs import frozen
from torch import Tensor

from advdiff_core.draws import keyed_generator
from advdiff_core.engine.robust import soundness_limits as limits
from advdiff_core.engine.robust.evidence import Evidence, Flag
from advdiff_core.engine.robust.soundness_model import Inspected, cross_entropy, margin

__all__ = ["gradient_flags"]


@frozen(kw_only=True)
class _Slopes:
    """Changes of the margin along directions, each of the whole input range [D, B].

    Attributes:
        told: By the gradient.
        wide: By central differences.
        narrow: By central differences over a part of the step.
        step: How far the wide ones reach, in units of the input.
        least: Smallest sum of slopes that float32 can tell from none.
    """

    told: Tensor
    wide: Tensor
    narrow: Tensor
    step: float
    least: float

    @property
    def moves(self) -> bool:
        """True if the function changes at this scale."""
        return float(torch.minimum(self.wide.abs(), self.narrow.abs()).sum()) > self.least

    @property
    def roughness(self) -> float:
        """Gap between the slopes at the two steps, from 0 (smooth) to 1."""
        return _apart(self.wide, self.narrow)

    @property
    def error(self) -> float:
        """Gap between the gradient and the slopes, from 0 (right) to 1."""
        return _apart(self.told, self.narrow)


def gradient_flags(model: Inspected, evidence: Evidence) -> list[Flag]:
    """What is wrong with the gradient of the margin at clean inputs.

    Central differences along two directions and at two steps tell a gradient that is cut off, or
    that of something else, from a function that has none.

    Args:
        model: The classifier; runs 9 forwards and 2 gradients of at most `ROWS` samples.
        evidence: What the evaluation knows.
    """
    x, y = evidence.x[: limits.ROWS], evidence.y[: limits.ROWS]
    step = _step(x) * _span(evidence)
    x = _inner(x, evidence, 2 * step)
    _, gradient = model.gradient(x, y, margin)
    slopes = _slopes(model, x, y, gradient, step)
    if gradient is None:
        return [_cut("no graph leads from the logits to the input")]
    zero = int((~gradient.isfinite() | (gradient == 0)).flatten(1).all(1).sum())
    if limits.points(zero, len(x)) > 100 * limits.ZERO_SHARE:
        return [_zero(zero, len(x), slopes)]
    found = _disagrees(slopes) or _rough(slopes) or _underflow(model, x, y)
    return [] if found is None else [found]


def _zero(count: int, of: int, slopes: _Slopes) -> Flag:
    if slopes.moves and slopes.roughness < limits.SLOPE_ROUGH:
        steep = float(slopes.wide.abs().mean())
        return _cut(f"it is zero at {count} of {of} inputs, where differences find {steep:.3g}")
    message = f"the gradient of the margin is zero at {count} of {of} inputs"
    fix = "attack through a smooth stand-in for the step that rounds (BPDA), and with square"
    return Flag(code="zero-gradient", message=message, fix=fix)


def _cut(how: str) -> Flag:
    fix = "look for detach, no_grad or another model's graph between the input and the logits"
    return Flag(
        code="gradient-cut", message=f"the gradient does not reach the input: {how}", fix=fix
    )


def _disagrees(slopes: _Slopes) -> Flag | None:
    smooth = slopes.moves and slopes.roughness < limits.SLOPE_ROUGH
    if not smooth or slopes.error <= limits.SLOPE_GAP:
        return None
    told, found = float(slopes.told.abs().mean()), float(slopes.wide.abs().mean())
    return _cut(
        f"it tells of slopes of {told:.3g}, differences find {found:.3g}, and"
        f" {slopes.error:.0%} of both disagree"
    )


def _rough(slopes: _Slopes) -> Flag | None:
    if not slopes.moves or slopes.roughness <= limits.SLOPE_ROUGH:
        return None
    message = (
        f"slopes over {slopes.step:.2g} and over {slopes.step / limits.SLOPE_PART:.2g} differ by"
        f" {slopes.roughness:.0%}: the gradient says nothing of where the function goes"
    )
    fix = "attack with square, and through a smooth stand-in for the rough step (BPDA)"
    return Flag(code="rough-gradient", message=message, fix=fix)


def _underflow(model: Inspected, x: Tensor, y: Tensor) -> Flag | None:
    """The softmax has no gradient left where the margin has one."""
    _, gradient = model.gradient(x, y, cross_entropy)
    if gradient is None:
        return None
    zero = int((gradient == 0).flatten(1).all(1).sum())
    if limits.points(zero, len(x)) <= 100 * limits.ZERO_SHARE:
        return None
    message = (
        f"the gradient of cross-entropy is zero at {zero} of {len(x)} inputs, that of the margin"
        " is not: the logits are too large for the softmax"
    )
    return Flag(code="logit-scale", message=message, fix="attack with the loss margin or dlr")


def _slopes(
    model: Inspected, x: Tensor, y: Tensor, gradient: Tensor | None, step: float
) -> _Slopes:
    told, wide, narrow = [], [], []
    for way in _ways(x, gradient):
        told.append(x.new_zeros(len(x)) if gradient is None else (gradient * way).flatten(1).sum(1))
        wide.append(_difference(model, x, y, way * step) / (2 * step))
        part = step / limits.SLOPE_PART
        narrow.append(_difference(model, x, y, way * part) / (2 * part))
    size = float(model.logits(x).abs().max())
    least = (
        100 * torch.finfo(torch.float32).eps * size * len(x) * len(wide) * limits.SLOPE_PART / step
    )
    return _Slopes(
        told=torch.stack(told),
        wide=torch.stack(wide),
        narrow=torch.stack(narrow),
        step=step,
        least=least,
    )


def _difference(model: Inspected, x: Tensor, y: Tensor, move: Tensor) -> Tensor:
    ahead, behind = (model.logits(moved).double() for moved in (x + move, x - move))
    return margin(ahead, y) - margin(behind, y)


def _ways(x: Tensor, gradient: Tensor | None) -> list[Tensor]:
    """Random signs, and the signs of the gradient if it has any [B, ...]."""
    generator = keyed_generator("soundness", "ways")
    random = torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1
    if gradient is None or not bool((gradient != 0).any()):
        return [random]
    return [random, gradient.sign()]


def _inner(x: Tensor, evidence: Evidence, room: float) -> Tensor:
    """`x` [B, ...] away from the ends of its domain, where models may clip their inputs."""
    domain = evidence.domain
    if domain is None or not math.isfinite(domain.span):
        return x
    return x.clamp(domain.low + room, domain.high - room)


def _step(x: Tensor) -> float:
    """Step of each number of `x` [B, ...], as a share of the range."""
    return min(limits.SLOPE_STEP, limits.SLOPE_LENGTH / math.sqrt(x[0].numel()))


def _span(evidence: Evidence) -> float:
    domain = evidence.domain
    if domain is not None and math.isfinite(domain.span):
        return domain.span
    return float(evidence.x.std().clamp_min(1e-12))


def _apart(one: Tensor, other: Tensor) -> float:
    total = one.abs().sum() + other.abs().sum()
    return float((one - other).abs().sum() / total.clamp_min(1e-30))
