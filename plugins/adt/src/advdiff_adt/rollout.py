"""The rollout: a step's samples on their way through the real sampler, and what judges see of it.

Every value is a query, so that the generator's terms and the discriminator's share one rollout: two
terms with equal settings ask for equal queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, cast

import attrs
from attrs import field, frozen
from torch import Tensor

from advdiff_adt.evaluations import evaluations
from advdiff_adt.rollout_settings import RolloutSettings, check_rollout
from advdiff_adt.rules import rolled
from advdiff_adt.stretches import Stretch, StretchLaw
from advdiff_core import Build, Denoise, Domain, Prediction, Query, Sampler, Spec, Step
from advdiff_core.draws import keyed_generator
from advdiff_core.interfaces.query import Setup

__all__ = ["Decoded", "Real", "Rollout", "domain_of", "images_of", "real_of", "rollout_of"]

#: Range of decoded images.
DECODED = Domain(-1.0, 1.0)


@frozen(repr=False)
class Rollout(Query[Tensor]):
    """`x0_hat` [B, ...]: the data, noised to a time of the inference path and sampled from there.

    FOUND (arXiv 2504.11423 by secondary sources): the start is uniform on the discrete path, each
    iteration draws one, `x_ts = alpha x0 + sigma eps`, and the sampler's real steps lead from there
    to 0. The noise is the rollout's own. Only steps in which the generator acts build its graph.

    Attributes:
        role: The denoiser.
        law: How the part of the path and its trained steps are drawn.
        guidance: Strength w of guidance without a classifier; 0: none.
        recompute: Whether trained evaluations are run again in the backward.
        key: Name and settings of the sampler, by which two rollouts are compared.
        sampler: The sampler.
    """

    role: str
    law: StretchLaw
    guidance: float
    recompute: bool
    key: tuple[Any, ...]
    sampler: Sampler = field(eq=False)

    def __repr__(self) -> str:
        """What differs from defaults, for plans: by it queries are sorted, too."""
        law = ", ".join(f"{name}={value}" for name, value in _changed(self.law))
        more = f", guidance={self.guidance:g}" if self.guidance else ""
        more += ", recomputed" if self.recompute else ""
        return f"Rollout({self.role!r}, {_words(self.key)}, {law}{more})"

    def forwards(self, setup: Setup) -> Mapping[str, int]:
        """Those of the whole path: a start in its middle runs fewer."""
        each = _passes(self, setup)
        return {self.role: each * evaluations(self.sampler, self._longest(), setup)}

    def work(self, setup: Setup) -> Mapping[str, tuple[float, float]]:
        """Those of the part of the path that is run on average, and of its trained steps."""
        run, trained = self.law.means(len(self.sampler.grid()) - 1)
        whole = evaluations(self.sampler, self.sampler.grid(), setup)
        each = _passes(self, setup) * whole / (len(self.sampler.grid()) - 1)
        return {self.role: (each * run, each * trained)}

    def _longest(self) -> Tensor:
        grid = self.sampler.grid()
        return grid[self.law.first :] if self.law.start == "fixed" else grid

    def stretch(self, step: Step) -> Stretch:
        """The part of the path that this step runs: the same for all samples of its batch."""
        generator = keyed_generator(*step.rng("rollout").key, "stretch")
        return self.law.draw(len(self.sampler.grid()) - 1, step.nimg, generator)

    def compute(self, step: Step) -> Tensor:
        """Noise the samples and run the sampler."""
        stretch, draws = self.stretch(step), step.rng("rollout")
        grid = stretch.times(self.sampler.grid())
        x = _noised(step, grid[:1], draws.normal(step.x0.shape))
        found = rolled(
            self.sampler, self._denoiser(step), x, draws.child("path"),
            grid=grid, rule=self.law.rule, grad_steps=stretch.trained,
        )  # fmt: skip
        return found.x0.to(step.x0.dtype)

    def _denoiser(self, step: Step) -> Denoise:
        network, y, w = step.network(self.role), step.y, self.guidance
        told = step.setup.models[self.role].guided
        how: dict[str, Any] = {"recompute": self.recompute}

        def denoise(x_t: Tensor, t: Tensor) -> Prediction:
            if told:
                strength = x_t.new_full((len(x_t),), w)
                return network.denoise(x_t, t, y, guidance=strength, **how)
            found = network.denoise(x_t, t, y, **how)
            return found.guided(network.denoise(x_t, t, None, **how), w) if w else found

        return denoise


def _passes(rollout: Rollout, setup: Setup) -> int:
    """Forwards of one evaluation of the denoiser."""
    return 2 if rollout.guidance and not setup.models[rollout.role].guided else 1


def _noised(step: Step, t: Tensor, noise: Tensor) -> Tensor:
    """The samples at one time `t` [1]."""
    schedule, x0 = step.setup.schedule, step.x0
    assert schedule is not None, "the sampler refuses recipes without one"
    # Plain numbers: float64 on the CPU, whatever the samples are.
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    return alpha * x0 + sigma * noise.to(x0)


@frozen
class Real(Query[Tensor]):
    """The clean samples of the batch [B, ...], which rollouts start from."""

    detached: ClassVar[bool] = True

    def compute(self, step: Step) -> Tensor:
        """The batch itself."""
        return step.x0


@frozen
class Decoded(Query[Tensor]):
    """Images [B, C, H, W] of latents, by a frozen decoder that gradients pass.

    Attributes:
        of: Query of the latents.
        role: The decoder: a frozen backbone without parametrization.
    """

    of: Query[Tensor]
    role: str

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """The latents."""
        del setup
        return (self.of,)

    def forwards(self, setup: Setup) -> Mapping[str, int]:
        """One."""
        del setup
        return {self.role: 1}

    def compute(self, step: Step) -> Tensor:
        """Decode."""
        return step.network(self.role).classify(step.get(self.of), through=True).value


def rollout_of(settings: RolloutSettings, build: Build) -> Rollout:
    """The rollout of a term's settings; equal settings give equal queries.

    Args:
        settings: The keys.
        build: What the term that has them was told, for messages and parts.

    Raises:
        RecipeError: R10 if the keys do not fit the recipe.
    """
    sampler = cast("Sampler", build.nested(settings.sampler))
    check_rollout(settings, build, sampler)
    return Rollout(
        role=settings.role,
        law=_law(settings),
        guidance=settings.guidance,
        recompute=settings.gradient == "full" if settings.recompute is None else settings.recompute,
        key=_key(settings.sampler),
        sampler=sampler,
    )


def _law(settings: RolloutSettings) -> StretchLaw:
    return StretchLaw(
        rule=settings.gradient,
        start=settings.start,
        first=settings.first,
        curriculum=settings.curriculum if settings.start == "curriculum" else 0,
        count=settings.gradient_steps,
        choice=settings.choice,
        truncation=settings.truncation,
        early_stop=settings.early_stop,
    )


def _key(spec: Spec) -> tuple[Any, ...]:
    # Not the spec itself: its path is that of the term, as are those of what it holds.
    named = tuple(
        (name, _key(value) if isinstance(value, Spec) else repr(value))
        for name, value in _changed(spec.settings)
    )
    return spec.distribution, spec.use, named


def _words(key: tuple[Any, ...]) -> str:
    """A sampler's key in words, without its distribution."""
    _, use, named = key
    values = ((name, _words(v) if isinstance(v, tuple) else v) for name, v in named)
    return f"{use}({', '.join(f'{name}={value}' for name, value in values)})"


def _changed(settings: Any) -> Iterator[tuple[str, Any]]:
    """Fields of an attrs object with values that are not their defaults."""
    for one in attrs.fields(type(settings)):
        value = getattr(settings, one.name)
        if one.default is attrs.NOTHING or value != one.default:
            yield one.name, value


def images_of(settings: RolloutSettings, build: Build) -> Query[Tensor]:
    """What a judge sees of the rollout: its samples, decoded if the settings name a decoder.

    Raises:
        RecipeError: R10 if the keys do not fit the recipe.
    """
    return _seen(rollout_of(settings, build), settings)


def real_of(settings: RolloutSettings, build: Build) -> Query[Tensor]:
    """What a judge sees of the data, in the same form.

    Raises:
        RecipeError: R10 if the keys do not fit the recipe.
    """
    del build
    return _seen(Real(), settings)


def domain_of(settings: RolloutSettings, build: Build) -> Domain | None:
    """Range of the images that judges see; None for data that are no images with a range."""
    if settings.decoder:
        return DECODED
    return build.data.domain if build.data is not None else None


def _seen(query: Query[Tensor], settings: RolloutSettings) -> Query[Tensor]:
    return Decoded(query, settings.decoder) if settings.decoder else query
