"""The queries of the core. Plugins add their own classes in the same form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from attrs import frozen
from torch import Tensor

from advdiff_core.errors import ContractError
from advdiff_core.interfaces.query import Mode, Query, Setup, Step
from advdiff_core.interfaces.time_sampler import Times
from advdiff_core.math.densities import draw_times
from advdiff_core.types import Noised, Prediction, expand

if TYPE_CHECKING:
    from advdiff_core.step.scene import Scene
    from advdiff_core.step.step import TrainStep

__all__ = [
    "Delta",
    "DrawnTimes",
    "EpsHat",
    "Features",
    "Forward",
    "Logits",
    "Noise",
    "Scores",
    "Target",
    "Time",
    "View",
    "X0Hat",
]


@frozen
class DrawnTimes(Query[Times]):
    """Training times and their importance weights [B], as the density or its sampler draws them."""

    detached: ClassVar[bool] = True

    def compute(self, step: Step) -> Times:
        """Map (stratified) uniform numbers through the quantile function of the law."""
        scene = _scene(step)
        assert scene.schedule is not None
        draws, density = step.rng("time"), scene.density
        stratified = density.stratified
        u = draws.stratified() if stratified else draws.uniform((step.x0.shape[0],)).double()
        if scene.times is not None:
            return _as_drawn(scene.times.draw(u, step.nimg), step.x0)
        t = draw_times(scene.schedule, u, law=density.law, mean=density.mean, std=density.std)
        return Times(t.to(step.x0.dtype))


@frozen
class Time(Query[Tensor]):
    """Training times `t` [B], drawn from the recipe's density."""

    detached: ClassVar[bool] = True

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """What was drawn."""
        del setup
        return (DrawnTimes(),)

    def compute(self, step: Step) -> Tensor:
        """The times alone."""
        return step.get(DrawnTimes()).t


@frozen
class Noise(Query[Tensor]):
    """Unit Gaussian noise `eps` [B, ...] of the clean view."""

    detached: ClassVar[bool] = True

    def compute(self, step: Step) -> Tensor:
        """Draw it from the stream "noise"."""
        return _scene(step).compute.place(step.rng("noise").normal(step.x0.shape))


@frozen
class View(Query[Noised]):
    """Input of networks on a named view."""

    name: str = "clean"
    detached: ClassVar[bool] = True

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """Time and noise for the root "clean"; else the base view and the perturbation's needs."""
        view = setup.views[self.name]
        if view.base is None:
            return (Time(), Noise()) if self.name == "clean" else ()
        assert view.perturbation is not None
        return (View(view.base), *view.perturbation.needs(view.base))

    def compute(self, step: Step) -> Noised:
        """Noise the sample, or perturb the base view."""
        view = step.setup.views[self.name]
        if view.base is not None:
            return _train(step).perturb(self.name)
        if self.name == "image":
            return Noised(step.x0, step.x0, y=step.y)
        t, eps, schedule = step.get(Time()), step.get(Noise()), step.setup.schedule
        assert schedule is not None
        alpha, sigma = expand(schedule.alpha(t), step.x0), expand(schedule.sigma(t), step.x0)
        x_t = alpha * step.x0 + sigma * eps
        return Noised(x_t, step.x0, eps=eps, t=t, alpha=alpha, sigma=sigma, y=step.y)

    def probes(self, setup: Setup) -> tuple[Query[Any], ...]:
        """Queries its search evaluates at moved inputs of the base view."""
        view = setup.views[self.name]
        if view.base is None or view.perturbation is None:
            return ()
        return view.perturbation.probes(view.base)


@frozen
class Forward(Query[Prediction]):
    """One forward of a network on a view, with the union of the taps that anyone asks for.

    Attributes:
        role: Model role.
        view: View whose input it gets.
        through: Let gradients pass through a frozen network to its input.
        mode: "train" runs it as training does; "eval" as evaluation does, with running statistics
            and no dropout, and with gradients towards its input alone.
    """

    role: str = "student"
    view: str = "clean"
    through: bool = False
    mode: Mode = "train"

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """The view."""
        del setup
        return (View(self.view),)

    def forwards(self, setup: Setup) -> Mapping[str, int]:
        """One forward of the role."""
        del setup
        return {self.role: 1}

    def compute(self, step: Step) -> Prediction:
        """Run the network once."""
        noised = step.get(View(self.view))
        network, demand = step.network(self.role, mode=self.mode), _train(step).demand(self)
        if noised.t is None or step.setup.models[self.role].parametrization == "none":
            return network.classify(
                noised.x_t, taps=demand.taps, stop_at=demand.stop_at, through=self.through
            )
        return network.denoise(
            noised.x_t, noised.t, noised.y,
            taps=demand.taps, stop_at=demand.stop_at, through=self.through,
        )  # fmt: skip


