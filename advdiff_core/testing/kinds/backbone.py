"""Laws of backbones."""

from __future__ import annotations

import copy
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core.interfaces.backbone import Backbone, BackboneOutput
from advdiff_core.testing.bench import World, batch_of, gaussian, scales, seeds, sizes
from advdiff_core.testing.compare import finite, same_bits, same_values
from advdiff_core.testing.findings import NotApplicable, wrong
from advdiff_core.testing.kinds.rigs import rig, worlds
from advdiff_core.testing.law import Laws
from advdiff_core.testing.modules import LayerWatch, check_double_backward, random_as_declared
from advdiff_core.testing.state import leaves
from advdiff_core.testing.subject import Subject
from advdiff_core.types import TapInfo

__all__ = ["LAWS"]

LAWS = Laws("backbone")
law = LAWS.law


def made(subject: Subject, world: World) -> Backbone:
    """The network in eval mode, built once per world."""
    found: Backbone = subject.memo(("net", world.name), lambda: rig(subject).build(subject, world))
    found.zero_grad()
    return found.eval()


def lively(subject: Subject, world: World) -> Backbone:
    """A copy of the network whose weights all matter: layers that start at zero hide faults."""

    def moved() -> Backbone:
        net = copy.deepcopy(made(subject, world))
        with torch.no_grad():
            for number, parameter in enumerate(net.parameters()):
                parameter.add_(gaussian(number, tuple(parameter.shape), scale=0.1))
        return net

    return subject.memo(("lively", world.name), moved)


def inputs(world: World, seed: int, size: int, scale: float = 1.0) -> dict[str, Any]:
    """A batch as a denoiser gets it: `x` [B, ...], `c_noise` [B], `labels` [B]."""
    x = gaussian(seed, (size, *world.data.shape), scale=scale)
    level = 1000 * torch.sigmoid(gaussian(seed + 1, (size,)))
    return {"x": x, "c_noise": level, "labels": batch_of(world, seed, size).y}


def run(
    net: Backbone, batch: dict[str, Any], rows: slice = slice(None), **how: Any
) -> BackboneOutput:
    """One forward of some rows."""
    labels = None if batch["labels"] is None else batch["labels"][rows]
    made: BackboneOutput = net(batch["x"][rows], batch["c_noise"][rows], labels, **how)
    return made


def output(net: Backbone, batch: dict[str, Any], rows: slice = slice(None)) -> Tensor:
    """Output [B, ...] of a full forward."""
    found = run(net, batch, rows).output
    if found is None:
        raise wrong(
            "no output from a full forward",
            wanted="output [B, ...]",
            mend="return None for the output only if stop_at is given",
        )
    return found


@law("shapes", world=worlds, seed=seeds(), size=sizes(1, 4), labelled=st.booleans())
def shapes(subject: Subject, world: World, seed: int, size: int, labelled: bool) -> None:
    """The output has the shape of `x`, or is logits [B, K]; finite, with labels and without."""
    net, batch = made(subject, world), inputs(world, seed, size)
    if not labelled:
        batch["labels"] = None
    out = output(net, batch)
    if out.shape != batch["x"].shape and not (out.dim() == 2 and out.shape[0] == size):
        raise wrong(
            f"output of shape {list(out.shape)} for x of shape {list(batch['x'].shape)}",
            wanted="the shape of x for a denoiser, [B, K] for a classifier",
            mend="pad, crop or project back to the shape of the input",
        )
    finite(out, what="output", mend="look for divisions and roots at zero")
    variance = run(net, batch).variance
    if variance is not None and variance.shape != out.shape:
        raise wrong(
            f"a variance of shape {list(variance.shape)} for an output of {list(out.shape)}",
            wanted="the shape of the output",
            mend="split mean and variance along the channels",
        )
    if (variance is not None) != net.learns_sigma:
        raise wrong(
            f"learns_sigma = {net.learns_sigma} of a network "
            f"{'with' if variance is not None else 'without'} a variance",
            wanted="the truth: terms and samplers that need a variance ask before the run",
            mend="set self.learns_sigma in the constructor",
        )


@law("taps-as-declared", world=worlds, seed=seeds(), size=sizes(1, 3))
def taps_as_declared(subject: Subject, world: World, seed: int, size: int) -> None:
    """Exactly the taps asked for are returned, of the width and size that are declared."""
    net, batch = made(subject, world), inputs(world, seed, size)
    taps = dict(net.taps)
    if not taps:
        message = "it has no taps"
        raise NotApplicable(message)
    with torch.no_grad():
        features = run(net, batch, taps=tuple(taps)).features
        first = next(iter(taps))
        alone = run(net, batch, taps=(first,)).features
    if set(features) != set(taps) or set(alone) != {first}:
        raise wrong(
            f"features {sorted(features)} and {sorted(alone)}",
            wanted=f"all of {sorted(taps)}, and {first!r} alone",
            mend="put a feature into the dict only if its name is in `taps`",
        )
    for name, info in taps.items():
        _check_tap(name, info, features[name], size)


