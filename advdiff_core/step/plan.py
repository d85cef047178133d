"""The plan: everything that can be known of a step before the run.

From the queries that terms declare it derives which queries are allowed, which taps each forward must return,
which roles a value depends on, and, by rehearsing the phases without tensors, how many network passes a step costs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attrs import define, field, frozen

from advdiff_core.errors import PluginError
from advdiff_core.interfaces.query import Query, Setup
from advdiff_core.step.queries import Features, Forward, View
from advdiff_core.types import Cost

__all__ = ["Demand", "Phase", "Plan", "StepCost", "rehearse"]


@frozen
class Demand:
    """What a forward must return.

    Attributes:
        taps: Union of the taps asked for, in the network's order.
        stop_at: Last tap needed when nobody asks for the output; None for a full forward.
    """

    taps: tuple[str, ...] = ()
    stop_at: str | None = None


@frozen(kw_only=True)
class Phase:
    """A player's turn within a step.

    Attributes:
        player: Name of the player.
        roles: Roles it trains.
        needs: Queries of its terms, term by term in order.
        every: Takes part in every n-th step.
        passes: Backward passes per batch.
        moves: Whether the weights move after each pass, not only after the last.
        fresh: Has a step of its own instead of the shared one.
    """

    player: str
    roles: frozenset[str]
    needs: tuple[Query[Any], ...]
    every: int = 1
    passes: int = 1
    moves: bool = True
    fresh: bool = False


class Plan:
    """Closure of the declared queries of the phases that share a step.

    Args:
        phases: Phases in the order they run.
        setup: Roles, views and schedule.

    Raises:
        PluginError: If queries need each other in a circle, or a tap or role does not exist.
    """

    def __init__(self, phases: Iterable[Phase], setup: Setup) -> None:
        self.phases = tuple(phases)
        self.setup = setup
        self.order: dict[Query[Any], tuple[Query[Any], ...]] = {}
        for phase in self.phases:
            for query in phase.needs:
                self._visit(query, ())
        #: Roles that a value depends on through a graph: a backward from it can reach them.
        self.graph_roles: dict[Query[Any], frozenset[str]] = {}
        #: Roles whose weights a value depends on in any way.
        self.value_roles: dict[Query[Any], frozenset[str]] = {}
        #: Views whose input a value depends on.
        self.views: dict[Query[Any], frozenset[str]] = {}
        for query, needs in self.order.items():
            self._trace(query, needs)
        #: Views whose perturbation learns from the training backward.
        self.free_views = frozenset(
            name
            for name, view in setup.views.items()
            if view.perturbation is not None and view.perturbation.free
        )
        self.demands = self._find_demands()

    def _visit(self, query: Query[Any], path: tuple[Query[Any], ...]) -> None:
        if query in path:
            circle = " -> ".join(map(repr, (*path[path.index(query) :], query)))
            raise PluginError(f"queries need each other in a circle: {circle}", code="P10")
        if query in self.order:
            return
        self._check_names(query)
        needs = query.needs(self.setup)
        probes = query.probes(self.setup) if isinstance(query, View) else ()
        for needed in (*needs, *probes):
            self._visit(needed, (*path, query))
        self.order[query] = (*needs, *probes)

    def _check_names(self, query: Query[Any]) -> None:
        roles, views = self.setup.models, self.setup.views
        role, view = getattr(query, "role", None), getattr(query, "view", None)
        if isinstance(role, str) and role not in roles:
            message = f"{query!r} asks for the role {role!r}; the recipe has {', '.join(roles) or 'none'}"
            raise PluginError(message, code="R10", fix=f"declare [models.{role}]")
        view = query.name if isinstance(query, View) else view
        if isinstance(view, str) and view not in views:
            message = f"{query!r} asks for the view {view!r}; the recipe has {', '.join(views)}"
            raise PluginError(message, code="R10", fix=f"declare [views.{view}]")
        if isinstance(query, Features) and query.tap not in roles[query.role].taps:
            taps = ", ".join(roles[query.role].taps) or "none"
            message = f"role {query.role!r} has no tap {query.tap!r}; it has {taps}"
            raise PluginError(message, code="R10", fix="choose one of these")

    def _trace(self, query: Query[Any], needs: tuple[Query[Any], ...]) -> None:
        own = frozenset(query.forwards(self.setup))
        below = [self.value_roles[needed] for needed in needs]
        self.value_roles[query] = own.union(*below)
        graph = [self.graph_roles[needed] for needed in needs]
        self.graph_roles[query] = frozenset() if query.detached else own.union(*graph)
        views = {query.name} if isinstance(query, View) else set()
        self.views[query] = frozenset(views).union(*(self.views[needed] for needed in needs))

    def _find_demands(self) -> dict[Forward, Demand]:
        taps: dict[Forward, set[str]] = {q: set() for q in self.order if isinstance(q, Forward)}
        full: set[Forward] = set()
        roots = {query for phase in self.phases for query in phase.needs}
        readers = [(query, needed) for query, needs in self.order.items() for needed in needs]
        for reader, needed in (*readers, *((None, query) for query in roots)):
            if not isinstance(needed, Forward):
                continue
            if isinstance(reader, Features):
                taps[needed].add(reader.tap)
            else:
                full.add(needed)
        return {forward: self._demand(forward, names, forward in full) for forward, names in taps.items()}

    def _demand(self, forward: Forward, names: set[str], full: bool) -> Demand:
        ordered = tuple(tap for tap in self.setup.models[forward.role].taps if tap in names)
        return Demand(ordered, None if full else ordered[-1])


@define
class StepCost:
    """Passes of one step, rehearsed.

    Attributes:
        roles: Cost by role.
        queries: Each query with the role and number of forwards it ran, in order.
    """

    roles: dict[str, Cost] = field(factory=dict)
    queries: list[tuple[str, str, int]] = field(factory=list)

    def add(self, role: str, cost: Cost) -> None:
        """Add to the tally of a role."""
        self.roles[role] = self.roles.get(role, Cost()) + cost


def rehearse(plan: Plan, due: Iterable[str], *, share: bool = True) -> StepCost:
    """Count the passes of one step by going through its phases without tensors.

    Follows the memo rules of `TrainStep` to the letter; a test compares it with the passes counted at run time.

    Args:
        plan: The plan of the phases that share a step.
        due: Players that take part in this step.
        share: Whether phases share graphs (they do unless the batch is split in micro-batches).
    """
    cost, memo = StepCost(), set()
    players = set(due)
    phases = [phase for phase in plan.phases if phase.player in players]
    for index, phase in enumerate(phases):
        later = frozenset().union(*(other.roles for other in phases[index + 1 :]))
        for turn in range(phase.passes):
            _run_phase(plan, phase, memo, cost)
            for role in phase.roles & frozenset().union(*(plan.graph_roles[q] for q in phase.needs)):
                cost.add(role, Cost(parameter_backwards=1))
            last = turn + 1 == phase.passes
            memo = {q for q in memo if survives(plan, q, phase, later, last=last, share=share)}
    return cost


def survives(  # noqa: PLR0913 - the facts the rule is made of.
    plan: Plan,
    query: Query[Any],
    phase: Phase,
    later: frozenset[str],
    *,
    last: bool,
    share: bool = True,
) -> bool:
    """Whether a memoized value outlives a backward pass of `phase`.

    After the last pass a value is kept (detached) for later players unless its graph touches a role they train;
    with `share`, a graph that this phase did not use up is kept for them too.
    Before it, a value goes if its graph was used up, if it reads a free view (whose delta has moved), or if the
    weights it depends on have moved.
    """
    touched = plan.graph_roles[query]
    if last:
        return not (touched & later) if not share else not (touched & phase.roles and touched & later)
    stale = plan.value_roles[query] if phase.moves else touched
    return not (stale & phase.roles or plan.views[query] & plan.free_views)


def _run_phase(plan: Plan, phase: Phase, memo: set[Query[Any]], cost: StepCost) -> None:
    for query in phase.needs:
        _compute(plan, query, memo, cost)


def _compute(plan: Plan, query: Query[Any], memo: set[Query[Any]], cost: StepCost) -> None:
    if query in memo:
        return
    for needed in query.needs(plan.setup):
        _compute(plan, needed, memo, cost)
    for role, count in query.forwards(plan.setup).items():
        cost.add(role, Cost(forwards=count))
        cost.queries.append((repr(query), role, count))
    for role, count in query.input_backwards(plan.setup).items():
        cost.add(role, Cost(input_backwards=count))
    if isinstance(query, View):
        _search(plan, query, memo, cost)
    memo.add(query)


def _search(plan: Plan, query: View, memo: set[Query[Any]], cost: StepCost) -> None:
    view = plan.setup.views[query.name]
    if view.perturbation is None or view.base is None:
        return
    search = view.perturbation.cost()
    moved: set[str] = set()
    for _ in range(search.probes):
        # A probe shares everything that does not depend on the moved view.
        inner = {q for q in memo if view.base not in plan.views[q]} | {View(view.base)}
        probe_cost = StepCost()
        for probe in query.probes(plan.setup):
            _compute(plan, probe, inner, probe_cost)
            moved |= plan.graph_roles[probe]
        for role, passes in probe_cost.roles.items():
            cost.add(role, passes)
        cost.queries += [(f"{query!r} probing {name}", role, n) for name, role, n in probe_cost.queries]
    for role in moved:
        cost.add(role, Cost(input_backwards=search.input_backwards))
