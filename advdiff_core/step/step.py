"""A step: one batch, a memo of queries, and the gradient rules of roles and players."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from advdiff_core.draws import Draws, keyed_generator
from advdiff_core.errors import UndeclaredQueryError
from advdiff_core.interfaces.perturbation import scale_of
from advdiff_core.interfaces.query import Query, input_gradient
from advdiff_core.math import norms
from advdiff_core.step.network import RoleNetwork
from advdiff_core.step.plan import Demand, Phase, Plan, survives
from advdiff_core.step.queries import Forward, View
from advdiff_core.step.scene import Role, Scene, parameters_frozen
from advdiff_core.types import Budget, Cost, Noised, expand

__all__ = ["Place", "TrainStep", "detached"]

T = TypeVar("T")


class Place:
    """Where a micro-batch lies: its step and its rows of the global batch.

    Args:
        index: Number of the step.
        nimg: Images seen before it.
        start: First row in the global batch.
        size: Rows.
        total: Rows of the global batch.
        stream: Prefix of the streams; the player's name for a fresh step.
    """

    __slots__ = ("index", "nimg", "size", "start", "stream", "total")

    def __init__(  # noqa: PLR0913 - six coordinates of a micro-batch.
        self, *, index: int, nimg: int, start: int, size: int, total: int, stream: str = ""
    ) -> None:
        self.index, self.nimg, self.stream = index, nimg, stream
        self.start, self.size, self.total = start, size, total


class TrainStep:
    """The one implementation of `advdiff_core.interfaces.query.Step`.

    Args:
        scene: The static part of the run.
        plan: Plan of the phases that share this step.
        x0: Clean samples [B, ...], placed on the device.
        y: Labels [B] or None.
        place: Where the samples lie.
    """

    def __init__(
        self, scene: Scene, plan: Plan, x0: Tensor, y: Tensor | None, place: Place
    ) -> None:
        self.scene = scene
        self.plan = plan
        self.x0 = x0
        self.y = y
        self.place = place
        self.nimg = place.nimg
        self.own: frozenset[str] = frozenset()
        self.upcoming: frozenset[str] = frozenset()
        self.later: frozenset[str] = frozenset()
        #: Whether a graph built in one phase may be kept for a later one (off with micro-batches).
        self.share = True
        self.probing = False
        self.searching = False
        self.asked: set[Query[Any]] = set()
        self._memo: dict[Query[Any], Any] = {}
        self._depth = 0
        #: Current delta and budget of each free view, kept over the passes of a player.
        self._free: dict[str, tuple[Tensor, Budget]] = {}

    @property
    def setup(self) -> Scene:
        """Roles, views and schedule."""
        return self.scene

    def get(self, query: Query[T]) -> T:
        """The value of a query, computed at most once; see the `Step` protocol."""
        if query not in self.plan.order:
            message = f"{query!r} was asked for but not declared"
            raise UndeclaredQueryError(message, code="P10", fix="list it in `needs`")
        if self._depth == 0:
            self.asked.add(query)
        if query not in self._memo:
            self._depth += 1
            try:
                self._memo[query] = query.compute(self)
            finally:
                self._depth -= 1
        value = self._memo[query]
        if self.probing or query.detached:
            return cast("T", value)
        if self.searching or not self.plan.graph_roles[query] & self.own:
            return cast("T", detached(value))
        return cast("T", value)

    def network(self, role: str) -> RoleNetwork:
        """The counted network of a role."""
        return RoleNetwork(self._role(role), self)

    def rng(self, stream: str) -> Draws:
        """Draws of a stream; the same numbers each time the stream is opened."""
        place = self.place
        key = (self.scene.seed, place.index, place.stream, stream)
        return Draws(
            key, start=place.start, size=place.size, total=place.total, device=self.x0.device
        )

    def at(self, view: str, x: Tensor) -> TrainStep:
        """A probe of this step with the input of `view` replaced by `x` [B, ...]."""
        base = self._memo[View(view)]
        probe = TrainStep(self.scene, self.plan, self.x0, self.y, self.place)
        probe.probing = True
        keep = {q: v for q, v in self._memo.items() if view not in self.plan.views[q]}
        probe._memo = {**keep, View(view): base._replace(x_t=x)}  # noqa: SLF001 - a step of our own.
        return probe

    def demand(self, forward: Forward) -> Demand:
        """What a forward must return."""
        return self.plan.demands[forward]

    def enter(self, phase: Phase, later: Iterable[Phase]) -> None:
        """Begin a player's turn."""
        self.own = phase.roles
        self.later = frozenset().union(*(other.roles for other in later))
        self.upcoming = self.later if self.share else frozenset()

    def leave(self, phase: Phase, *, last: bool) -> None:
        """End a backward pass of a player: forget or detach what it used up."""
        kept = {
            query: value
            for query, value in self._memo.items()
            if survives(self.plan, query, phase, self.later, last=last, share=self.share)
        }
        used = phase.roles
        self._memo = {
            query: detached(value)
            if not query.detached and self.plan.graph_roles[query] & used
            else value
            for query, value in kept.items()
        }

    def perturb(self, name: str) -> Noised:
        """Compute a perturbed view: search under frozen parameters, then project and apply."""
        view = self.scene.views[name]
        perturbation = view.perturbation
        assert view.base is not None
        assert perturbation is not None
        base = self.get(View(view.base))
        domain = self.scene.data.domain if self.scene.data else None
        if name in self._free:
            return self._free_view(name, base)
        # Shared values are computed first, with their graph, before anything is frozen.
        for query in perturbation.needs(view.base):
            self.get(query)
        rng = self.rng(f"view/{name}")
        with parameters_frozen(self._modules(name)):
            self.searching = True
            try:
                moved = perturbation.perturb(base, _Probe(self, view.base, name), rng, domain)
            finally:
                self.searching = False
        if not perturbation.free:
            return moved
        budget = perturbation.budget(base, self.rng(f"view/{name}"))
        self._free[name] = (moved.delta / scale_of(budget, base, domain), budget)
        return self._free_view(name, base)

    def _free_view(self, name: str, base: Noised) -> Noised:
        delta, budget = self._free[name]
        leaf = delta.detach().requires_grad_()
        self._free[name] = (leaf, budget)
        perturbation = self.scene.views[name].perturbation
        assert perturbation is not None
        radius = torch.as_tensor(budget.radius, dtype=torch.float32, device=leaf.device)
        whole = budget._replace(radius=radius.expand(leaf.shape[0]))
        return perturbation.apply(base, leaf, whole, self.scene.data.domain if self.scene.data else None)

    def versions(self) -> dict[Query[Any], int]:
        """How often each memoized tensor was written to; shows edits in place."""
        return {q: v._version for q, v in self._memo.items() if isinstance(v, Tensor)}  # noqa: SLF001

    def ascend(self) -> None:
        """After a backward: give each free perturbation its gradient."""
        for name, (leaf, budget) in self._free.items():
            perturbation = self.scene.views[name].perturbation
            if leaf.grad is None or perturbation is None:
                continue
            proposed = perturbation.update(leaf.detach(), leaf.grad, budget).detach()
            inside = norms.project(proposed, norm=budget.norm, radius=budget.radius)
            self._free[name] = (inside, budget)

    def target(self, role: str) -> Tensor:
        """Features of the clean images from an alignment target, without gradient."""
        found = self._role(role)
        found.count(Cost(forwards=1))
        with torch.no_grad(), self.scene.compute.forward():
            return found.call(self.x0, self.y, self.rng(f"target/{role}")).detach()

    def seed_global(self, role: Role) -> Callable[[], None]:
        """Key torch's global generator for a forward with dropout; returns what puts it back.

        All forwards of a step share their masks, so that views and teachers are compared under the same ones.
        """
        if not (role.random and role.module.training):
            return lambda: None
        device = self.x0.device
        state = torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)
        place = self.place
        generator = keyed_generator(self.scene.seed, place.index, place.start, "dropout")
        torch.manual_seed(generator.initial_seed())
        if device.type == "cpu":
            return lambda: torch.set_rng_state(state)
        return lambda: torch.cuda.set_rng_state(state, device)

    def _role(self, name: str) -> Role:
        return self.scene.roles[name]

    def _modules(self, view: str) -> list[torch.nn.Module]:
        probes = View(view).probes(self.scene)
        roles = sorted(frozenset().union(*(self.plan.value_roles[query] for query in probes)))
        return [self._role(role).module for role in roles]


class _Probe:
    """See `advdiff_core.interfaces.perturbation.Probe`."""

    def __init__(self, step: TrainStep, base: str, view: str) -> None:
        self.step = step
        self.base = base
        self.roles = sorted(
            frozenset().union(*(step.plan.graph_roles[q] for q in View(view).probes(step.scene)))
        )
        self.perturbation = step.scene.views[view].perturbation

    def at(self, delta: Tensor) -> TrainStep:
        noised = self.step.get(View(self.base))
        assert self.perturbation is not None
        domain = self.step.scene.data.domain if self.step.scene.data else None
        unit = self.perturbation.unit
        scale = scale_of(Budget("linf", 0.0, unit), noised, domain)
        return self.step.at(self.base, noised.x_t + delta * scale)

    def gradient(self, objective: Tensor, delta: Tensor) -> Tensor:
        for role in self.roles:
            self.step.scene.roles[role].count(Cost(input_backwards=1))
        return input_gradient(objective, delta)


def detached(value: Any) -> Any:
    """`value` without its graph: tensors, tuples, named tuples, lists and dicts of them."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, tuple):
        parts = [detached(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list):
        return [detached(part) for part in value]
    if isinstance(value, dict):
        return {key: detached(part) for key, part in value.items()}
    return value
