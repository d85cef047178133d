"""The plan: everything that can be known of a step before the run.

From the queries that terms declare it derives which queries are allowed, which taps each forward
must return, which roles a value depends on, and, by rehearsing the phases without tensors, how many
network passes a step costs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from attrs import define, evolve, field, frozen

from advdiff_core.errors import PluginError
from advdiff_core.interfaces.perturbation import SearchCost
from advdiff_core.interfaces.query import Query, Setup
from advdiff_core.step.names import check_names
from advdiff_core.step.queries import DrawnTimes, Features, Forward, View
from advdiff_core.types import Cost

__all__ = ["Demand", "Pass", "Phase", "Plan", "StepCost", "rehearse", "survives"]


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
        displaced: Each pass is preceded by one whose gradients displace the weights for it.
    """

    player: str
    roles: frozenset[str]
    needs: tuple[Query[Any], ...]
    every: int = 1
    passes: int = 1
    moves: bool = True
    fresh: bool = False
    displaced: bool = False

    @property
    def still(self) -> Phase:
        """The same where a pass leaves the weights: views and searches outlive it."""
        return evolve(self, moves=False)


class Plan:
    """Closure of the declared queries of the phases that share a step.

    Args:
        phases: Phases in the order they run.
        setup: Roles, views and schedule.

    Raises:
        PluginError: P10 if queries need each other in a circle.
        RecipeError: R10 if a role, view or tap does not exist or is of the wrong kind.
    """

    def __init__(self, phases: Iterable[Phase], setup: Setup) -> None:
        self.phases = tuple(phases)
        self.setup = setup
        #: Queries that a value reads while it is computed.
        self.needs: dict[Query[Any], tuple[Query[Any], ...]] = {}
        #: The same with the probes of a view's search; in an order in which all can be computed.
        self.order: dict[Query[Any], tuple[Query[Any], ...]] = {}
        self._ordered: dict[tuple[Query[Any], ...], tuple[Query[Any], ...]] = {}
        for phase in self.phases:
            for query in phase.needs:
                self._visit(query, ())
        #: Roles that some player of this plan trains.
        self.trained: frozenset[str] = frozenset().union(*(phase.roles for phase in self.phases))
        #: Roles that a value depends on through a graph: a backward from it can reach them.
        self.graph_roles: dict[Query[Any], frozenset[str]] = {}
        #: Roles whose weights a value depends on in any way.
        self.value_roles: dict[Query[Any], frozenset[str]] = {}
        #: Views whose input a value depends on.
        self.views: dict[Query[Any], frozenset[str]] = {}
        #: Queries whose value depends on the training times.
        self.timed: set[Query[Any]] = set()
        for query, needs in self.order.items():
            self._trace(query, needs)
        #: Views whose perturbation learns from the training backward.
        self.free_views = frozenset(
            name
            for name, view in setup.views.items()
            if view.perturbation is not None and view.perturbation.free
        )
        self.demands = self._find_demands()

    def in_order(self, needs: tuple[Query[Any], ...]) -> tuple[Query[Any], ...]:
        """What a phase with these needs computes, in an order that other terms do not change.

        Batch norms see their batches in this order. Searches come before the forwards of training:
        what they do not need of these they find as the last step left it.
        """
        if needs not in self._ordered:
            self._ordered[needs] = tuple(sorted(self._below(needs), key=self._rank))
        return self._ordered[needs]

    def _below(self, needs: Iterable[Query[Any]]) -> set[Query[Any]]:
        """The needs and what they need; but what a search needs is the view's own affair."""
        found: set[Query[Any]] = set()
        waiting = list(needs)
        while waiting:
            query = waiting.pop()
            if query in found:
                continue
            found.add(query)
            views = isinstance(query, View)
            waiting += [n for n in self.needs[query] if isinstance(n, View) or not views]
        return found

    def _rank(self, query: Query[Any]) -> tuple[int, int, str]:
        depth = len(self.views[query])
        return (0 if not depth else 1 if isinstance(query, View) else 2), depth, repr(query)

    def _visit(self, query: Query[Any], path: tuple[Query[Any], ...]) -> None:
        if query in path:
            circle = " -> ".join(map(repr, (*path[path.index(query) :], query)))
            message = f"queries need each other in a circle: {circle}"
            raise PluginError(message, code="P10", fix="break it in one plugin's `needs`")
        if query in self.order:
            return
        check_names(query, self.setup)
        needs = query.needs(self.setup)
        probes = query.probes(self.setup) if isinstance(query, View) else ()
        for needed in (*needs, *probes):
            self._visit(needed, (*path, query))
        self.needs[query] = needs
        self.order[query] = (*needs, *probes)

    def _trace(self, query: Query[Any], needs: tuple[Query[Any], ...]) -> None:
        own = frozenset(query.forwards(self.setup))
        below = [self.value_roles[needed] for needed in needs]
        self.value_roles[query] = own.union(self._leaders(own), *below)
        graph = [self.graph_roles[needed] for needed in needs]
        self.graph_roles[query] = frozenset() if query.detached else own.union(*graph)
        if isinstance(query, DrawnTimes) or self.timed.intersection(needs):
            self.timed.add(query)
        views = {query.name} if isinstance(query, View) else set()
        self.views[query] = frozenset(views).union(*(self.views[needed] for needed in needs))

    def _leaders(self, roles: frozenset[str]) -> frozenset[str]:
        """Roles that target networks follow: their weights move when those do."""
        found = {self.setup.models[role].follows for role in roles if role in self.setup.models}
        return frozenset(found - {""})

    def _find_demands(self) -> dict[Forward, Demand]:
        taps: dict[Forward, set[str]] = {q: set() for q in self.order if isinstance(q, Forward)}
        full: set[Forward] = set()
        readers = [(query, needed) for query, needs in self.order.items() for needed in needs]
        roots = [(None, query) for phase in self.phases for query in phase.needs]
        for reader, needed in (*readers, *roots):
            if not isinstance(needed, Forward):
                continue
            if isinstance(reader, Features):
                taps[needed].add(reader.tap)
            else:
                full.add(needed)
        return {
            forward: self._demand(forward, names, full=forward in full)
            for forward, names in taps.items()
        }

    def _demand(self, forward: Forward, names: set[str], *, full: bool) -> Demand:
        ordered = tuple(tap for tap in self.setup.models[forward.role].taps if tap in names)
        return Demand(ordered, None if full else ordered[-1])


