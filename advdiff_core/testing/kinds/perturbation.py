"""Laws of perturbations, on small denoisers of every parametrization and on classifiers."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core.interfaces.perturbation import Perturbation, scale_of
from advdiff_core.math import norms
from advdiff_core.step.plan import rehearse
from advdiff_core.step.probe import ViewProbe
from advdiff_core.testing import bench, casts
from advdiff_core.testing.bench import World, batch_of, seeds, sizes
from advdiff_core.testing.compare import finite, same_bits, same_values
from advdiff_core.testing.findings import NotApplicable, shown, wrong
from advdiff_core.testing.kinds.rigs import worlds
from advdiff_core.testing.law import Laws
from advdiff_core.testing.state import leaves
from advdiff_core.testing.steps import Stage
from advdiff_core.testing.subject import Subject
from advdiff_core.types import Budget, Cost, Noised

__all__ = ["LAWS"]

LAWS = Laws("perturbation")
law = LAWS.law

parametrizations = st.sampled_from(bench.PARAMETRIZATIONS)
schedules = bench.schedules()


def stage(subject: Subject, world: World, **how: Any) -> Stage:
    """A stage with the view "adv" moved by it."""
    return casts.perturbed(subject, world, **how)


def budget_of(made: Stage, shot: casts.Shot) -> Budget:
    """The budget of a shot, asked for again with the same numbers."""
    perturbation = casts.perturbation_of(made)
    probe = ViewProbe(shot.step, "adv")
    budget = perturbation.budget_at(shot.base, probe, shot.step.rng("view/adv"))
    radius = torch.as_tensor(budget.radius, dtype=torch.float64)
    return budget._replace(radius=radius.expand(shot.base.x_t.shape[0]))


@law("inside-the-budget", world=worlds, seed=seeds(), size=sizes(1, 4),
     parametrization=parametrizations, schedule=schedules)  # fmt: skip
def inside_the_budget(  # noqa: PLR0913 - the witness.
    subject: Subject, world: World, seed: int, size: int, parametrization: str, schedule: str
) -> None:
    """Delta is finite and inside the ball, its radius as it says; images stay in their domain."""
    made = stage(subject, world, parametrization=parametrization, schedule=schedule)
    shot = casts.shoot(made, world, size=size, seed=seed)
    view, budget = shot.view, budget_of(made, shot)
    assert isinstance(budget.radius, Tensor)
    finite(budget.radius, what="a radius", mend="bound the radius where the noise vanishes")
    if bool((budget.radius < 0).any()):
        raise wrong("a negative radius", wanted="radii of 0 or more", mend="clamp it at 0")
    if view.delta is None or view.radius is None:
        raise wrong(
            "a view without delta or radius",
            wanted="both recorded",
            mend="leave `perturb` and `apply` to the core",
        )
    finite(
        view.delta, what="delta", mend="divide by norms that cannot be zero (norms.steepest_ascent)"
    )
    scale = scale_of(budget, shot.base, world.data.domain)
    length = norms.norm(view.delta.detach() / scale, budget.norm)
    over = length - budget.radius * (1 + 1e-6)
    if bool((over > 1e-12).any()):
        raise wrong(
            f"a delta of {budget.norm} norm {shown(float(length.max()))}",
            wanted=f"at most its radius {shown(float(budget.radius.max()))}",
            mend="leave `perturb` and `apply` to the core, and return the same budget each time",
        )
    _in_domain(world, view)


def _in_domain(world: World, view: Noised) -> None:
    domain = world.data.domain
    if view.t is None and domain is not None:
        low, high = float(view.x_t.detach().min()), float(view.x_t.detach().max())
        if low < domain.low - 1e-12 or high > domain.high + 1e-12:
            raise wrong(
                f"pixels from {shown(low)} to {shown(high)}",
                wanted=f"inside [{domain.low}, {domain.high}]",
                mend="leave `apply` to the core",
            )


@law("zero-budget-is-identity", world=worlds, seed=seeds(), some=st.booleans())
def zero_budget_is_identity(subject: Subject, world: World, seed: int, some: bool) -> None:
    """Samples of radius zero come out bit for bit, with a delta of zero, beside others or not."""
    made = stage(subject, world, seed=seed)
    perturbation = casts.perturbation_of(made)
    keep = torch.tensor([0.0, 1.0 if some else 0.0, 0.0], dtype=torch.float64)
    _scale_budget(perturbation, keep)
    shot = casts.shoot(made, world, size=3, seed=seed)
    rows, mend = keep == 0, "divide by the radius or a norm only where it is above zero"
    assert shot.view.delta is not None
    same_bits(shot.view.x_t[rows], shot.base.x_t[rows], what="the input at radius zero", mend=mend)
    if shot.base.eps is not None and shot.view.eps is not None:
        same_bits(
            shot.view.eps[rows], shot.base.eps[rows], what="the target at radius zero", mend=mend
        )
    zero = torch.zeros_like(shot.view.delta[rows])
    same_values(shot.view.delta[rows], zero, what="delta at radius zero", atol=0.0, mend=mend)
    finite(shot.view.delta, what="delta beside samples of radius zero", mend=mend)


def _scale_budget(perturbation: Perturbation, factor: Tensor) -> None:
    """Multiply the radius of each sample [B] of an instance by `factor` [B]."""
    original = perturbation.budget_at

    def scaled(noised: Noised, probe: Any, rng: Any) -> Budget:
        budget = original(noised, probe, rng)
        radius = torch.as_tensor(budget.radius, dtype=factor.dtype) * factor
        return budget._replace(radius=radius)

    perturbation.budget_at = scaled  # type: ignore[method-assign]


@law("follows-its-generator", world=worlds, seed=seeds(), index=st.integers(1, 9))
def follows_its_generator(subject: Subject, world: World, seed: int, index: int) -> None:
    """A step repeated gives the same delta bit for bit, whatever happened in between."""
    made = stage(subject, world)
    first = casts.shoot(made, world, size=3, seed=seed).view.x_t
    casts.shoot(made, world, size=3, seed=seed + 1, index=index)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 17)
        again = casts.shoot(made, world, size=3, seed=seed).view.x_t
    same_bits(
        again,
        first,
        what="the perturbed input of a step that is repeated",
        mend="draw from the rng handed to search, and keep nothing from one search to the next",
    )


@law("leaves-everything-alone", world=worlds, seed=seeds())
def leaves_everything_alone(subject: Subject, world: World, seed: int) -> None:
    """A search changes no weight, gradient, flag, global generator, nor the view it starts from."""
    made = stage(subject, world)
    casts.shoot(made, world, size=2, seed=seed)
    modules = [role.module for role in made.scene.roles.values()]
    perturbation = casts.perturbation_of(made)
    held: dict[str, Tensor] = {}
    _watch_inputs(perturbation, held)
    with leaves("a search", *modules):
        shot = casts.shoot(made, world, size=3, seed=seed)
    for name, before in held.items():
        now = getattr(shot.base, name)
        if not torch.equal(before, now):
            raise wrong(
                f"that a search edits {name} of its base view",
                wanted="the view left as it is",
                mend="do not edit in place: write x = x + ..., or clone first",
            )


def _watch_inputs(perturbation: Perturbation, held: dict[str, Tensor]) -> None:
    """Keep copies of the tensors that a search is handed."""
    original = perturbation.budget_at

    def watched(noised: Noised, probe: Any, rng: Any) -> Budget:
        held.update(
            {
                name: value.clone()
                for name, value in noised._asdict().items()
                if isinstance(value, Tensor)
            }
        )
        return original(noised, probe, rng)

    perturbation.budget_at = watched  # type: ignore[method-assign]


@law("samples-are-independent", world=worlds, seed=seeds(), size=sizes(2, 5), cut=st.integers(1, 4))
def samples_are_independent(subject: Subject, world: World, seed: int, size: int, cut: int) -> None:
    """Split into micro-batches, a batch is perturbed as it is whole: draws belong to samples."""
    made = stage(subject, world)
    cut = min(cut, size - 1)
    whole = casts.shoot(made, world, size=size, seed=seed).view.x_t
    parts = [
        casts.shoot(made, world, size=size, seed=seed, rows=rows).view.x_t
        for rows in (slice(0, cut), slice(cut, size))
    ]
    same_values(
        torch.cat(parts),
        whole,
        what="the input perturbed in two parts against whole",
        rtol=1e-6,
        mend="draw with a leading sample axis, and sum objectives over the batch instead of "
        "normalising by it",
    )


@law("cost-as-declared", world=worlds, seed=seeds(), parametrization=parametrizations)
def cost_as_declared(subject: Subject, world: World, seed: int, parametrization: str) -> None:
    """A search runs as many forwards and input-only backwards as `cost()` says."""
    made = stage(subject, world, parametrization=parametrization)
    for role in made.scene.roles.values():
        role.cost = Cost()
    shot = casts.shoot(made, world, size=2, seed=seed)
    planned = rehearse(shot.plan, ["student"]).roles
    for name, role in made.scene.roles.items():
        wanted = planned.get(name, Cost())
        if role.cost != wanted:
            declared = casts.perturbation_of(made).cost()
            raise wrong(
                f"{role.cost.forwards} forwards and {role.cost.input_backwards} backwards of "
                f"{name!r}",
                wanted=f"{wanted.forwards} and {wanted.input_backwards}, as {declared} and `needs` "
                "say",
                mend="count the calls of probe.at(...).get(...) and probe.gradient in cost()",
            )


@law("target-as-declared", world=worlds, seed=seeds(), parametrization=parametrizations,
     schedule=schedules)  # fmt: skip
def target_as_declared(
    subject: Subject, world: World, seed: int, parametrization: str, schedule: str
) -> None:
    """Where the target follows, the moved noise explains the moved input; else it stays."""
    made = stage(subject, world, parametrization=parametrization, schedule=schedule)
    shot = casts.shoot(made, world, size=3, seed=seed)
    base, view = shot.base, shot.view
    mend = "leave `apply` to the core, and set `follows` in __init__"
    same_bits(view.x0, base.x0, what="x0 of the moved view", mend=mend)
    if view.eps is None or base.eps is None or view.alpha is None or view.sigma is None:
        return
    assert view.delta is not None
    if not casts.perturbation_of(made).follows:
        same_bits(
            view.eps, base.eps, what="the target of a perturbation it does not follow", mend=mend
        )
        return
    explained = view.alpha * view.x0 + view.sigma * view.eps
    same_values(explained, view.x_t, what="alpha x0 + sigma eps against x_t", rtol=1e-9, mend=mend)


@law("no-gradient-leaks", world=worlds, seed=seeds())
def no_gradient_leaks(subject: Subject, world: World, seed: int) -> None:
    """The moved view carries no graph, and the component holds none once the search is over."""
    made = stage(subject, world)
    shot = casts.shoot(made, world, size=2, seed=seed)
    perturbation = casts.perturbation_of(made)
    for name, tensor in (("x_t", shot.view.x_t), ("eps", shot.view.eps)):
        graph = tensor is not None and tensor.requires_grad
        if graph and not perturbation.free:
            raise wrong(
                f"a graph behind {name} of the moved view",
                wanted="a constant of the training step",
                mend="detach what search returns",
            )
    kept = [
        k for k, v in vars(perturbation).items() if isinstance(v, Tensor) and v.grad_fn is not None
    ]
    if kept:
        raise wrong(
            f"that it keeps a graph in self.{kept[0]}",
            wanted="nothing kept from a search",
            mend="use local variables; a kept graph holds a whole forward in memory",
        )


@law("survives-a-flat-network", world=worlds, seed=seeds())
def survives_a_flat_network(subject: Subject, world: World, seed: int) -> None:
    """Where every gradient is zero, delta is still finite."""
    made = stage(subject, world, flat=True)
    shot = casts.shoot(made, world, size=3, seed=seed)
    assert shot.view.delta is not None
    finite(
        shot.view.delta,
        what="delta on a network whose gradients are zero",
        mend="normalise with norms.steepest_ascent, which returns zero for a zero gradient",
    )


@law("climbs-what-it-derives", world=worlds, seed=seeds(), parametrization=parametrizations)
def climbs_what_it_derives(subject: Subject, world: World, seed: int, parametrization: str) -> None:
    """A search that asks for gradients ends further up the first of them than it began."""
    made = stage(subject, world, parametrization=parametrization)
    watched = casts.GradientWatch(casts.perturbation_of(made))
    casts.shoot(made, world, size=3, seed=seed)
    if watched.gradient is None or watched.began is None or watched.ended is None:
        message = "it asks the probe for no gradient"
        raise NotApplicable(message)
    moved = (watched.ended - watched.began) * watched.gradient
    if float(moved.sum()) < 0:
        raise wrong(
            "a search that ends down its own gradient",
            wanted="a step uphill: the objective should grow",
            mend="add the step, do not subtract it; minimise by negating the objective",
        )


@law(
    "keeps-its-type",
    world=worlds,
    seed=seeds(),
    dtype=st.sampled_from((torch.float32, torch.float64)),
)
def keeps_its_type(subject: Subject, world: World, seed: int, dtype: torch.dtype) -> None:
    """The moved input has the dtype of the input."""
    shot = casts.shoot(stage(subject, world), world, size=2, seed=seed, dtype=dtype)
    for name, tensor in (("x_t", shot.view.x_t), ("delta", shot.view.delta)):
        if tensor is not None and tensor.dtype != dtype:
            raise wrong(
                f"{name} in {tensor.dtype} for inputs in {dtype}",
                wanted=dtype,
                mend="cast draws and constants: rng.normal(...).to(x_t.dtype)",
            )


@law("free-update", world=worlds, seed=seeds())
def free_update(subject: Subject, world: World, seed: int) -> None:
    """A free perturbation goes up the gradient, whatever its size, and edits nothing."""
    made = stage(subject, world)
    perturbation = casts.perturbation_of(made)
    if not perturbation.free:
        message = "it is not free"
        raise NotApplicable(message)
    x = batch_of(world, seed, 3, dtype=torch.float64).x
    delta, gradient = 0.1 * x, bench.gaussian(seed, x.shape, dtype=torch.float64)
    radius = torch.full((3,), 0.5, dtype=torch.float64)
    budget = budget_of(made, casts.shoot(made, world, size=3, seed=seed))._replace(radius=radius)
    with leaves("update", inputs={"delta": delta, "gradient": gradient}):
        first = perturbation.update(delta, gradient, budget)
    if first.shape != delta.shape:
        raise wrong(
            f"an update of shape {list(first.shape)}",
            wanted=list(delta.shape),
            mend="return one delta per sample",
        )
    larger = perturbation.update(delta, 1000 * gradient, budget)
    same_values(
        norms.project(larger, norm=budget.norm, radius=radius),
        norms.project(first, norm=budget.norm, radius=radius),
        what="the update for a gradient 1000 times as large",
        rtol=1e-6,
        mend="the gradient's size depends on weights and batch: use norms.steepest_ascent",
    )
    finite(
        perturbation.update(delta, torch.zeros_like(gradient), budget),
        what="the update for a zero gradient",
        mend="normalise with norms.steepest_ascent",
    )
    moved = ((first - delta) * gradient).flatten(1).sum(1)
    if bool((moved <= 0).any()):
        raise wrong(
            "an update that goes down the gradient",
            wanted="a step uphill: the loss should grow",
            mend="add the step, do not subtract it",
        )
