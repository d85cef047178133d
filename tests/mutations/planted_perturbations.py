"""Mistakes in perturbations."""

from __future__ import annotations

import torch
from planted import planted

from advdiff_core import Budget, EpsHat, Perturbation, SearchCost, expand
from advdiff_core.math import norms
from advdiff_core.settings import setting, settings


class Healthy(Perturbation):
    """One signed gradient step on the prediction gap, from a random start."""

    @settings
    class Settings:
        """Keys."""

        role: str = setting("student", ref="role", help="denoiser")

    def query(self, base):
        """What is attacked."""
        return EpsHat(self.settings.role, base)

    def needs(self, base):
        """The prediction at the unmoved input."""
        return (self.query(base),)

    def probes(self, base):
        """The prediction at moved inputs."""
        return (self.query(base),)

    def cost(self):
        """One probe, one backward."""
        return SearchCost(1, 1)

    def budget(self, noised, rng):
        """A box."""
        return Budget("linf", 0.1)

    def start(self, noised, budget, rng):
        """Uniform in the box."""
        shape = noised.x_t.shape
        inside = norms.uniform_in_ball(shape, norm="linf", radius=1.0, draws=rng)
        return inside * self.radius(noised, budget)

    def radius(self, noised, budget):
        """Radius [B, 1, ...]."""
        radius = torch.as_tensor(budget.radius, dtype=noised.x_t.dtype)
        return expand(radius.expand(len(noised.x_t)), noised.x_t)

    def slope(self, delta, noised, probe):
        """Gradient of the gap."""
        query = self.query(probe.base)
        gap = probe.at(delta).get(query) - probe.step.get(query)
        return probe.gradient(gap.square().flatten(1).sum(1), delta)

    def search(self, noised, budget, probe, rng):
        """Climb."""
        delta = self.start(noised, budget, rng).to(noised.x_t).requires_grad_()
        slope = self.slope(delta, noised, probe)
        return delta.detach() + self.radius(noised, budget) * slope.sign()


@planted("leaves-everything-alone", "edits x_t", "in place")
class EditsItsInput(Healthy):
    """Adds the start to the view itself."""

    def start(self, noised, budget, rng):
        """In place."""
        start = super().start(noised, budget, rng)
        noised.x_t.add_(start)
        return start


@planted("follows-its-generator", "repeated", "rng handed to search")
class GlobalNoise(Healthy):
    """Starts from torch's global generator."""

    def start(self, noised, budget, rng):
        """Global."""
        return 0.1 * torch.randn_like(noised.x_t)


@planted("leaves-everything-alone", "torch's global generator", "generator or Draws")
class GlobalNoiseAgain(GlobalNoise):
    """The same mistake, seen by another law."""


@planted("follows-its-generator", "repeated", "nothing from one search to the next")
class WarmStart(Healthy):
    """Begins where the last search ended."""

    last = None

    def start(self, noised, budget, rng):
        """Remembered."""
        start = super().start(noised, budget, rng)
        if self.last is not None and self.last.shape == start.shape:
            start = 0.5 * (start + self.last)
        self.last = start
        return start


@planted("cost-as-declared", "3 forwards", "count the calls")
class Understated(Healthy):
    """Takes two steps and declares one."""

    def search(self, noised, budget, probe, rng):
        """Twice."""
        super().search(noised, budget, probe, rng)
        return super().search(noised, budget, probe, rng)

    def cost(self):
        """Once, and the clean prediction is shared."""
        return SearchCost(1, 1)


@planted("cost-as-declared", "backwards", "count the calls")
class Overstated(Healthy):
    """Declares ten steps and takes one."""

    def cost(self):
        """Ten."""
        return SearchCost(10, 10)


@planted("cost-as-declared", "1 forwards")
class UnusedNeed(Healthy):
    """Declares the clean prediction for a search that does not look at any."""

    def probes(self, base):
        """None."""
        return ()

    def cost(self):
        """Claims one."""
        return SearchCost()

    def needs(self, base):
        """Only the perturbed role's other view is wrong: declares a probe as a need."""
        return ()

    def search(self, noised, budget, probe, rng):
        """Runs the network behind the plan's back."""
        network = probe.step.network(self.settings.role)
        network.denoise(noised.x_t, noised.t)
        return self.start(noised, budget, rng)


@planted("no-gradient-leaks", "keeps a graph", "local variables")
class KeepsGraph(Healthy):
    """Keeps the objective for its log."""

    def slope(self, delta, noised, probe):
        """Kept with its graph."""
        gap = probe.at(delta).get(self.query(probe.base)) - probe.step.get(self.query(probe.base))
        self.objective = gap.square().sum()
        return probe.gradient(gap.square().flatten(1).sum(1), delta)


@planted("survives-a-flat-network", "gradients are zero", "steepest_ascent")
class DividesByNorm(Healthy):
    """Normalises without looking at zero."""

    def slope(self, delta, noised, probe):
        """NaN where the gradient is zero."""
        slope = super().slope(delta, noised, probe)
        return slope / slope.flatten(1).norm(dim=1).reshape(-1, *([1] * (slope.dim() - 1)))

    def search(self, noised, budget, probe, rng):
        """Without signs."""
        delta = self.start(noised, budget, rng).to(noised.x_t).requires_grad_()
        return delta.detach() + self.radius(noised, budget) * self.slope(delta, noised, probe)


