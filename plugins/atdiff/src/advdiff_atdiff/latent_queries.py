"""What latent consistency models compare: student and target, told how strongly they are guided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from attrs import field, frozen
from torch import Tensor

from advdiff_atdiff.consistency_function import ConsistencyFunction
from advdiff_atdiff.consistency_queries import Place
from advdiff_atdiff.latent_grid import LatentGrid
from advdiff_core import Noised, Query, Step, View, expand
from advdiff_core.interfaces.query import Setup

__all__ = ["Guidance", "GuidedEarlier", "GuidedHat", "GuidedTarget", "MovedGuidedTarget"]


@frozen
class Guidance(Query[Tensor]):
    """Strength w of guidance [B], uniform in [low, high) for each sample.

    Attributes:
        low: Smallest strength.
        high: Largest.
    """

    low: float
    high: float
    detached: ClassVar[bool] = True

    def compute(self, step: Step) -> Tensor:
        """Draw it from the stream "guidance"."""
        u = step.rng("guidance").uniform((step.x0.shape[0],)).to(step.x0)
        return self.low + (self.high - self.low) * u


@frozen
class GuidedHat(Query[Tensor]):
    """`f(x_t, t, w)` [B, ...] of a denoiser on a view.

    Attributes:
        role: The denoiser.
        view: The view.
        function: The consistency function.
        guidance: Strength that it is told; None if it is not told.
    """

    role: str
    view: str
    function: ConsistencyFunction = field(repr=False)
    guidance: Guidance | None = None

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """The view, and the strength."""
        del setup
        return (View(self.view), *_asked(self.guidance))

    def forwards(self, setup: Setup) -> Mapping[str, int]:
        """One forward."""
        del setup
        return {self.role: 1}

    def compute(self, step: Step) -> Tensor:
        """Run the network on the view."""
        noised, w = step.get(View(self.view)), _strength(step, self.guidance)
        t = _time(noised)
        return self.function(
            step.network(self.role).denoise(noised.x_t, t, noised.y, guidance=w), t
        )


@frozen
class GuidedEarlier(Query[Place]):
    """The point k times before a view's `x_t`, by one DDIM step of the guided teacher.

    FOUND (Luo et al., 2023, eq. 14, and its released code): `alpha x0_w + sigma eps_w` at the
    earlier time, with both predictions guided, `cond + w (cond - uncond)`. It carries no graph.

    Attributes:
        view: The view.
        grid: Knows the earlier time.
        teacher: Frozen denoiser that knows labels.
        guidance: Strength.
    """

    view: str
    grid: LatentGrid = field(repr=False)
    teacher: str
    guidance: Guidance
    detached: ClassVar[bool] = True

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """The view, and the strength."""
        del setup
        return (View(self.view), self.guidance)

    def forwards(self, setup: Setup) -> Mapping[str, int]:
        """One with labels, one without."""
        del setup
        return {self.teacher: 2}

    def compute(self, step: Step) -> Place:
        """Go back k times."""
        noised, schedule = step.get(View(self.view)), self.grid.schedule
        x_t, t = noised.x_t.detach(), _time(noised)
        after, network = self.grid.before(t, step.nimg), step.network(self.teacher)
        known, unknown = (network.denoise(x_t, t, labels) for labels in (noised.y, None))
        guided = known.guided(unknown, step.get(self.guidance))
        alpha, sigma = (expand(scale(after), x_t) for scale in (schedule.alpha, schedule.sigma))
        return Place((alpha * guided.x0 + sigma * guided.eps).detach(), after)


@frozen
class GuidedTarget(Query[Tensor]):
    """`f(x_(t_n), t_n, w)` [B, ...] of the target network: a constant for every gradient.

    Attributes:
        role: The target network, or the student.
        earlier: The point.
        function: The consistency function.
        guidance: Strength that it is told; None if it is not told.
    """

    role: str
    earlier: GuidedEarlier
    function: ConsistencyFunction = field(repr=False)
    guidance: Guidance | None = None
    detached: ClassVar[bool] = True

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """The point, the view it comes from, and the strength."""
        del setup
        return (self.earlier, View(self.earlier.view), *_asked(self.guidance))

    def forwards(self, setup: Setup) -> Mapping[str, int]:
        """One forward."""
        del setup
        return {self.role: 1}

    def compute(self, step: Step) -> Tensor:
        """Run the network at the point, as a probe: no parameter gets a gradient."""
        place, noised = step.get(self.earlier), step.get(View(self.earlier.view))
        network = step.at(self.earlier.view, place.x).network(self.role)
        w = _strength(step, self.guidance)
        return self.function(network.denoise(place.x, place.t, noised.y, guidance=w), place.t)


@frozen
class MovedGuidedTarget(Query[Tensor]):
    """`f(x_(t_n) + delta, t_n, w)` [B, ...], with a graph to a free delta alone.

    Attributes:
        role: The target network, or the student.
        view: The perturbed view whose delta it is.
        earlier: The point of the view below.
        function: The consistency function.
        guidance: Strength that it is told; None if it is not told.
    """

    role: str
    view: str
    earlier: GuidedEarlier
    function: ConsistencyFunction = field(repr=False)
    guidance: Guidance | None = None
    probing: ClassVar[bool] = True

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """The point, the view it comes from, the one that has delta, and the strength."""
        del setup
        seen = (self.earlier, View(self.earlier.view), View(self.view))
        return (*seen, *_asked(self.guidance))

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
        network = step.at(self.earlier.view, place.x).network(self.role)
        w = _strength(step, self.guidance)
        found = network.denoise(x, place.t, noised.y, through=True, guidance=w)
        return self.function(found, place.t)


def _asked(guidance: Guidance | None) -> tuple[Query[Any], ...]:
    return () if guidance is None else (guidance,)


def _strength(step: Step, guidance: Guidance | None) -> Tensor | None:
    return None if guidance is None else step.get(guidance)


def _time(noised: Noised) -> Tensor:
    assert noised.t is not None, "terms refuse views of images"
    return noised.t
