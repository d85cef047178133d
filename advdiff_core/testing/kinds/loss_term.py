"""Laws of loss terms, in the step of a player that has nothing else."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from attrs import evolve
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from advdiff_core.errors import RecipeError
from advdiff_core.interfaces.query import Query
from advdiff_core.step.queries import Noise, Time, View
from advdiff_core.step.values import tensors_in
from advdiff_core.testing import bench, casts
from advdiff_core.testing.bench import World, seeds, sizes
from advdiff_core.testing.compare import finite, same_values
from advdiff_core.testing.findings import NotApplicable, wrong
from advdiff_core.testing.kinds.rigs import rig, worlds
from advdiff_core.testing.law import Laws
from advdiff_core.testing.state import leaves
from advdiff_core.testing.subject import Subject

__all__ = ["LAWS"]

LAWS = Laws("loss_term")
law = LAWS.law

parametrizations = st.sampled_from(bench.PARAMETRIZATIONS)


def schedules(subject: Subject) -> SearchStrategy[str]:
    """Names of the schedules it accepts."""
    return st.sampled_from(subject.memo("schedules", lambda: _accepted(subject)))


def _accepted(subject: Subject) -> tuple[str, ...]:
    fitting = rig(subject).fit(subject)[0]
    if not fitting:
        message = "it does not build: see law 'builds'"
        raise NotApplicable(message)
    return tuple(name for name in bench.SCHEDULES if _takes(subject, fitting[0], name))


def _takes(subject: Subject, world: World, schedule: str) -> bool:
    stage = casts.term_stage(subject, world, schedule=schedule)
    try:
        subject.build(evolve(stage.build, path="terms.tested"))
    except RecipeError:
        return False
    return True


@law("one-loss-per-sample", world=worlds, seed=seeds(), size=sizes(1, 4),
     parametrization=parametrizations, schedule=schedules)  # fmt: skip
def one_loss_per_sample(  # noqa: PLR0913 - the witness.
    subject: Subject, world: World, seed: int, size: int, parametrization: str, schedule: str
) -> None:
    """The loss is [B], of the type of the data, finite and with a graph, for schedules it takes."""
    asked = casts.ask(
        subject, world, size=size, seed=seed, parametrization=parametrization, schedule=schedule
    )
    loss = asked.loss
    if not isinstance(loss, Tensor) or tuple(loss.shape) != (size,):
        shape = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise wrong(
            f"a loss of shape {shape} for {size} samples",
            wanted=f"[B] = [{size}]",
            mend="return .flatten(1).mean(1): the core alone reduces over the batch",
        )
    if not loss.is_floating_point():
        raise wrong(f"a loss in {loss.dtype}", wanted="floating point", mend="cast it")
    finite(loss, what="a loss", mend="bound weights where noise or signal vanishes")
    if not loss.requires_grad:
        raise wrong(
            "a loss without a graph",
            wanted="one that trains something",
            mend="do not detach what is trained; name a role that is not frozen",
        )


@law("needs-equals-asked", world=worlds, seed=seeds())
def needs_equals_asked(subject: Subject, world: World, seed: int) -> None:
    """`forward` asks the step for just what `needs` declares."""
    asked = casts.ask(subject, world, size=2, seed=seed)
    declared, read = set(asked.term.needs), asked.step.asked
    unused = declared - read
    if unused:
        raise wrong(
            f"that {next(iter(unused))!r} is declared and never asked for",
            wanted="`needs` that lists what forward reads",
            mend="take it out of `needs`: the step would pay for it",
        )


@law("edits-nothing", world=worlds, seed=seeds(), parametrization=parametrizations)
def edits_nothing(subject: Subject, world: World, seed: int, parametrization: str) -> None:
    """A term edits no tensor, weight or gradient, and draws from no global generator."""
    asked = casts.ask(subject, world, size=3, seed=seed, parametrization=parametrization)
    step, term = asked.step, asked.term
    values = {q: [t.detach().clone() for t in tensors_in(v)] for q, v in step._memo.items()}
    modules = [role.module for role in step.scene.roles.values()]
    with leaves("asking for the loss", term, *modules, inputs={"x0": step.x0}):
        term(step)
    for query, before in values.items():
        now = list(tensors_in(step._memo[query]))
        if any(not torch.equal(a, b.detach()) for a, b in zip(before, now, strict=True)):
            raise wrong(
                f"that a forward edits {query!r} in place",
                wanted="shared values left as they are",
                mend="write x = x + ..., or clone first: other terms read the same tensor",
            )


@law("gradients-are-finite", world=worlds, seed=seeds(), parametrization=parametrizations,
     schedule=schedules)  # fmt: skip
def gradients_are_finite(
    subject: Subject, world: World, seed: int, parametrization: str, schedule: str
) -> None:
    """The gradient towards the trained weights is finite, and some of it is not zero."""
    asked = casts.ask(
        subject, world, size=3, seed=seed, parametrization=parametrization, schedule=schedule
    )
    roles = asked.step.scene.roles.values()
    modules = [asked.term, *(role.module for role in roles if role.owner is not None)]
    weights = [p for module in modules for p in module.parameters() if p.requires_grad]
    if not asked.loss.requires_grad:
        message = "its loss has no graph: see law 'one-loss-per-sample'"
        raise NotApplicable(message)
    found = torch.autograd.grad(asked.loss.sum(), weights, allow_unused=True)
    known = [gradient for gradient in found if gradient is not None]
    for gradient in known:
        finite(gradient, what="a gradient", mend="look for roots and norms at zero")
    if not any(bool((gradient != 0).any()) for gradient in known):
        raise wrong(
            "a gradient of zero for every trained weight",
            wanted="a term that trains something",
            mend="do not detach what is trained, nor round or clamp it away",
        )


@law("samples-are-independent", world=worlds, seed=seeds(), size=sizes(2, 5))
def samples_are_independent(subject: Subject, world: World, seed: int, size: int) -> None:
    """The loss of a sample does not depend on the others: micro-batches change nothing."""
    whole = casts.ask(subject, world, size=size, seed=seed).loss
    cut = size // 2
    parts = [
        casts.ask(subject, world, size=size, seed=seed, rows=rows).loss
        for rows in (slice(0, cut), slice(cut, size))
    ]
    same_values(
        torch.cat([part.reshape(-1) for part in parts]),
        whole.reshape(-1),
        what="losses of a batch in two parts against whole",
        rtol=1e-8,
        atol=1e-10,
        mend="no means, sorts or norms over the batch; draw with a leading sample axis",
    )


@law("follows-the-order-of-samples", world=worlds, seed=seeds(),
     order=st.sampled_from(tuple(itertools.permutations(range(3)))))  # fmt: skip
def follows_the_order_of_samples(
    subject: Subject, world: World, seed: int, order: tuple[int, ...]
) -> None:
    """Samples in another order have the same losses, in that order."""
    asked = casts.ask(subject, world, size=3, seed=seed)
    step, rows = asked.step, list(order)
    given: dict[Query[Any], Any] = {
        query: _permuted(value, rows)
        for query, value in step._memo.items()
        if isinstance(query, Time | Noise | View)
    }
    stage = step.scene
    y = None if step.y is None else step.y[rows]
    again = casts.step_like(step, step.x0[rows], y)
    again._memo.update(given)
    if any(info.kind == "alignment_target" for info in stage.models.values()):
        again._memo.update({q: _permuted(v, rows) for q, v in step._memo.items() if q.detached})
    opened: list[str] = []
    original = again.rng
    # Queries of its own may draw, too: watched where they are computed anew.
    again.rng = lambda stream: opened.append(stream) or original(stream)  # type: ignore
    turned = asked.term(again)
    if opened:
        message = "it draws numbers, which belong to places in the batch"
        raise NotApplicable(message)
    same_values(
        turned,
        asked.loss[rows],
        what="losses of samples in another order",
        rtol=1e-8,
        atol=1e-10,
        mend="treat samples alike: no positions, no state from one sample to the next",
    )


def _permuted(value: Any, rows: list[int]) -> Any:
    """A value with its samples in another order."""
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_permuted(part, rows) for part in value))
    return value


@law("repeats-itself", world=worlds, seed=seeds())
def repeats_itself(subject: Subject, world: World, seed: int) -> None:
    """Asked again about the same batch, also after another one, it returns the same loss."""
    asked = casts.ask(subject, world, size=3, seed=seed)
    stage = casts.term_stage(subject, world)
    other = bench.batch_of(world, seed + 1, 3, dtype=torch.float64)
    asked.term(casts.term_step(stage, asked.term, other.x, other.y, 0, 3))
    same_values(
        asked.term(asked.step),
        asked.loss,
        what="the loss of a batch asked for again",
        rtol=1e-12,
        atol=0.0,
        mend="keep nothing from one step to the next; draw from step.rng alone",
    )
