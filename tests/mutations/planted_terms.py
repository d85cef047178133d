"""Mistakes in loss terms."""

from __future__ import annotations

import torch
from planted import planted

from advdiff_core import EpsHat, LossTerm, View, X0Hat
from advdiff_core.settings import setting, settings


class Healthy(LossTerm):
    """Squared error of the predicted noise."""

    @settings
    class Settings:
        """Keys."""

        role: str = setting("student", ref="role", help="denoiser")

    def __init__(self, settings, build):
        super().__init__(settings, build)
        self.eps_hat, self.noised = EpsHat(settings.role), View("clean")
        self.needs = (self.eps_hat, self.noised)

    def error(self, step):
        """Residual [B, ...]."""
        return step.get(self.eps_hat) - step.get(self.noised).eps

    def forward(self, step):
        """Loss."""
        return self.error(step).square().flatten(1).mean(1)


@planted("one-loss-per-sample", "loss of shape []", "core alone reduces")
class ScalarLoss(Healthy):
    """Averages over the batch."""

    def forward(self, step):
        """Scalar."""
        return super().forward(step).mean()


@planted("one-loss-per-sample", "loss of shape", "[B]")
class PixelLoss(Healthy):
    """Keeps the pixels."""

    def forward(self, step):
        """[B, ...]."""
        return self.error(step).square()


@planted("builds", "not declared", "needs")
class Undeclared(Healthy):
    """Asks for a prediction that it did not declare."""

    def forward(self, step):
        """x0_hat."""
        return super().forward(step) + step.get(X0Hat(self.settings.role)).flatten(1).mean(1)


@planted("needs-equals-asked", "never asked for", "`needs`")
class Unused(Healthy):
    """Declares a prediction that it does not read."""

    def __init__(self, settings, build):
        super().__init__(settings, build)
        self.needs = (*self.needs, X0Hat(settings.role))


@planted("edits-nothing", "in place", "other terms read")
class InPlace(Healthy):
    """Subtracts in place."""

    def error(self, step):
        """Edits the shared noise."""
        noise = step.get(self.noised).eps
        return step.get(self.eps_hat) - noise.mul_(0.999)


@planted("edits-nothing", "torch's global generator", "Draws")
class GlobalMask(Healthy):
    """A random mask from the global generator."""

    def error(self, step):
        """Masked."""
        found = super().error(step)
        return found * (torch.rand_like(found) > 0.1)


@planted("samples-are-independent", "two parts", "over the batch")
class BatchNormalised(Healthy):
    """Divides by the mean loss of the batch."""

    def forward(self, step):
        """Relative."""
        loss = super().forward(step)
        return loss / loss.mean().detach()


@planted("one-loss-per-sample", "without a graph", "detach")
class Detached(Healthy):
    """Compares with itself, detached."""

    def error(self, step):
        """No graph."""
        return super().error(step).detach()


@planted("gradients-are-finite", "gradient", "roots and norms at zero")
class RootAtZero(Healthy):
    """A norm whose slope at zero is infinite."""

    def error(self, step):
        """A residual of exactly zero."""
        found = step.get(self.eps_hat)
        return (found - found.detach()).abs().sqrt()


@planted("gradients-are-finite", "zero for every trained weight", "trains something")
class Rounds(Healthy):
    """Rounds the prediction, which has no slope."""

    def error(self, step):
        """Rounded."""
        return step.get(self.eps_hat).round() - step.get(self.noised).eps


@planted("one-loss-per-sample", "entries like", "noise or signal vanishes")
class InfiniteWeight(Healthy):
    """Weights by a log-SNR that is divided by zero somewhere."""

    def forward(self, step):
        """1 / 0."""
        noised = step.get(self.noised)
        weight = (noised.alpha / noised.sigma).flatten().log()
        return super().forward(step) / (weight - weight)


@planted("follows-the-order-of-samples", "another order", "no positions")
class FirstCountsDouble(Healthy):
    """Weights samples by their place."""

    def forward(self, step):
        """By position."""
        loss = super().forward(step)
        return loss * torch.linspace(1, 2, 7, dtype=loss.dtype)[: len(loss)]


@planted("follows-the-order-of-samples", "another order")
class SortsLosses(Healthy):
    """Returns the losses sorted, as hard-example mining does."""

    def forward(self, step):
        """Sorted."""
        return super().forward(step).sort().values


@planted("repeats-itself", "asked for again", "nothing from one step to the next")
class RunningScale(Healthy):
    """Divides by a running mean of itself."""

    scale = 1.0

    def forward(self, step):
        """Remembers."""
        loss = super().forward(step)
        self.scale = 0.9 * self.scale + 0.1 * float(loss.detach().mean())
        return loss / self.scale