@planted("climbs-what-it-derives", "down its own gradient", "uphill")
class Descends(Healthy):
    """The wrong sign."""

    def slope(self, delta, noised, probe):
        """Downhill."""
        return -super().slope(delta, noised, probe)


@planted("zero-budget-is-identity", "radius zero", "above zero")
class DividesByRadius(Healthy):
    """Works in shares of the radius."""

    def start(self, noised, budget, rng):
        """0 / 0."""
        start = super().start(noised, budget, rng)
        return start / self.radius(noised, budget)


@planted("samples-are-independent", "two parts", "sample axis")
class DrawsPerBatch(Healthy):
    """One number for the whole batch, from its size."""

    def start(self, noised, budget, rng):
        """Shared generator."""
        shape = noised.x_t.shape
        noise = torch.randn(shape, generator=rng.generator())
        return 0.1 * noise


@planted("samples-are-independent", "two parts", "instead of normalising by it")
class NormalisesOverBatch(Healthy):
    """One norm for the gradient of all samples."""

    def search(self, noised, budget, probe, rng):
        """Batch norm of the gradient."""
        delta = self.start(noised, budget, rng).to(noised.x_t).requires_grad_()
        slope = self.slope(delta, noised, probe)
        return 0.05 * slope / slope.norm().clamp_min(1e-12)


@planted("inside-the-budget", "norm", "at most its radius")
class ForgetsProjection(Healthy):
    """Overrides the core's method, and forgets what it does."""

    def apply(self, noised, delta, budget, domain):
        """No projection."""
        shift = 3 * delta
        return noised._replace(
            x_t=noised.x_t + shift, eps=noised.eps + shift / noised.sigma, delta=shift,
            radius=budget.radius,
        )  # fmt: skip


@planted("keeps-final-methods", "perturb", "enforces the budget")
class OverridesPerturb(Healthy):
    """Replaces the method that projects."""

    def perturb(self, noised, probe, rng, domain):
        """Its own."""
        return super().perturb(noised, probe, rng, domain)


@planted("target-as-declared", "target", "apply")
class ForgetsTarget(Healthy):
    """Moves the input and leaves the target, although it says that it follows."""

    def apply(self, noised, delta, budget, domain):
        """Eps stays."""
        return super().apply(noised, delta, budget, domain)._replace(eps=noised.eps)


@planted("builds", "units", "set `unit`")
class WrongUnit(Healthy):
    """A budget in noise units for a delta in image units."""

    def budget(self, noised, rng):
        """Other units."""
        return Budget("linf", 0.1, "noise")


@planted("builds", "not declared", "probes")
class UndeclaredProbe(Healthy):
    """Asks a probe for what it did not declare."""

    def probes(self, base):
        """Nothing."""
        return ()


@planted("builds", "shape", "one delta per sample")
class OneNumberPerSample(Healthy):
    """Returns a length instead of a direction."""

    def search(self, noised, budget, probe, rng):
        """[B]."""
        return super().search(noised, budget, probe, rng).flatten(1).sum(1)


@planted("inside-the-budget", "negative radius", "clamp")
class NegativeRadius(Healthy):
    """A schedule of the radius that falls below zero."""

    def budget(self, noised, rng):
        """Negative at little noise."""
        level = torch.full((noised.x_t.shape[0],), -0.1, dtype=noised.x_t.dtype)
        return Budget("linf", level)


@planted("inside-the-budget", "radius")
class AnotherRadiusEachTime(Healthy):
    """Draws the radius from a global generator."""

    def budget(self, noised, rng):
        """Global."""
        return Budget("linf", torch.rand(noised.x_t.shape[0], dtype=noised.x_t.dtype))


class Free(Healthy):
    """Free adversarial training, healthy."""

    free = True

    def needs(self, base):
        """Nothing."""
        return ()

    def probes(self, base):
        """Nothing."""
        return ()

    def cost(self):
        """Nothing."""
        return SearchCost()

    def search(self, noised, budget, probe, rng):
        """Zero."""
        return torch.zeros_like(noised.x_t)

    def update(self, delta, gradient, budget):
        """Uphill."""
        return delta + 0.1 * norms.steepest_ascent(gradient, "linf")


@planted("free-update", "down the gradient", "uphill")
class FreeDescends(Free):
    """The wrong sign."""

    def update(self, delta, gradient, budget):
        """Downhill."""
        return delta - 0.1 * norms.steepest_ascent(gradient, "linf")


@planted("free-update", "1000 times as large", "depends on weights")
class FreeUsesSize(Free):
    """Takes the gradient for its direction and its size."""

    def update(self, delta, gradient, budget):
        """Size matters."""
        return delta + 0.001 * gradient


@planted("free-update", "its input delta", "in place")
class FreeEdits(Free):
    """Moves delta in place."""

    def update(self, delta, gradient, budget):
        """In place."""
        return delta.add_(0.1 * gradient.sign())
