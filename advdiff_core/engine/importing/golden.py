"""A golden forward: what a network with imported weights computes, to be compared ever after.

Shapes alone do not tell 4 heads from 8, nor ReLU from SiLU; the output of a forward does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from attrs import frozen
from torch import Tensor

from advdiff_core.draws import Draws
from advdiff_core.errors import AdvdiffError, DataError
from advdiff_core.interfaces.backbone import Backbone
from advdiff_core.types import DataInfo, Domain

__all__ = ["TOLERANCE", "Golden", "check_golden", "make_golden", "moved_domain"]

#: Largest difference from the golden output, as a share of its largest magnitude: sums in another
#: order differ by 1e-5, another activation or number of heads by far more than 1e-2.
TOLERANCE = 1e-3
_BATCH = 2


@frozen(kw_only=True)
class Golden:
    """Inputs of a forward and its output.

    Attributes:
        x: Input [B, ...].
        c_noise: Noise-level input [B]; None for a classifier.
        labels: Class labels [B]; None for a classifier, or data without classes.
        output: Output [B, ...], float32.
    """

    x: Tensor
    c_noise: Tensor | None
    labels: Tensor | None
    output: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """The parts that are there, by name."""
        parts = {"x": self.x, "c_noise": self.c_noise, "labels": self.labels}
        found = {name: part for name, part in parts.items() if part is not None}
        return {**found, "output": self.output}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], where: str) -> Golden:
        """From tensors by name, any shape.

        Raises:
            DataError: S12 if x or output is missing, or there is another name.
        """
        known = {"x", "c_noise", "labels", "output"}
        if not {"x", "output"} <= set(tensors) <= known:
            found = ", ".join(sorted(tensors)) or "none"
            message = f"holds {found}, wanted x and output, and c_noise and labels where used"
            raise DataError(message, code="S12", where=where)
        optional = {name: tensors.get(name) for name in ("c_noise", "labels")}
        return cls(x=tensors["x"], output=tensors["output"], **optional)


def make_golden(
    network: Backbone, data: DataInfo, *, c_noise: tuple[float, float], denoiser: bool | None
) -> Golden:
    """Run a network on seeded inputs, on the CPU, in eval mode.

    Args:
        network: With its weights.
        data: Shape, domain and classes of its inputs.
        c_noise: Range of its noise-level input.
        denoiser: False for a classifier, which sees neither noise level nor labels; None to tell
            by the output, a vector for each image being that of a classifier.

    Raises:
        DataError: S12 if the output is not finite.
    """
    draws = Draws(("import", "golden"), start=0, size=_BATCH, total=_BATCH, device="cpu")
    x = _inputs(draws, data)
    levels = torch.linspace(*c_noise, _BATCH + 2)[1:-1]
    labels = draws.integers([_BATCH], 0, data.classes) if data.classes else None
    plain = (x, None, None)
    inputs = plain if denoiser is False else (x, levels, labels)
    output = _forward(network, *inputs)
    if denoiser is None and data.is_image and output.ndim == 2:
        inputs, output = plain, _forward(network, *plain)
    if not output.isfinite().all():
        message = "the output of the network with these weights is not finite"
        raise DataError(message, code="S12", where="golden forward", fix="check the settings (-s)")
    return Golden(x=x, c_noise=inputs[1], labels=inputs[2], output=output)


def _inputs(draws: Draws, data: DataInfo) -> Tensor:
    shape = [_BATCH, *data.shape]
    if not _is_finite(data.domain):
        return draws.normal(shape)
    assert data.domain is not None
    return draws.uniform(shape, data.domain.low, data.domain.high)


def check_golden(network: Backbone, golden: Golden, *, where: str, fix: str) -> float:
    """Run a network on golden inputs and compare.

    Args:
        network: With its weights, on the CPU.
        golden: Inputs and output.
        where: What is checked, for messages.
        fix: The mend, for messages.

    Returns:
        The largest difference, as a share of the largest magnitude of the golden output.

    Raises:
        DataError: S11 if it is above `TOLERANCE`, or the shapes differ.
    """
    output = _forward(network, golden.x, golden.c_noise, golden.labels)
    wanted = golden.output.float()
    if output.shape != wanted.shape:
        found = f"an output {list(output.shape)} instead of {list(wanted.shape)}"
        raise DataError(f"the golden forward gives {found}", code="S11", where=where, fix=fix)
    scale = wanted.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    error = float(((output - wanted).abs().max() / scale).nan_to_num(torch.inf))
    if error > TOLERANCE:
        message = (
            f"the golden forward differs by {error:.2g} of its largest value, at most "
            f"{TOLERANCE:g} is rounding: this network computes something else"
        )
        raise DataError(message, code="S11", where=where, fix=fix)
    return error


def moved_domain(golden: Golden, before: Domain | None, now: Domain | None) -> Golden:
    """The same images in another domain, for a classifier, which normalises by its data's.

    A denoiser sees scaled noise, whatever the domain: its input stays.

    Args:
        golden: Inputs [B, ...] in the domain `before`.
        before: Domain of the data it was made for.
        now: Domain of the data at hand.
    """
    if golden.c_noise is not None or not (_is_finite(before) and _is_finite(now)):
        return golden
    assert before is not None
    assert now is not None
    x = now.low + (golden.x - before.low) / before.span * now.span
    return Golden(x=x, c_noise=None, labels=golden.labels, output=golden.output)


def _is_finite(domain: Domain | None) -> bool:
    """True for pixels; points and latents have no range."""
    return domain is not None and math.isfinite(domain.span)


@contextmanager
def _evaluating(network: Backbone) -> Iterator[None]:
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _forward(network: Backbone, x: Tensor, c_noise: Tensor | None, labels: Tensor | None) -> Tensor:
    with _evaluating(network):
        try:
            output = network(x, c_noise, labels).output
        except AdvdiffError:
            raise
        except Exception as error:
            message = f"the network cannot run on these inputs: {type(error).__name__}: {error}"
            fix = "check --shape and --classes, and the settings (-s)"
            raise DataError(message, code="S11", where="golden forward", fix=fix) from error
    assert output is not None, "a forward without stop_at has an output"
    return output.float()
