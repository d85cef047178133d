"""A step: one batch, a memo of queries, and the gradient rules of roles and players."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from advdiff_core.draws import Draws, keyed_generator
from advdiff_core.errors import UndeclaredQueryError
from advdiff_core.interfaces.perturbation import scale_of
from advdiff_core.interfaces.query import Mode, Query
from advdiff_core.math import norms
from advdiff_core.step.network import RoleNetwork
from advdiff_core.step.plan import Demand, Phase, Plan, survives
from advdiff_core.step.probe import ViewProbe
from advdiff_core.step.queries import Forward, View
from advdiff_core.step.scene import Role, Scene, parameters_frozen
from advdiff_core.step.values import detached, tensors_in
from advdiff_core.types import Budget, Cost, Domain, Noised

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
        #: What augmentations did to the samples [B, A], for networks that are told; or None.
        self.c_augment: Tensor | None = None
        self.nimg = place.nimg
        self.own: frozenset[str] = frozenset()
        self.upcoming: frozenset[str] = frozenset()
        self.later: frozenset[str] = frozenset()
        #: Whether a graph built in one phase may be kept for a later one (off with micro-batches).
        self.share = True
        #: Times that the weights have moved since the player at hand began.
        self.moved = 0
        self.probing = False
        self.searching = False
        self.asked: set[Query[Any]] = set()
        self._memo: dict[Query[Any], Any] = {}
        self._writes: dict[Query[Any], int] = {}
        self._computing: list[Query[Any]] = []
        #: What may be asked now; None for every query of the plan.
        self._allowed: tuple[Query[Any], ...] | None = None
        #: Current delta and budget of each free view, kept over the passes of a player.
        self._free: dict[str, tuple[Tensor, Budget]] = {}

    @property
    def setup(self) -> Scene:
        """Roles, views and schedule."""
        return self.scene

    @property
    def domain(self) -> Domain | None:
        """Range of valid values of the data."""
        return self.scene.data.domain if self.scene.data is not None else None

    @property
    def computing(self) -> bool:
        """True while a query computes its value."""
        return bool(self._computing)

    def get(self, query: Query[T]) -> T:
        """The value of a query, computed at most once; see the `Step` protocol."""
        if query not in (self.plan.order if self._allowed is None else self._allowed):
            self._refuse(query)
        if not self._computing:
            self.asked.add(query)
        if query not in self._memo:
            self._compute(query)
        value = self._memo[query]
        if self.probing or query.detached or self._has_graph(query):
            return cast("T", value)
        return cast("T", detached(value))

    def _has_graph(self, query: Query[Any]) -> bool:
        """Whether the asker may see the graph of a value."""
        if self.searching:
            return False
        reached = self.plan.graph_roles
        if reached[query] & self.own or self.plan.views[query] & self.plan.free_views:
            return True
        # A value of a later player alone is built whole; the player at hand gets it detached.
        return self.computing and not reached[self._computing[-1]] & self.own

    def _compute(self, query: Query[Any]) -> None:
        allowed, self._allowed = self._allowed, self.plan.needs[query]
        self._computing.append(query)
        try:
            value = query.compute(self)
        finally:
            self._computing.pop()
            self._allowed = allowed
        free = self.plan.views[query] & self.plan.free_views
        self._memo[query] = detached(value) if query.detached and not free else value
        self._writes[query] = _writes(value)

    def _refuse(self, query: Query[Any]) -> None:
        asker = f" by {self._computing[-1]!r}" if self._computing else ""
        message = f"{query!r} was asked for{asker} but not declared"
        fix = "list it in `probes`" if self.probing and not asker else "list it in `needs`"
        raise UndeclaredQueryError(message, code="P10", fix=fix)

    def network(self, role: str, *, mode: Mode = "train") -> RoleNetwork:
        """The counted network of a role; see the `Step` protocol."""
        return RoleNetwork(self._role(role), self, mode)

    def rng(self, stream: str) -> Draws:
        """Draws of a stream; the same numbers each time the stream is opened."""
        place = self.place
        key = (self.scene.seed, place.index, place.stream, stream)
        return Draws(
            key, start=place.start, size=place.size, total=place.total, device=self.x0.device
        )

    def at(
        self,
        view: str,
        x: Tensor,
        *,
        eps: Tensor | None = None,
        allowed: tuple[Query[Any], ...] | None = None,
    ) -> TrainStep:
        """A probe of this step with the input of `view` replaced by `x` [B, ...].

        Args:
            view: Name of the view.
            x: Its input [B, ...].
            eps: The noise that is its target there [B, ...]; None for that of the view.
            allowed: What the probe may be asked; None for every query of the plan.
        """
        base = self.get(View(view))
        probe = TrainStep(self.scene, self.plan, self.x0, self.y, self.place)
        probe.c_augment, probe.moved = self.c_augment, self.moved
        probe.probing, probe._allowed, probe._free = True, allowed, dict(self._free)
        # What does not depend on the moved input is a constant of the search.
        keep = {q: detached(v) for q, v in self._memo.items() if view not in self.plan.views[q]}
        moved = base._replace(x_t=x, eps=base.eps if eps is None else eps)
        probe._memo = {**keep, View(view): moved}
        return probe

    def demand(self, forward: Forward) -> Demand:
        """What a forward must return."""
        return self.plan.demands[forward]

    def enter(self, phase: Phase, later: Iterable[Phase]) -> None:
        """Begin a player's turn."""
        self.own, self.moved = phase.roles, 0
        self.later = frozenset().union(*(other.roles for other in later))
        self.upcoming = self.later if self.share else frozenset()

    def prepare(self, needs: tuple[Query[Any], ...]) -> None:
        """Compute what the terms of a pass will ask for, in the plan's order."""
        for query in self.plan.in_order(needs):
            if query not in self._memo:
                self._compute(query)

    def leave(self, phase: Phase, *, last: bool) -> None:
        """End a backward pass of a player: forget or detach what it used up."""
        if phase.moves and not last:
            self.moved += 1

        def spent(query: Query[Any]) -> bool:
            if last and self.plan.views[query] & self.plan.free_views:
                return True
            return not query.detached and bool(self.plan.graph_roles[query] & phase.roles)

        self._memo = {
            query: detached(value) if spent(query) else value
            for query, value in self._memo.items()
            if survives(self.plan, query, phase, self.later, last=last, share=self.share)
        }

    def perturb(self, name: str) -> Noised:
        """Compute a perturbed view: search under frozen parameters, then project and apply."""
        view = self.scene.views[name]
        perturbation = view.perturbation
        assert view.base is not None
        assert perturbation is not None
        base = self.get(View(view.base))
        if name in self._free:
            return self._free_view(name, base)
        # Shared values are computed first, with their graph, before anything is frozen.
        for query in perturbation.needs(view.base):
            self.get(query)
        moved = self._search(name, base)
        if not perturbation.free:
            return moved
        assert moved.delta is not None
        assert moved.radius is not None
        budget = perturbation.budget_at(base, ViewProbe(self, name), self.rng(f"view/{name}"))
        budget = budget._replace(radius=moved.radius)
        self._free[name] = (moved.delta / scale_of(budget, base, self.domain), budget)
        return self._free_view(name, base)

    def _search(self, name: str, base: Noised) -> Noised:
        perturbation = self.scene.views[name].perturbation
        assert perturbation is not None
        modules = self._probed_modules(name)
        rng, probe = self.rng(f"view/{name}"), ViewProbe(self, name)
        with torch.enable_grad(), parameters_frozen(modules, statistics=True):
            self.searching = True
            try:
                return perturbation.perturb(base, probe, rng, self.domain)
            finally:
                self.searching = False

    def _free_view(self, name: str, base: Noised) -> Noised:
        delta, budget = self._free[name]
        leaf = delta.detach().requires_grad_()
        self._free[name] = (leaf, budget)
        perturbation = self.scene.views[name].perturbation
        assert perturbation is not None
        return perturbation.apply(base, leaf, budget, self.domain)

    def ascend(self) -> None:
        """After a backward: give each free perturbation its gradient."""
        for name, (leaf, budget) in self._free.items():
            perturbation = self.scene.views[name].perturbation
            if leaf.grad is None or perturbation is None:
                continue
            proposed = perturbation.update(leaf.detach(), leaf.grad, budget).detach()
            inside = norms.project(proposed, norm=budget.norm, radius=budget.radius)
            self._free[name] = (inside, budget)

    def edited(self) -> list[Query[Any]]:
        """Queries whose value was written to in place since it was computed; asked ones first."""
        found = [q for q, value in self._memo.items() if _writes(value) != self._writes.get(q)]
        return sorted(found, key=lambda query: query not in self.asked)

    def target(self, role: str) -> Tensor:
        """Features of the clean images from an alignment target, without gradient."""
        found = self._role(role)
        found.count(Cost(forwards=1))
        with torch.no_grad(), self.scene.compute.forward():
            features: Tensor = found.call(self.x0, self.y, self.rng(f"target/{role}"))
        return features.detach()

    def seed_global(self, role: Role) -> Callable[[], None]:
        """Key torch's global generator for a forward that draws from it; returns what undoes that.

        All forwards of a step share their masks: views are compared under the same ones. Weights
        that have moved get others, as they would in a step of their own.
        """
        if not (role.random and role.module.training):
            return lambda: None
        generator = global_generator(self.x0.device)
        state, place = generator.get_state(), self.place
        stream = f"dropout/{self.moved}" if self.moved else "dropout"
        key = keyed_generator(self.scene.seed, place.index, place.start, stream)
        generator.manual_seed(key.initial_seed())

        def restore() -> None:
            generator.set_state(state)

        return restore

    def _role(self, name: str) -> Role:
        return self.scene.roles[name]

    def _probed_modules(self, view: str) -> list[torch.nn.Module]:
        probes = View(view).probes(self.scene)
        roles = sorted(frozenset().union(*(self.plan.value_roles[query] for query in probes)))
        return [self._role(role).module for role in roles]


def _writes(value: Any) -> int:
    """How often the tensors of a value have been written to."""
    return sum(tensor._version for tensor in tensors_in(value))


def global_generator(device: torch.device) -> torch.Generator:
    """Torch's own generator of a device."""
    if device.type != "cuda":
        return torch.default_generator
    index = device.index if device.index is not None else torch.cuda.current_device()
    return torch.cuda.default_generators[index]