class Pass(NamedTuple):
    """One way through a network.

    Attributes:
        role: The network's role.
        stop_at: Tap it ends at or begins from; None for the whole network.
        kind: Forward, or backward towards the input alone, or towards parameters and input. One
            backward towards parameters passes every forward that the player's terms look at.
    """

    role: str
    stop_at: str | None
    kind: Literal["forward", "input", "parameter"]


@define
class StepCost:
    """Passes of one step, rehearsed.

    Attributes:
        roles: Cost by role.
        queries: Each query with the role and number of forwards it ran, in order.
        passes: Ways through networks, on average where they are drawn: what it multiplies.
    """

    roles: dict[str, Cost] = field(factory=dict)
    queries: list[tuple[str, str, int]] = field(factory=list)
    passes: defaultdict[Pass, float] = field(factory=lambda: defaultdict(float))

    def add(self, role: str, cost: Cost) -> None:
        """Add to the tally of a role."""
        self.roles[role] = self.roles.get(role, Cost()) + cost


def rehearse(plan: Plan, due: Iterable[str], *, share: bool = True) -> StepCost:
    """Count the passes of one step by going through its phases without tensors.

    Follows the memo rules of `TrainStep` to the letter; a test compares it with the passes counted
    at run time.

    Args:
        plan: The plan of the phases that share a step.
        due: Players that take part in this step.
        share: Whether phases share graphs (they do unless the batch is split in micro-batches).
    """
    rehearsal, players = _Rehearsal(plan), set(due)
    phases = [phase for phase in plan.phases if phase.player in players]
    for index, phase in enumerate(phases):
        later = frozenset().union(*(other.roles for other in phases[index + 1 :]))
        for turn in range(phase.passes):
            if phase.displaced:
                rehearsal.run(phase)
                rehearsal.leave(phase.still, later, last=False, share=share)
            rehearsal.run(phase)
            last = turn + 1 == phase.passes
            rehearsal.leave(phase, later, last=last, share=share)
    return rehearsal.cost


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

    After the last pass all values are kept (detached) for later players but those whose graph they
    train. Such a graph is kept too where `share` holds, this phase did not use it up, and it is
    whole: what passes through two trained roles was built for the player at hand only. Before the
    last pass a value goes if its graph was used up, if it reads a free view (whose delta has
    moved), or if the weights it depends on have moved.
    """
    touched = plan.graph_roles[query] & plan.trained
    free = bool(plan.views[query] & plan.free_views)
    if last:
        whole = share and not touched & phase.roles and len(touched) == 1 and not free
        return whole or not touched & later
    stale = plan.value_roles[query] if phase.moves else touched
    return not (stale & phase.roles or free)


@define
class _Rehearsal:
    """A step without tensors.

    Attributes:
        plan: The plan.
        cost: Passes so far.
        memo: Queries whose value is held.
        found: Free views that have been searched: later passes move the delta they have.
        live: Free views whose delta gets a gradient from the phase at hand.
    """

    plan: Plan
    cost: StepCost = field(factory=StepCost)
    memo: set[Query[Any]] = field(factory=set)
    found: set[str] = field(factory=set)
    live: set[str] = field(factory=set)

    def run(self, phase: Phase) -> None:
        """One forward and backward pass of a player."""
        for query in self.plan.in_order(phase.needs):
            self.compute(query)
        reached = frozenset().union(*(self.plan.graph_roles[query] for query in phase.needs))
        for role in phase.roles & reached:
            self.cost.add(role, Cost(parameter_backwards=1))
        for query in self._closure(phase.needs):
            self._backward_through(query, phase)

    def leave(self, phase: Phase, later: frozenset[str], *, last: bool, share: bool) -> None:
        """Forget what the pass used up."""
        keep = {"last": last, "share": share}
        self.memo = {q for q in self.memo if survives(self.plan, q, phase, later, **keep)}
        if last:
            self.live.clear()

    def compute(self, query: Query[Any]) -> None:
        """Compute a value unless it is held."""
        if query in self.memo:
            return
        again = isinstance(query, View) and query.name in self.found
        for needed in self.plan.needs[query]:
            # A free view that moves on reads its base alone.
            if not again or isinstance(needed, View):
                self.compute(needed)
        for role, count in query.forwards(self.plan.setup).items():
            self.cost.add(role, Cost(forwards=count))
            self.cost.queries.append((repr(query), role, count))
        for role, (mean, _) in query.work(self.plan.setup).items():
            self.cost.passes[Pass(role, self._stop(query), "forward")] += mean
        for role, count in query.input_backwards(self.plan.setup).items():
            self.cost.add(role, Cost(input_backwards=count))
            self.cost.passes[Pass(role, self._stop(query), "input")] += count
        if isinstance(query, View):
            self._perturb(query, search=not again)
        self.memo.add(query)

    def _stop(self, query: Query[Any]) -> str | None:
        return self.plan.demands[query].stop_at if isinstance(query, Forward) else None

    def _perturb(self, query: View, *, search: bool) -> None:
        if query.name in self.plan.free_views:
            self.found.add(query.name)
            self.live.add(query.name)
        view = self.plan.setup.views[query.name]
        if search and view.perturbation is not None and view.base is not None:
            self._search(query, view.base, view.perturbation.cost())

    def _search(self, query: View, base: str, search: SearchCost) -> None:
        # A probe shares everything that does not depend on the moved view.
        kept = {q for q in self.memo if base not in self.plan.views[q]}
        probe = _Rehearsal(self.plan, memo={*kept, View(base)}, found=set(self.found))
        for probed in query.probes(self.plan.setup):
            probe.compute(probed)
        for role, one in probe.cost.roles.items():
            backwards = one.input_backwards * search.probes + one.forwards * search.input_backwards
            self.cost.add(role, Cost(one.forwards * search.probes, backwards))
        for way, count in probe.cost.passes.items():
            self.cost.passes[way] += count * search.probes
            if way.kind == "forward":
                self.cost.passes[way._replace(kind="input")] += count * search.input_backwards
        self.cost.queries += [
            (f"{query!r} probing {name}", role, count * search.probes)
            for name, role, count in probe.cost.queries
            if search.probes
        ]

    def _closure(self, queries: Iterable[Query[Any]]) -> Iterator[Query[Any]]:
        """The queries that a backward from `queries` can pass."""
        seen: set[Query[Any]] = set()
        waiting = list(queries)
        while waiting:
            query = waiting.pop()
            if query in seen or query.detached:
                continue
            seen.add(query)
            waiting += self.plan.needs[query]
            yield query

    def _backward_through(self, query: Query[Any], phase: Phase) -> None:
        """Count the networks of others that a gradient passes on its way to what is trained."""
        wanted = any(
            (self.plan.graph_roles[needed] & phase.roles)
            or (isinstance(needed, View) and self.plan.views[needed] & self.live)
            for needed in self.plan.needs[query]
        )
        work = query.work(self.plan.setup)
        for role, count in query.forwards(self.plan.setup).items():
            passed = not self.plan.setup.models[role].frozen or getattr(query, "through", True)
            if role in phase.roles and not query.probing:
                self.cost.passes[Pass(role, self._stop(query), "parameter")] += work[role][1]
            elif wanted and passed:
                self.cost.add(role, Cost(input_backwards=count))
                self.cost.passes[Pass(role, self._stop(query), "input")] += work[role][1]
