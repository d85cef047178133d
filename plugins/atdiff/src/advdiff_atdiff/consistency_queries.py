"""What consistency models compare: the student's start of the trajectory, and the target's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from attrs import field, frozen
from torch import Tensor

from advdiff_atdiff.consistency_function import ConsistencyFunction
from advdiff_atdiff.consistency_grid import ConsistencyGrid
from advdiff_core import Forward, Noised, NoiseSchedule, Query, Step, View, expand
from advdiff_core.interfaces.query import Network, Setup

__all__ = [
    "ConsistencyHat", "ConsistencyTarget", "Earlier", "MovedConsistencyTarget", "Place",
    "SOLVER_FORWARDS", "ode_step",
]  # fmt: skip

#: Forwards of the teacher in one step of a solver.
SOLVER_FORWARDS = {"euler": 1, "heun": 2}


class Place(NamedTuple):
    """A point of a trajectory.

    Attributes:
        x: The point [B, ...], in units of `x_t`.
        t: Its time [B].
    """

    x: Tensor
    t: Tensor


@frozen
class ConsistencyHat(Query[Tensor]):
    """`f(x_t, t)` [B, ...] of a denoiser on a view: where its trajectory starts.

    Attributes:
        role: The denoiser.
        view: The view.
        function: The consistency function.
    """

    role: str
    view: str
    function: ConsistencyFunction = field(repr=False)

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """One forward, and the time of the view."""
        del setup
        return (Forward(self.role, self.view), View(self.view))

    def compute(self, step: Step) -> Tensor:
        """Read it off the forward."""
        t = step.get(View(self.view)).t
        assert t is not None, "terms refuse views of images"
        return self.function(step.get(Forward(self.role, self.view)), t)


@frozen
class Earlier(Query[Place]):
    """The point at `t_n` of the trajectory through a view's `x_t` at `t_(n+1)`.

    With a teacher it is one step of a solver of the probability-flow ODE (consistency
    distillation). Without one it is the Euler step with the true x0, that is x0 noised by the same
    eps (consistency training). It carries no graph, not even to a free delta.

    Attributes:
        view: The view.
        grid: Knows the neighbour of a time.
        teacher: Denoiser that the ODE is of; "" for the true x0.
        solver: "euler" or "heun".
    """

    view: str
    grid: ConsistencyGrid = field(repr=False)
    teacher: str = ""
    solver: str = "heun"
    detached: ClassVar[bool] = True

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """The view."""
        del setup
        return (View(self.view),)

    def forwards(self, setup: Setup) -> Mapping[str, int]:
        """Those of the teacher."""
        del setup
        return {self.teacher: SOLVER_FORWARDS[self.solver]} if self.teacher else {}

    def compute(self, step: Step) -> Place:
        """Go back one interval of the grid."""
        noised, schedule = step.get(View(self.view)), self.grid.schedule
        assert noised.t is not None, "terms refuse views of images"
        x_t, after = noised.x_t.detach(), self.grid.before(noised.t, step.nimg)
        if not self.teacher:
            return Place(_true_step(noised._replace(x_t=x_t), after, schedule), after)
        here = Place(x_t, noised.t)
        network = step.network(self.teacher)
        return ode_step(network, here, after, schedule, labels=noised.y, solver=self.solver)


def _true_step(noised: Noised, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """x0 noised at `t` [B] by the noise that explains `x_t` [B, ...]."""
    assert noised.alpha is not None
    assert noised.sigma is not None
    assert noised.eps is not None
    eps = noised.eps.detach()
    if noised.delta is not None:
        # Whether or not the view's target follows: the noise of the point itself.
        eps = (noised.x_t - noised.alpha * noised.x0) / noised.sigma
    alpha, sigma = (expand(scale(t), noised.x_t) for scale in (schedule.alpha, schedule.sigma))
    return alpha * noised.x0 + sigma * eps


def ode_step(  # noqa: PLR0913 - the coordinates of a step.
    network: Network,
    here: Place,
    t_next: Tensor,
    schedule: NoiseSchedule,
    *,
    labels: Tensor | None = None,
    solver: str = "heun",
) -> Place:
    """One step of the probability-flow ODE `dz / dtau = eps_hat`, of whatever parametrization.

    In `z = x_t / alpha` and `tau = sigma / alpha` (Karras et al., 2022, eq. 4): Euler's step, or
    Heun's, whose second slope is taken at the point that Euler's reaches.

    Args:
        network: The denoiser; called once or twice.
        here: Where the step starts.
        t_next: Smaller times [B].
        schedule: The noise schedule.
        labels: Labels [B] or None.
        solver: "euler" or "heun".
    """
    ends = [(schedule.alpha(t), schedule.sigma(t)) for t in (here.t, t_next)]
    (alpha, sigma), (alpha_next, sigma_next) = ends
    share = expand(alpha_next / alpha, here.x)
    gap = expand(sigma_next - alpha_next * sigma / alpha, here.x)
    slope = network.denoise(here.x, here.t, labels).eps.detach()
    reached = Place(share * here.x + gap * slope, t_next)
    if solver == "euler":
        return reached
    second = network.denoise(reached.x, t_next, labels).eps.detach()
    return reached._replace(x=reached.x + gap * (second - slope) / 2)


@frozen
class ConsistencyTarget(Query[Tensor]):
    """`f(x_(t_n), t_n)` [B, ...] of the target network: a constant for every gradient.

    The network runs as a probe: no parameter gets a gradient, also where the target is the student
    itself, and dropout masks are those of the student's forward.

    Attributes:
        role: The target network, or the student.
        earlier: The point.
        function: The consistency function.
    """

    role: str
    earlier: Earlier
    function: ConsistencyFunction = field(repr=False)
    detached: ClassVar[bool] = True

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """The point, and the view it comes from."""
        del setup
        return (self.earlier, View(self.earlier.view))

    def forwards(self, setup: Setup) -> Mapping[str, int]:
        """One forward."""
        del setup
        return {self.role: 1}

    def compute(self, step: Step) -> Tensor:
        """Run the network at the point."""
        place, noised = step.get(self.earlier), step.get(View(self.earlier.view))
        probe = step.at(self.earlier.view, place.x)
        prediction = probe.network(self.role).denoise(place.x, place.t, noised.y)
        return self.function(prediction, place.t).detach()


@frozen
class MovedConsistencyTarget(Query[Tensor]):
    """`f(x_(t_n) + delta, t_n)` [B, ...] of the target network, with a graph to a free delta alone.

    Attributes:
        role: The target network, or the student.
        view: The perturbed view whose delta it is.
        earlier: The point of the view below.
        function: The consistency function.
    """

    role: str
    view: str
    earlier: Earlier
    function: ConsistencyFunction = field(repr=False)
    probing: ClassVar[bool] = True

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """The point, the view it comes from, and the one that has delta."""
        del setup
        return (self.earlier, View(self.earlier.view), View(self.view))

    def forwards(self, setup: Setup) -> Mapping[str, int]:
        """One forward."""
        del setup
        return {self.role: 1}

    def compute(self, step: Step) -> Tensor:
        """Run the network at the moved point."""
        place, noised = step.get(self.earlier), step.get(View(self.earlier.view))
        delta = step.get(View(self.view)).delta
        assert delta is not None, "the view is perturbed"
        x = place.x + delta.to(place.x.dtype)
        probe = step.at(self.earlier.view, place.x)
        prediction = probe.network(self.role).denoise(x, place.t, noised.y, through=True)
        return self.function(prediction, place.t)
