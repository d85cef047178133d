"""Mistakes in attacks."""

from __future__ import annotations

import torch
from planted import planted

from advdiff_core import Attack, SearchCost, expand
from advdiff_core.interfaces.query import input_gradient
from advdiff_core.math import norms


class Healthy(Attack):
    """Two steps along the gradient."""

    steps = 2

    def cost(self):
        """A forward and a backward per step."""
        return SearchCost(self.steps, self.steps)

    def start(self, x, budget, rng):
        """Where the search begins."""
        return x

    def slope(self, victim, found):
        """Gradient of the victim's loss."""
        leaf = found.detach().requires_grad_()
        return input_gradient(victim.loss(victim.outputs(leaf)), leaf)

    def search(self, victim, x, budget, domain, rng):
        """Climb."""
        found, step = self.start(x, budget, rng), expand(budget.radius, x).to(x.dtype)
        for _ in range(self.steps):
            found = found + step * norms.steepest_ascent(self.slope(victim, found), budget.norm)
        return found


@planted("leaves-everything-alone", "its input x", "in place")
class EditsItsInput(Healthy):
    """Starts in the caller's tensor."""

    def start(self, x, budget, rng):
        """In place."""
        return x.add_(0.01)


@planted("leaves-everything-alone", ".grad of", "autograd.grad")
class FillsGrad(Healthy):
    """Calls backward."""

    def slope(self, victim, found):
        """Through everything."""
        leaf = found.detach().requires_grad_()
        victim.loss(victim.outputs(leaf)).sum().backward()
        return leaf.grad


@planted("leaves-everything-alone", "requires_grad of", "restore")
class ForgetsToUnfreeze(Healthy):
    """Freezes the model and leaves it so."""

    def slope(self, victim, found):
        """Freezes."""
        leaf = found.detach().requires_grad_()
        loss = victim.loss(victim.outputs(leaf))
        for parameter in getattr(victim, "net", torch.nn.Module()).parameters():
            parameter.requires_grad_(False)
        return input_gradient(loss, leaf)


@planted("leaves-everything-alone", "train mode", "not yours")
class SwitchesMode(Healthy):
    """Puts the model into train mode."""

    def slope(self, victim, found):
        """Switches."""
        getattr(victim, "net", torch.nn.Module()).train()
        return super().slope(victim, found)


@planted("follows-its-generator", "repeated search", "rng alone")
class GlobalStart(Healthy):
    """A start from torch's global generator."""

    def start(self, x, budget, rng):
        """Global."""
        return x + 0.1 * torch.randn_like(x)


@planted("follows-its-generator", "repeated search", "nothing from one search to the next")
class Momentum(Healthy):
    """Forgets to reset its momentum."""

    momentum = 0.0

    def slope(self, victim, found):
        """Remembered."""
        slope = super().slope(victim, found)
        last = self.momentum if isinstance(self.momentum, float) else self.momentum.to(slope)
        if not isinstance(last, float) and last.shape != slope.shape:
            last = 0.0
        self.momentum = slope + last
        return self.momentum


@planted("raises-the-loss", "mean loss", "sign of the step")
class Descends(Healthy):
    """The wrong sign."""

    def slope(self, victim, found):
        """Downhill."""
        return -super().slope(victim, found)


@planted("inside-budget-and-domain", "no exception", "num=2")
class ThreeClasses(Healthy):
    """A margin that needs a third class."""

    def slope(self, victim, found):
        """Third largest logit."""
        leaf = found.detach().requires_grad_()
        logits = victim.outputs(leaf)
        if logits.dim() != 2:
            return input_gradient(victim.loss(logits), leaf)
        top = logits.topk(3, dim=1).values
        return input_gradient(victim.loss(logits) + 1e-3 * (top[:, 0] - top[:, 2]), leaf)


@planted("cost-as-declared", "calls of victim.outputs", "cost() declares")
class Understated(Healthy):
    """Looks once more at the end."""

    def search(self, victim, x, budget, domain, rng):
        """One more call."""
        found = super().search(victim, x, budget, domain, rng)
        victim.broken(victim.outputs(found))
        return found


@planted("samples-are-independent", "two parts", "per sample")
class StopsTogether(Healthy):
    """Stops as soon as one sample is beaten."""

    def slope(self, victim, found):
        """Zero for all."""
        slope = super().slope(victim, found)
        beaten = victim.broken(victim.outputs(found))
        return slope * 0 if beaten is not None and bool(beaten.any()) else slope


@planted("works-without-domain", "AttributeError", "no exception")
class AssumesDomain(Healthy):
    """Clips to a range that may be missing."""

    def search(self, victim, x, budget, domain, rng):
        """domain.low of None."""
        return super().search(victim, x, budget, domain, rng).clamp(domain.low, domain.high)


