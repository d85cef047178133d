"""Mistakes in samplers."""

from __future__ import annotations

import itertools

import torch
from planted import planted

from advdiff_core import Sampler, Samples, expand
from advdiff_core.math import grids


class Healthy(Sampler):
    """DDIM without noise."""

    def grid(self):
        """Five steps."""
        return grids.sampling_times(self.build.schedule, 5)

    def pairs(self, times):
        """Consecutive pairs."""
        return list(itertools.pairwise(times))

    def step(self, x, x0, eps, t_next, draws):
        """The next state."""
        schedule = self.build.schedule
        alpha, sigma = expand(schedule.alpha(t_next), x), expand(schedule.sigma(t_next), x)
        return alpha * x0 + sigma * eps

    def sample(
        self, denoise, x, draws, *, grid=None, grad_steps=None, checkpoint=False, callback=None
    ):
        """Run it."""
        times = self.grid() if grid is None else grid
        calls, keep = 0, grad_steps or ()
        for index, (t, t_next) in enumerate(self.pairs(times)):
            with torch.set_grad_enabled(index in keep):
                made = denoise(x, t.expand(len(x)).to(x.dtype))
                calls += 1
                x = self.step(x, made.x0, made.eps, t_next, draws)
            moved = callback(index, x, made) if callback else None
            x = x if moved is None else moved
        return Samples(x, calls)


@planted("grid-falls", "t_zero", "append t_zero")
class StopsEarly(Healthy):
    """Ends with the noise of the last training time."""

    def grid(self):
        """Without the end."""
        return grids.sampling_times(self.build.schedule, 5)[:-1]


@planted("grid-falls", "t_max")
class StartsLate(Healthy):
    """Leaves out the first time."""

    def grid(self):
        """Without the start."""
        return grids.sampling_times(self.build.schedule, 5)[1:]


@planted("grid-falls", "strictly decreasing")
class Ascending(Healthy):
    """Writes times the other way round."""

    def grid(self):
        """Ascending."""
        return grids.sampling_times(self.build.schedule, 5).flip(0)


@planted("counts-evaluations", "nfe =", "calls of the denoiser")
class Miscounts(Healthy):
    """Reports the steps, not the evaluations."""

    def sample(self, denoise, x, draws, **how):
        """Evaluates twice."""

        def twice(x_t, t):
            denoise(x_t, t)
            return denoise(x_t, t)

        return super().sample(twice, x, draws, **how)


@planted("counts-evaluations", "for a grid of", "every pair")
class SkipsLastStep(Healthy):
    """Off by one: the last pair is never visited."""

    def pairs(self, times):
        """All but one."""
        return list(itertools.pairwise(times))[:-1]


@planted("counts-evaluations", "where networks are trained", "t_zero")
class EvaluatesWithoutNoise(Healthy):
    """Cleans up with one more evaluation at the noiseless end."""

    def sample(self, denoise, x, draws, **how):
        """One more."""
        found = super().sample(denoise, x, draws, **how)
        end = torch.full((len(x),), self.build.schedule.t_zero, dtype=x.dtype)
        denoise(found.x0, end)
        return Samples(found.x0, found.nfe + 1)


@planted("reaches-a-known-point", "samples after", "off by one")
class WrongTime(Healthy):
    """Uses the scales of the time it left."""

    def pairs(self, times):
        """Goes nowhere."""
        return [(t, t) for t, _ in itertools.pairwise(times)]


@planted("converges", "errors of", "coefficients")
class HalfTheNoise(Healthy):
    """Loses a share of the noise at every step."""

    def step(self, x, x0, eps, t_next, draws):
        """Damped."""
        return super().step(x, x0, 0.9 * eps, t_next, draws)


@planted("converges-in-its-order", "order 2 is claimed", "correction", order=2)
class ClaimsTooMuch(Healthy):
    """A first-order method that claims to be of second order."""


@planted("keeps-the-distribution", "deviation", "how much it adds")
class TooMuchNoise(Healthy):
    """Puts more noise back than it has removed."""

    def step(self, x, x0, eps, t_next, draws):
        """Ancestral, with the whole noise on top of what is left."""
        sigma = expand(self.build.schedule.sigma(t_next), x)
        fresh = draws.normal(tuple(x.shape)).to(x)
        return super().step(x, x0, eps, t_next, draws) + 0.5 * sigma * fresh


@planted("images-are-independent", "of seed", "`draws` alone")
class GlobalNoise(Healthy):
    """Adds noise from the global generator."""

    def step(self, x, x0, eps, t_next, draws):
        """Noise."""
        sigma = float(self.build.schedule.sigma(t_next))
        return super().step(x, x0, eps, t_next, draws) + 0.01 * sigma * torch.randn_like(x)


@planted("images-are-independent", "alone against in a batch", "no statistics over the batch")
class DynamicThreshold(Healthy):
    """Scales by the largest value of the batch."""

    def step(self, x, x0, eps, t_next, draws):
        """Over the batch."""
        x0 = x0 / (x0.abs().max() / 0.3).clamp_min(1.0)
        return super().step(x, x0, eps, t_next, draws)


@planted("gradients-where-asked", "no graph with grad_steps", "detach")
class NeverTracks(Healthy):
    """Samples under no_grad whatever is asked."""

    def sample(self, denoise, x, draws, **how):
        """no_grad."""
        how["grad_steps"] = None
        return super().sample(denoise, x, draws, **how)


@planted("gradients-where-asked", "a graph although", "no_grad")
class AlwaysTracks(Healthy):
    """Keeps every graph."""

    def sample(self, denoise, x, draws, **how):
        """All steps."""
        how["grad_steps"] = tuple(range(100))
        return super().sample(denoise, x, draws, **how)


@planted("tells-every-step", "last state told", "after the state has moved")
class TellsEarly(Healthy):
    """Tells the state before the step."""

    def sample(self, denoise, x, draws, *, callback=None, **how):
        """Before."""
        state = [x]

        def late(index, now, made):
            if callback:
                callback(index, state[0], made)
            state[0] = now

        return super().sample(denoise, x, draws, callback=late, **how)


@planted("takes-a-state-back", "the last state was replaced", "what the callback returns")
class KeepsItsState(Healthy):
    """Goes on with the state it has."""

    def sample(self, denoise, x, draws, *, callback=None, **how):
        """Only tells."""

        def told(index, now, made):
            if callback:
                callback(index, now, made)

        return super().sample(denoise, x, draws, callback=told, **how)


@planted("leaves-everything-alone", "its input x", "in place")
class InPlace(Healthy):
    """Scales its start in place."""

    def sample(self, denoise, x, draws, **how):
        """In place."""
        return super().sample(denoise, x.mul_(1.0 + 1e-6), draws, **how)


@planted("linear-as-it-says", "samples of the middle", "neither clip")
class LinearInName(Healthy):
    """Says that its steps are linear, and clips estimates."""

    linear = True

    def step(self, x, x0, eps, t_next, draws):
        """The next state, from a clipped estimate."""
        return super().step(x, x0.clamp(-9, 9), eps, t_next, draws)