@frozen
class _OfForward(Query[Tensor]):
    """Base of values read off one forward."""

    role: str = "student"
    view: str = "clean"
    through: bool = False
    mode: Mode = "train"

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """The forward."""
        del setup
        return (self.forward,)

    @property
    def forward(self) -> Forward:
        """The forward it is read from."""
        return Forward(self.role, self.view, self.through, self.mode)


@frozen
class EpsHat(_OfForward):
    """Predicted noise `eps_hat` [B, ...] of a denoiser on a view, whatever its parametrization."""

    def compute(self, step: Step) -> Tensor:
        """Convert the prediction."""
        return step.get(self.forward).eps


@frozen
class X0Hat(_OfForward):
    """Predicted clean sample `x0_hat` [B, ...] of a denoiser on a view."""

    def compute(self, step: Step) -> Tensor:
        """Convert the prediction."""
        return step.get(self.forward).x0


@frozen
class Logits(_OfForward):
    """Logits [B, K] of a classifier on a view; the default view is "image"."""

    # All of them again: attrs puts a redefined field last.
    role: str = "student"
    view: str = "image"
    through: bool = False
    mode: Mode = "train"

    def compute(self, step: Step) -> Tensor:
        """The raw output."""
        return step.get(self.forward).value


@frozen
class Features(Query[Tensor]):
    """Tensor at a tap of a network [B, C, H, W], [B, N, D] or [B, D].

    Attributes:
        role: Model role.
        view: View whose input it gets.
        tap: Name of the tap.
        through: Let gradients pass through a frozen network to its input.
        mode: As of `Forward`.
    """

    role: str
    view: str
    tap: str
    through: bool = False
    mode: Mode = "train"

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """The forward the tap belongs to."""
        del setup
        return (self.forward,)

    @property
    def forward(self) -> Forward:
        """The forward it is read from."""
        return Forward(self.role, self.view, self.through, self.mode)

    def compute(self, step: Step) -> Tensor:
        """Read the tap."""
        return step.get(self.forward).features[self.tap]


@frozen
class Delta(Query[Tensor]):
    """Perturbation of a view in units of `x_t` [B, ...]; zero on an unperturbed one."""

    view: str
    detached: ClassVar[bool] = True

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """The view."""
        del setup
        return (View(self.view),)

    def compute(self, step: Step) -> Tensor:
        """Read it off the view."""
        noised = step.get(View(self.view))
        return noised.delta if noised.delta is not None else torch.zeros_like(noised.x_t)


@frozen
class Target(Query[Tensor]):
    """Features of the clean images from an alignment target [B, D] or [B, N, D].

    Attributes:
        role: Model role of kind "alignment_target".
    """

    role: str
    detached: ClassVar[bool] = True

    def forwards(self, setup: Setup) -> Mapping[str, int]:
        """One forward of the role."""
        del setup
        return {self.role: 1}

    def compute(self, step: Step) -> Tensor:
        """Run the target on the unperturbed images, in its own random stream."""
        return _train(step).target(self.role)


@frozen
class Scores(Query[Tensor]):
    """Logits [B, ...] of a discriminator for images made by another query.

    Attributes:
        role: Model role of kind "discriminator".
        of: Query of the images; None for the clean images themselves.
        reference: Query of the reference images of siamese kinds; None for none.
    """

    role: str
    of: Query[Tensor] | None = None
    reference: Query[Tensor] | None = None

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """The images and the reference."""
        del setup
        return tuple(query for query in (self.of, self.reference) if query is not None)

    def forwards(self, setup: Setup) -> Mapping[str, int]:
        """One forward of the discriminator."""
        del setup
        return {self.role: 1}

    def compute(self, step: Step) -> Tensor:
        """Score the images; gradients reach them when the current player made them."""
        x = step.x0 if self.of is None else step.get(self.of)
        reference = None if self.reference is None else step.get(self.reference)
        return step.network(self.role).score(x, reference=reference, labels=step.y)


def _train(step: Step) -> TrainStep:
    # The core's own queries know the one implementation of the Step protocol.
    return step  # type: ignore[return-value]


def _as_drawn(times: Times, like: Tensor) -> Times:
    """A sampler's times, detached and in the dtype of samples `like` [B, ...].

    Raises:
        ContractError: If there is not one time for each sample.
    """
    for what, found in times._asdict().items():
        if found is not None and found.shape != like.shape[:1]:
            message = (
                f"the density's sampler drew {what} {list(found.shape)} for {len(like)} samples"
            )
            raise ContractError(message, where="schedule.density.sampler", fix="return [B]")
    weight = None if times.weight is None else times.weight.detach().to(like.dtype)
    return Times(times.t.detach().to(like.dtype), weight)


def _scene(step: Step) -> Scene:
    return _train(step).scene