def _check_tap(name: str, info: TapInfo, feature: Tensor, size: int) -> None:
    images = len(info.size) == 2
    wanted = (size, info.width, *info.size) if images else (size, *info.size, info.width)
    if tuple(feature.shape) != wanted:
        raise wrong(
            f"tap {name!r} of shape {list(feature.shape)}",
            wanted=f"{list(wanted)}, as TapInfo(width={info.width}, size={info.size}) says",
            mend="declare what the tensor has there, or move the tap",
        )


@law("stop-at-is-the-full-forward", world=worlds, seed=seeds(), which=st.integers(0, 999))
def stop_at_is_the_full_forward(subject: Subject, world: World, seed: int, which: int) -> None:
    """Stopped at a tap, features equal those of a full forward, and no later layer runs."""
    net, batch = made(subject, world), inputs(world, seed, 2)
    taps = tuple(net.taps)
    if not taps:
        message = "it has no taps"
        raise NotApplicable(message)
    last = which % len(taps)
    asked = taps[: last + 1]
    with torch.no_grad():
        full = run(net, batch, taps=asked)
        watch = LayerWatch(net)
        with watch:
            early = run(net, batch, taps=asked, stop_at=asked[-1])
    if early.output is not None:
        raise wrong(
            f"an output although told to stop at {asked[-1]!r}",
            wanted="output None",
            mend="return BackboneOutput(None, features) right after the tap",
        )
    for name in asked:
        if name not in early.features:
            raise wrong(
                f"no feature {name!r} when stopped at {asked[-1]!r}",
                wanted="every tap up to there",
                mend="collect features before returning",
            )
        same_bits(
            early.features[name],
            full.features[name],
            what=f"feature {name!r} when stopped early",
            mend="run the same layers up to the tap",
        )
    later = watch.layers_after(early.features[asked[-1]])
    if later:
        raise wrong(
            f"that {len(later)} layers run after {asked[-1]!r}, the first is {later[0]!r}",
            wanted="that nothing runs after the tap it was told to stop at",
            mend="return as soon as the tap named stop_at is there",
        )


@law("samples-are-independent", world=worlds, seed=seeds(), scale=scales(), size=sizes(2, 4))
def samples_are_independent(
    subject: Subject, world: World, seed: int, scale: float, size: int
) -> None:
    """In eval mode the output of a sample depends on that sample alone."""
    net, batch = made(subject, world), inputs(world, seed, size, scale)
    with torch.no_grad():
        whole = output(net, batch)
        for row in range(size):
            same_values(
                whole[row : row + 1], output(net, batch, slice(row, row + 1)), rtol=1e-3, atol=1e-5,
                what=f"the output of sample {row} in a batch against alone",
                mend="no statistics over the batch in eval mode; normalise within a sample",
            )  # fmt: skip


@law("leaves-everything-alone", world=worlds, seed=seeds(), train=st.booleans())
def leaves_everything_alone(subject: Subject, world: World, seed: int, train: bool) -> None:
    """A forward edits no input and no weight, and draws only in train mode and if declared."""
    net, batch = made(subject, world).train(train), inputs(world, seed, 4)
    held = {name: tensor for name, tensor in batch.items() if tensor is not None}
    if train:
        random_as_declared(net, lambda: run(net, batch), held)
        return
    with leaves("a forward in eval mode", net, inputs=held), torch.no_grad():
        run(net, batch)


@law("gradients-arrive", world=worlds, seed=seeds(), scale=scales())
def gradients_arrive(subject: Subject, world: World, seed: int, scale: float) -> None:
    """Gradients reach the input and the weights, and are finite."""
    net, batch = made(subject, world), inputs(world, seed, 3, scale)
    x = batch["x"].requires_grad_()
    out = output(net, batch)
    weights = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if not out.requires_grad:
        raise wrong(
            "an output without a graph",
            wanted="a graph to input and weights",
            mend="remove detach(), no_grad() or .data from the forward",
        )
    found = torch.autograd.grad(out.square().sum(), [x, *weights], allow_unused=True)
    if found[0] is None:
        raise wrong(
            "no gradient towards the input",
            wanted="one: attacks climb it",
            mend="remove detach() from the way of x",
        )
    for gradient in found:
        if gradient is not None:
            finite(gradient, what="a gradient", mend="look for roots and norms at zero")


