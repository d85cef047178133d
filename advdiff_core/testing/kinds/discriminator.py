"""Laws of discriminators."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core.interfaces.discriminator import Discriminator
from advdiff_core.testing.bench import World, batch_of, scales, seeds, sizes
from advdiff_core.testing.compare import finite, same_values
from advdiff_core.testing.findings import wrong
from advdiff_core.testing.kinds.rigs import rig, worlds
from advdiff_core.testing.law import Laws
from advdiff_core.testing.modules import check_double_backward, random_as_declared
from advdiff_core.testing.state import leaves
from advdiff_core.testing.subject import Subject

__all__ = ["LAWS"]

LAWS = Laws("discriminator")
law = LAWS.law


def made(subject: Subject, world: World) -> Discriminator:
    """The discriminator in eval mode, built once per world."""
    found: Discriminator = subject.memo(
        ("net", world.name), lambda: rig(subject).build(subject, world)
    )
    found.zero_grad()
    return found.eval()


@law("one-row-per-sample", world=worlds, seed=seeds(), size=sizes(1, 4))
def one_row_per_sample(subject: Subject, world: World, seed: int, size: int) -> None:
    """Logits have the batch as their first axis and are finite, also for one sample."""
    net, batch = made(subject, world), batch_of(world, seed, size)
    for name, labels in (("labels", batch.y), ("no labels", None)):
        scores = net(batch.x, labels=labels)
        if scores.dim() < 1 or scores.shape[0] != size:
            raise wrong(
                f"logits of shape {list(scores.shape)} for {size} samples with {name}",
                wanted="[B, ...], a row or more numbers per sample",
                mend="keep the batch axis first, and reduce over the others only",
            )
        finite(scores, what="logits", mend="look for a division by a batch statistic")


@law("samples-are-independent", world=worlds, seed=seeds(), scale=scales(), size=sizes(2, 5))
def samples_are_independent(
    subject: Subject, world: World, seed: int, scale: float, size: int
) -> None:
    """In eval mode the logits of a sample depend on the sample and its reference alone."""
    net, batch = made(subject, world), batch_of(world, seed, size, scale=scale)
    reference = batch_of(world, seed + 1000, size).x
    whole = net(batch.x, reference=reference, labels=batch.y)
    for row in range(size):
        part = slice(row, row + 1)
        labels = None if batch.y is None else batch.y[part]
        alone = net(batch.x[part], reference=reference[part], labels=labels)
        same_values(
            whole[part], alone, what=f"the logits of sample {row} in a batch against alone",
            rtol=1e-3, atol=1e-5,
            mend="no statistics over the batch in eval mode (batch norm, minibatch discrimination)",
        )  # fmt: skip


@law("leaves-everything-alone", world=worlds, seed=seeds(), train=st.booleans())
def leaves_everything_alone(subject: Subject, world: World, seed: int, train: bool) -> None:
    """A forward edits no input, no weight, and draws no number it does not declare."""
    net, batch = made(subject, world).train(train), batch_of(world, seed, 4)
    reference = batch_of(world, seed + 1, 4).x
    inputs = {"x": batch.x, "reference": reference}
    for compared in (None, reference):

        def run(compared: Tensor | None = compared) -> Tensor:
            scores: Tensor = net(batch.x, reference=compared, labels=batch.y)
            return scores

        if train:
            random_as_declared(net, run, inputs)
        else:
            with leaves("a forward in eval mode", net, inputs=inputs):
                run()


@law("gradients-arrive", world=worlds, seed=seeds(), scale=scales())
def gradients_arrive(subject: Subject, world: World, seed: int, scale: float) -> None:
    """Gradients reach the input and the weights, and are finite."""
    net, batch = made(subject, world), batch_of(world, seed, 3, scale=scale)
    x = batch.x.requires_grad_()
    scores: Tensor = net(x, labels=batch.y)
    weights = [p for p in net.parameters() if p.requires_grad]
    if not scores.requires_grad:
        raise wrong(
            "logits without a graph",
            wanted="a graph to input and weights",
            mend="remove detach(), no_grad() or .data from the forward",
        )
    found = torch.autograd.grad(scores.sum(), [x, *weights], allow_unused=True)
    if found[0] is None:
        raise wrong(
            "no gradient towards the input",
            wanted="one: generators learn from it",
            mend="remove detach() from the way of x",
        )
    for gradient in found:
        if gradient is not None:
            finite(gradient, what="a gradient", mend="look for square roots and norms at zero")


@law("double-backward-as-declared", world=worlds, seed=seeds())
def double_backward_as_declared(subject: Subject, world: World, seed: int) -> None:
    """A penalty on the input gradient (R1) can be trained if it declares so, and only then."""
    net, batch = made(subject, world), batch_of(world, seed, 3)
    declared = net.supports_double_backward
    check_double_backward(net, batch.x, lambda x: net(x, labels=batch.y), declared=declared)
