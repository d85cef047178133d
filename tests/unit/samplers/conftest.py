"""A denoiser that is right about everything: the Bayes estimate for Gaussian data."""

from types import SimpleNamespace

import pytest
import torch

from advdiff_core.interfaces.component import Build
from advdiff_core.schedules import EDM, VE, Flow, VPCosine, VPLinear
from advdiff_core.types import DataInfo, Domain, Prediction, expand

MEAN, STD = 0.3, 0.5


def _made(schedule, **settings):
    return schedule(schedule.Settings(**settings), Build())


SCHEDULES = {
    "vp-linear": _made(VPLinear),
    "vp-sde": _made(VPLinear, num_steps=0),
    "vp-cosine": _made(VPCosine, num_steps=0),
    "ve": _made(VE),
    "edm": _made(EDM),
    "flow": _made(Flow),
}


class Gaussian:
    """Data N(mean, std^2) in every coordinate: denoiser, flow of the ODE, start of a sampler.

    Args:
        schedule: The noise schedule.
        kind: What the denoiser predicts.
        mean: Mean of the data; a tensor that requires a gradient stands for parameters.
    """

    def __init__(self, schedule, kind="x0", mean=MEAN):
        self.schedule, self.kind, self.mean = schedule, kind, mean
        self.calls = 0

    def __call__(self, x_t, t):
        """The Bayes estimate E[x0 | x_t] as a prediction."""
        self.calls += 1
        alpha, sigma = expand(self.schedule.alpha(t), x_t), expand(self.schedule.sigma(t), x_t)
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        x0_hat = self.mean + gain * (x_t - alpha * self.mean)
        made = Prediction("x0", x0_hat, x_t, alpha, sigma)
        return made if self.kind == "x0" else Prediction(
            self.kind, made.to(self.kind), x_t, alpha, sigma
        )  # fmt: skip

    def solution(self, x, start, end):
        """The probability-flow ODE from `x` at time `start`, at time `end`, exactly."""
        at = [
            (self.schedule.alpha(t), (self.schedule.alpha(t).square() * STD**2
              + self.schedule.sigma(t).square()).sqrt())
            for t in (start, end)
        ]  # fmt: skip
        return at[1][0] * MEAN + (x - at[0][0] * MEAN) / at[0][1] * at[1][1]


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES)
def schedule(request):
    """Each of the core's schedules in turn."""
    return request.param


@pytest.fixture
def world():
    """Schedules by name, the Gaussian, and a function that builds samplers."""

    def build(sampler, schedule, *, domain=None, **settings):
        data = DataInfo(shape=(2,), count=1, domain=domain and Domain(*domain))
        made = Build(path="sample", schedule=schedule, data=data)
        return sampler(sampler.Settings(**settings), made)

    def times(schedule, count, low=-6.0, high=6.0):
        return schedule.time_of_log_snr(torch.linspace(low, high, count + 1, dtype=torch.float64))

    return SimpleNamespace(
        schedules=SCHEDULES, Gaussian=Gaussian, build=build, times=times, mean=MEAN, std=STD
    )