@planted("works-without-verdicts", "no exception")
class AssumesVerdict(Healthy):
    """Stops where the model is beaten, which only a classifier knows."""

    def search(self, victim, x, budget, domain, rng):
        """None is no mask."""
        found = super().search(victim, x, budget, domain, rng)
        beaten = victim.broken(victim.outputs(x))
        return torch.where(expand(beaten, x), x, found)

    def cost(self):
        """One more."""
        return SearchCost(self.steps + 1, self.steps)


@planted("keeps-final-methods", "run", "search")
class OverridesRun(Healthy):
    """Replaces the method that projects."""

    def run(self, victim, x, budget, *, domain, rng):
        """No projection."""
        return self.search(victim, x, budget, domain, rng)


@planted("zero-radius-is-identity", "radius zero", "above zero")
class MovesAnyway(Healthy):
    """Replaces the method that projects, and rounds to bytes at the end."""

    def run(self, victim, x, budget, *, domain, rng):
        """Rounded."""
        return super().run(victim, x, budget, domain=domain, rng=rng).mul(127).round().div(127)


@planted("inside-budget-and-domain", "entries like nan", "guard divisions")
class DividesByMargin(Healthy):
    """0 / 0 where two logits are equal: here wherever the loss is flat."""

    def slope(self, victim, found):
        """NaN."""
        slope = super().slope(victim, found)
        return slope / (slope - slope)


@planted("never-worse-than-clean", "at the clean point alone", "best one")
class Unbreaks(Healthy):
    """Goes where samples that were beaten are not."""

    def slope(self, victim, found):
        """Downhill."""
        return -super().slope(victim, found)


@planted("never-worse-than-clean", "an objective that is", "compare each point")
class ForgetsTheBest(Healthy):
    """Leaves what is beaten alone, and returns where it ended of the rest."""

    def objective(self, victim, clean):
        """The victim's."""
        return victim.loss

    def slope(self, victim, found):
        """Downhill, as if it had jumped over the top."""
        return -super().slope(victim, found)

    def search(self, victim, x, budget, domain, rng):
        """The clean point is the best of those that are beaten alone."""
        found = super().search(victim, x, budget, domain, rng)
        beaten = victim.broken(victim.outputs(x))
        return found if beaten is None else torch.where(expand(beaten, x), x, found)

    def cost(self):
        """One more."""
        return SearchCost(self.steps + 1, self.steps)


@planted("takes-victims-apart-or-not", "cannot be taken apart", "settled samples")
class MovesWhatIsSettled(Healthy):
    """Forgets that samples may have to stay."""

    def search(self, victim, x, budget, domain, rng):
        """Moves all of them where it cannot take them out."""
        part = victim.rows(torch.arange(len(x)))
        return super().search(victim, x, budget, domain, rng) if part is None else x


class Member(Healthy):
    """One of several."""


class Turns(Healthy):
    """Runs two members in turn on the samples left."""

    kept = ("up", "noise")

    def members(self):
        """Climbing and noise."""
        return {"up": Member(self.settings, self.build), "noise": Noise(self.settings, self.build)}

    def cost(self):
        """Those of its members, and a look at the clean points and after each."""
        return SearchCost(7, 2)

    def search(self, victim, x, budget, domain, rng):
        """One after the other."""
        found, left = x, self.left(victim, x)
        for name in self.kept:
            tried = self.members()[name].search(victim, x, budget, domain, rng.child(name))
            tried = x + norms.project(tried - x, norm=budget.norm, radius=budget.radius)
            tried = tried if domain is None else tried.clamp(domain.low, domain.high)
            found = torch.where(expand(left & ~self.left(victim, tried), x), tried, found)
            left = self.left(victim, found)
        return found

    def left(self, victim, x):
        """Samples not beaten."""
        with torch.no_grad():
            broken = victim.broken(victim.outputs(x))
        return torch.ones(len(x), dtype=torch.bool) if broken is None else ~broken


class Noise(Healthy):
    """Random signs."""

    def search(self, victim, x, budget, domain, rng):
        """No gradient."""
        return x + expand(budget.radius, x).to(x.dtype) * rng.normal(x.shape).sign()


@planted("members-find-the-same", "by its members", "members() in turn")
class ForgetsAMember(Turns):
    """Names more members than it runs."""

    kept = ("noise",)


@planted("refuses-unknown-norms", "no refusal", "run` to the core")
class TakesAnyNorm(Healthy):
    """Replaces the method that refuses."""

    def run(self, victim, x, budget, *, domain, rng):
        """Whatever norm."""
        return x
