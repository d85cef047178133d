"""Mistakes in optimizers, and in settings and modules of any kind."""

from __future__ import annotations

import attrs
import torch
from planted import planted

from advdiff_core import Optimizer
from advdiff_core.settings import setting, settings


class Descent(torch.optim.Optimizer):
    """Gradient descent with momentum, healthy."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    def rate(self, group):
        """Length of a step."""
        return group["lr"]

    def direction(self, parameter):
        """Where to go."""
        state = self.state[parameter]
        state["momentum"] = (
            0.5 * state.get("momentum", torch.zeros_like(parameter)) + parameter.grad
        )
        return state["momentum"]

    @torch.no_grad()
    def step(self, closure=None):
        """Move."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(self.rate(group) * self.direction(parameter))


class Healthy(Optimizer):
    """Makes the descent above."""

    torch_class = Descent

    @settings
    class Settings:
        """Keys."""

        lr: float = setting(0.01, gt=0.0, help="rate")

    def make(self, parameters):
        """One group."""
        return self.torch_class([p for _, p in parameters], lr=self.settings.lr)


@planted("moves-downhill", "a smaller one", "sign")
class Ascends(Healthy):
    """Climbs."""

    class torch_class(Descent):  # noqa: N801
        """Wrong sign."""

        def direction(self, parameter):
            """Uphill."""
            return -super().direction(parameter)


@planted("moves-downhill", "does not move", "every parameter")
class ForgetsBiases(Healthy):
    """Drops parameters of one axis."""

    def make(self, parameters):
        """Matrices alone."""
        return Descent([p for _, p in parameters if p.dim() > 1], lr=self.settings.lr)


@planted("state-is-plain", "tensors and plain numbers", "Memory")
class ObjectState(Healthy):
    """Keeps a Python object in its state."""

    class torch_class(Descent):  # noqa: N801
        """With an object."""

        def direction(self, parameter):
            """Kept."""
            self.state[parameter]["memory"] = Memory()
            return super().direction(parameter)


class Memory:
    """Something a checkpoint cannot hold."""


@planted("resumes-exactly", "after resuming", "state_dict()")
class HiddenCounter(Healthy):
    """Counts steps in an attribute."""

    class torch_class(Descent):  # noqa: N801
        """Bias correction by a hidden counter."""

        steps = 0

        def step(self, closure=None):
            """Counts."""
            self.steps += 1
            super().step(closure)

        def rate(self, group):
            """Decays."""
            return group["lr"] / self.steps


@planted("reads-the-rate", "lr = 0", "read group['lr']")
class FixedRate(Healthy):
    """Remembers the rate it was made with."""

    class torch_class(Descent):  # noqa: N801
        """Ignores the groups."""

        def rate(self, group):
            """From the defaults."""
            return self.defaults["lr"]


@planted("reads-the-rate", "groups with lr", "as it is")
class PerSampleRate(Healthy):
    """Scales the rate by a batch size it assumes."""

    def make(self, parameters):
        """Units."""
        return Descent([p for _, p in parameters], lr=self.settings.lr / 128)


@planted("leaves-everything-alone", "grad", "in place")
class EditsGradients(Healthy):
    """Clips gradients in place."""

    class torch_class(Descent):  # noqa: N801
        """In place."""

        def direction(self, parameter):
            """Clipped."""
            parameter.grad.mul_(0.5)
            return super().direction(parameter)


@planted("skips-what-has-no-gradient", "no exception")
class NeedsEveryGradient(Healthy):
    """Fails where a parameter has no gradient."""

    class torch_class(Descent):  # noqa: N801
        """No check."""

        @torch.no_grad()
        def step(self, closure=None):
            """None has no sub."""
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.sub_(group["lr"] * parameter.grad.clone())


@planted("is-documented", "no help", "momentum")
class Silent(Healthy):
    """A key without help."""

    @settings
    class Settings:
        """Keys."""

        lr: float = setting(0.01, gt=0.0, help="rate")
        momentum: float = setting(0.5, ge=0.0, help="")


@planted("is-documented", "docstring", "one line")
class Nameless(Healthy):
    __doc__ = None


@planted("settings-round-trip", "turns", "convert units")
class Percent(Healthy):
    """A key that is stored in other units than it is written in."""

    @settings
    class Settings:
        """Keys."""

        lr: float = setting(0.01, gt=0.0, help="rate")
        decay: float = attrs.field(
            default=0.0, converter=lambda value: value / 100, metadata={"help": "in percent"}
        )


@planted("settings-round-trip", "TOML", "plain equality")
class NeverEqual(Healthy):
    """Settings that know nothing of equality."""

    @attrs.frozen(kw_only=True, eq=False)
    class Settings:
        """Keys."""

        lr: float = setting(0.01, gt=0.0, help="rate")


@planted("refusals-name-a-key", "bad value", "names a key")
class Curt(Healthy):
    """Refuses without saying what."""

    @settings
    class Settings:
        """Keys."""

        lr: float = setting(0.01, gt=0.0, help="rate")
        decay: float = setting(0.0, ge=0.0, help="decay")

        def __attrs_post_init__(self):
            if self.decay > self.lr:
                raise ValueError("bad value")


@planted("building-is-repeatable", "default dtype", "settings of the process")
class SwitchesDtype(Healthy):
    """Switches the default dtype when it is built."""

    def __init__(self, settings, build):
        super().__init__(settings, build)
        torch.set_default_dtype(torch.float64)