@law("labels-as-declared", effort=0.5, world=worlds, seed=seeds())
def labels_as_declared(subject: Subject, world: World, seed: int) -> None:
    """Labels change the output exactly if it declares `classes`; so does their absence."""
    net, batch = lively(subject, world), inputs(world, seed, 2)
    if batch["labels"] is None:
        message = "the data have no labels"
        raise NotApplicable(message)
    first = torch.zeros(2, dtype=torch.int64)
    others = (None, first + 1) if net.classes != 1 else (None,)
    with torch.no_grad():
        wanted = output(net, {**batch, "labels": first})
        found = [output(net, {**batch, "labels": labels}) for labels in others]
    if not net.classes and any(not torch.equal(out, wanted) for out in found):
        raise wrong(
            "that labels change the output, with classes = 0",
            wanted="the number of classes whose labels it is told",
            mend="set `self.classes`: guidance and metrics ask for it",
        )
    if net.classes and any(torch.equal(out, wanted) for out in found):
        raise wrong(
            f"the same output with other labels or none, with classes = {net.classes}",
            wanted="an output that depends on the label; None is no label",
            mend="embed the labels, or set `self.classes = 0`",
        )


@law("guidance-as-declared", effort=0.5, world=worlds, seed=seeds())
def guidance_as_declared(subject: Subject, world: World, seed: int) -> None:
    """If it is `guided`, the strength of guidance changes the output; None is a strength of 0."""
    net, batch = lively(subject, world), inputs(world, seed, 2)
    missing = set(net.added) - set(net.state_dict())
    if missing:
        raise wrong(
            f"a tensor {min(missing)!r} in `added` that it has not got",
            wanted="names of its state_dict()",
            mend="write the names that state_dict() gives",
        )
    if not net.guided:
        message = "it is told no strength of guidance"
        raise NotApplicable(message)
    with torch.no_grad():
        plain = output(net, batch)
        zero, strong = (
            run(net, batch, guidance=torch.tensor(w)).output for w in ([0.0, 0.0], [0.0, 7.5])
        )
    if not (isinstance(zero, Tensor) and torch.equal(zero, plain)):
        raise wrong(
            "another output without guidance than with a strength of 0",
            wanted="the same",
            mend="take zeros where guidance is None",
        )
    if not isinstance(strong, Tensor) or torch.equal(strong[1], plain[1]):
        raise wrong(
            "the same output whatever the strength of guidance, with guided = True",
            wanted="an output that depends on it",
            mend="embed `guidance`, or set `guided = False`",
        )
    same_values(
        strong[0], plain[0], rtol=1e-3, atol=1e-5,
        what="the output of a sample when another one is told another strength",
        mend="each sample has a strength of its own: [B], never its mean",
    )  # fmt: skip


@law("double-backward-as-declared", effort=0.5, world=worlds, seed=seeds())
def double_backward_as_declared(subject: Subject, world: World, seed: int) -> None:
    """Gradients of gradients work if it declares so, and only then."""
    net, batch = made(subject, world), inputs(world, seed, 2)
    check_double_backward(
        net, batch["x"], lambda x: output(net, {**batch, "x": x}).square(),
        declared=net.supports_double_backward,
    )  # fmt: skip


@law("channels-last", effort=0.5, world=worlds, seed=seeds())
def channels_last(subject: Subject, world: World, seed: int) -> None:
    """In the channels_last memory format the numbers are the same."""
    if not world.data.is_image:
        return
    net, batch = made(subject, world), inputs(world, seed, 2)
    other: Backbone = subject.memo(
        ("channels_last", world.name),
        lambda: copy.deepcopy(net).to(memory_format=torch.channels_last),
    )
    x = batch["x"].contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        same_values(
            output(other, {**batch, "x": x}), output(net, batch), rtol=1e-3, atol=1e-5,
            what="the output for a channels_last input",
            mend="use reshape or flatten instead of view, and index by axis, not by stride",
        )  # fmt: skip


@law("bf16-autocast", effort=0.5, world=worlds, seed=seeds())
def bf16_autocast(subject: Subject, world: World, seed: int) -> None:
    """Under bf16 autocast it runs, stays finite and near its full-precision output."""
    net, batch = made(subject, world), inputs(world, seed, 2)
    with torch.no_grad():
        wanted = output(net, batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = output(net, batch).float()
    finite(found, what="output under bf16 autocast", mend="keep norms and softmax in float32")
    same_values(
        found,
        wanted,
        what="the output under bf16 autocast",
        rtol=0.1,
        atol=0.05,
        mend="compute embeddings and normalisations in float32",
    )


@law("compiles", slow=True, effort=0.1, world=worlds, seed=seeds())
def compiles(subject: Subject, world: World, seed: int) -> None:
    """Compiled by torch.compile it gives the same numbers."""
    net, batch = made(subject, world), inputs(world, seed, 2)
    run_compiled = subject.memo(("compiled", world.name), lambda: torch.compile(net))
    with torch.no_grad():
        found = run_compiled(batch["x"], batch["c_noise"], batch["labels"]).output
        same_values(
            found, output(net, batch), what="the compiled output", rtol=1e-3, atol=1e-5,
            mend="keep Python numbers and branches on tensors out of forward",
        )  # fmt: skip
